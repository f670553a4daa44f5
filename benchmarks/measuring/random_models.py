"""Models with random weights in real repositories: what speed is measured on where no trained ones are at hand.

Speed does not depend on the values of weights; export and its parity gate are the real ones. What was made once is kept
below the cache folder and made again when anything that shapes a graph or a configuration has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from affserve.export.artefacts.material import CALIBRATION_FRAMES, PARITY_FRAMES, Material, generated_material
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.manifest import MANIFEST_SCHEMA
from affserve.train.errors import DataError
from affserve.train.files import sole_user, staged_file
from affserve.train.windows import WINDOW_FRAMES

if TYPE_CHECKING:
    from affserve.export.engine.profile import EngineOptions
    from affserve.export.repository.exporting import ExportOptions


CACHE = Path("build/bench")
SEED = 0
KEY_FILE = "made_from.json"
MODELS_FOLDER = "models"
PAPER, DEMO, STREAM = "paper", "demo", "stream"  # sizes of a head; the last streams
STREAM_CONTEXT_FRAMES = 38  # with 8 layers it sees 352 frames back, about what a window holds
PROJECT = Path(__file__).parents[2]
# What a repository's speed depends on besides the libraries.
SHAPING = (
    "model_repository/**/*.pbtxt",
    "train/models/*.py",
    "export/contract.py",
    "export/graphs/*.py",
    "export/precision/*.py",
)

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """An encoder and a head that belong together."""

    encoder: Path
    head: Path
    weights: str  # "random", or the corpus they were trained on


def random_checkpoints(architecture: str, cache: Path = CACHE, head_size: str = PAPER) -> Checkpoints:
    """Return checkpoints of open_clip's `architecture` and of a head for all tasks in one trunk, random but seeded."""
    found = _places(architecture, cache, head_size)
    folder = found.encoder.parent
    with _to_make(cache, folder) as missing:
        if missing:
            _write_checkpoints(found, architecture, head_size)
            _seal(folder)
    return found


@contextmanager
def _to_make(cache: Path, folder: Path, checkpoints: Checkpoints | None = None) -> Iterator[bool]:
    """Say whether what `folder` holds has to be made, and keep other processes from making it meanwhile."""
    if _is_fresh(folder, checkpoints):
        yield False
        return
    cache.mkdir(parents=True, exist_ok=True)
    with sole_user(cache, wait=True):
        yield not _is_fresh(folder, checkpoints)  # who held the lock may have made it


def _places(architecture: str, cache: Path, head_size: str) -> Checkpoints:
    folder = cache / f"{architecture}-{head_size}" / "checkpoints"
    return Checkpoints(encoder=folder / "encoder", head=folder / "head", weights="random")


def random_repository(architecture: str, precision: Precision, cache: Path = CACHE, use: str = "cpu") -> Path:
    """Return where `repository_of` puts the repository of `random_checkpoints`; nothing is made."""
    return _repository_folder(_places(architecture, cache, PAPER), precision, cache, use) / MODELS_FOLDER


def _repository_folder(checkpoints: Checkpoints, precision: Precision, cache: Path, use: str) -> Path:
    name = hashlib.sha256(f"{checkpoints.encoder.resolve()} {checkpoints.head.resolve()}".encode()).hexdigest()[:8]
    return cache / f"repository-{name}-{use}-{precision.value}"


def _write_checkpoints(place: Checkpoints, architecture: str, head_size: str) -> None:
    import torch

    from affserve.train.models.checkpoint import save_encoder, save_head
    from affserve.train.models.encoder import create_encoder
    from affserve.train.models.temporal_head import TemporalHead, TemporalHeadConfig, demo_head_config
    from affserve.train.provenance import Provenance

    place.encoder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    encoder = create_encoder(architecture)
    fingerprint = save_encoder(place.encoder, encoder, Provenance(trained_on="nothing (random weights)"))
    context = STREAM_CONTEXT_FRAMES if head_size == STREAM else None
    head = TemporalHead(demo_head_config() if head_size == DEMO else TemporalHeadConfig(context_frames=context))
    provenance = Provenance(trained_on="nothing (random weights)", encoder=fingerprint)
    save_head(place.head, head, provenance)


def repository_of(
    checkpoints: Checkpoints,
    precision: Precision,
    cache: Path = CACHE,
    *,
    use: str = "cpu",
    engines: EngineOptions | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Return a model repository of the checkpoints in one precision, exported now unless it was before.

    engines: how to build TensorRT plans in a repository that is exported now.
    """
    from affserve.export.repository.exporting import ExportOptions

    folder = _repository_folder(checkpoints, precision, cache, use)
    with _to_make(cache, folder, checkpoints) as missing:
        if missing:
            progress(f"exporting {checkpoints.encoder} in {precision.value}, once")
            _export(checkpoints, folder, ExportOptions(uses=(use,), precision=precision, engines=engines), cache)
            _seal(folder, checkpoints)
    return folder / MODELS_FOLDER


def _export(checkpoints: Checkpoints, folder: Path, options: ExportOptions, cache: Path) -> None:
    from affserve.export.repository.exporting import export_repository

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    faces = generated_faces(cache)
    material = Material(calibration=faces[-CALIBRATION_FRAMES:], parity=faces[:PARITY_FRAMES])
    target, heads = folder / MODELS_FOLDER, [checkpoints.head]
    export_repository(checkpoints.encoder, heads, target, material=material, options=options)


def generated_faces(cache: Path = CACHE) -> NDArray[np.uint8]:
    """Return (N, 224, 224, 3) uint8 crops of drawn faces; the last CALIBRATION_FRAMES show other people."""
    path = cache / f"faces-{WINDOW_FRAMES + CALIBRATION_FRAMES}.npy"
    if not path.exists():
        material = generated_material(WINDOW_FRAMES, CALIBRATION_FRAMES)
        cache.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as file:
            np.save(file, np.concatenate([material.parity, material.calibration]))
    faces: NDArray[np.uint8] = np.load(path)
    return faces


def _is_fresh(folder: Path, checkpoints: Checkpoints | None = None) -> bool:
    try:
        known = json.loads((folder / KEY_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(known == _key(checkpoints))


def _seal(folder: Path, checkpoints: Checkpoints | None = None) -> None:
    (folder / KEY_FILE).write_text(json.dumps(_key(checkpoints)))


def _key(checkpoints: Checkpoints | None) -> dict[str, object]:
    from affserve.export.repository.sources import built_with

    weights = [path.stat().st_mtime_ns for path in (checkpoints.encoder, checkpoints.head)] if checkpoints else []
    return {
        "manifest_schema": MANIFEST_SCHEMA,
        "shaped_by": shaped_by(),
        "built_with": {name: version for name, version in built_with().items() if name not in ("commit", "affserve")},
        "checkpoints": weights,
    }


def shaped_by(project: Path = PROJECT, patterns: Sequence[str] = SHAPING) -> str:
    """Return the digest of the source that shapes a repository; DataError when a pattern finds none.

    A pattern that finds nothing would make models of old code look fresh.
    """
    digest = hashlib.sha256()
    for pattern in patterns:
        found = sorted(project.glob(pattern))
        if not found:
            raise DataError(f"{project} has no {pattern}, which shapes the models of benchmarks: correct SHAPING")
        for path in found:
            digest.update(path.read_bytes())
    return digest.hexdigest()
