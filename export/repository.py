"""Checkpoints in, a complete Triton model repository out.

Everything is built and checked in a folder beside the target and takes its place by renaming, so that a failed export
leaves what was served untouched.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export import parity
from affserve.export.contract import (
    AFFECT,
    CLIP_ENCODER,
    MANIFEST_FILE,
    MODELS,
    ONNX_FILE,
    TEMPORAL_HEAD,
    HeadDescription,
)
from affserve.export.graphs import HeadGraph
from affserve.export.model_config import write_config
from affserve.export.to_onnx import export_encoder, export_head
from affserve.train.atomic import staged_folder
from affserve.train.checkpoint import Checkpoint, load_encoder, load_head
from affserve.train.errors import ExportError
from affserve.train.head_ensemble import HeadEnsemble
from affserve.train.labels import TASKS
from affserve.train.temporal_head import TemporalHead
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES

MANIFEST_SCHEMA = 1
TEMPLATES = Path(__file__).parents[1] / "model_repository"
VERSIONED_PACKAGES = ("affserve", "torch", "open_clip_torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export made."""

    repository: Path
    tasks: tuple[str, ...]
    trained_on: str
    bytes: int  # size of all artefacts
    checks: int  # parity checks passed
    worst_feature_difference: float  # relative to the largest feature magnitude


def export_repository(
    encoder_path: Path,
    head_paths: Sequence[Path],
    target: Path,
    *,
    parity_frames: NDArray[np.uint8],
    progress: Callable[[str], None] = lambda _: None,
) -> ExportSummary:
    """Write the repository of an encoder and one to three heads to `target`.

    parity_frames: (N, 224, 224, 3) uint8 consecutive face crops the artefacts are compared on.
    CheckpointError, ExportError or ParityError; the target is then as it was.
    """
    _refuse_foreign_folder(target)
    encoder, encoder_checkpoint = load_encoder(encoder_path)
    loaded = [load_head(path) for path in head_paths]
    _check_heads_fit(encoder_checkpoint, [checkpoint for _, checkpoint in loaded])
    graph = HeadGraph([head for head, _ in loaded])
    description = _describe(encoder_checkpoint, loaded)

    with staged_folder(target) as staging:
        _write_configs(staging, graph.tasks, description)
        progress("encoder to ONNX")
        export_encoder(encoder, _artefact(staging, CLIP_ENCODER.name))
        progress("head to ONNX")
        export_head(graph, _artefact(staging, TEMPORAL_HEAD.name))
        progress("parity with PyTorch")
        checks, features = parity.check_encoder(encoder, _artefact(staging, CLIP_ENCODER.name), parity_frames)
        checks += parity.check_head(graph, _artefact(staging, TEMPORAL_HEAD.name), features)
        records = parity.require(checks)
        manifest = _manifest(staging, description, encoder_checkpoint, [c for _, c in loaded], records)
        (staging / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return ExportSummary(
        repository=target,
        tasks=graph.tasks,
        trained_on=description.trained_on,
        bytes=sum(_artefact(target, name).stat().st_size for name in (CLIP_ENCODER.name, TEMPORAL_HEAD.name)),
        checks=len(records),
        worst_feature_difference=records[0]["figure"],
    )


def _refuse_foreign_folder(target: Path) -> None:
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST_FILE).exists())):
        raise ExportError(
            f"{target} exists and is not a repository written by affserve (no {MANIFEST_FILE}); choose another folder"
        )


def _check_heads_fit(encoder: Checkpoint, heads: Sequence[Checkpoint]) -> None:
    if not heads:
        raise ExportError("no head was given; expected at least one temporal head checkpoint")
    for head in heads:
        trained_with = head.provenance.encoder
        if trained_with != encoder.fingerprint:
            raise ExportError(
                f"{head.path} was trained on features of encoder {trained_with}, but {encoder.path} is "
                f"{encoder.fingerprint}; export it with its own encoder, or train the head on this one's features"
            )


def _describe(encoder: Checkpoint, heads: Sequence[tuple[TemporalHead | HeadEnsemble, Checkpoint]]) -> HeadDescription:
    trained = {key for head, _ in heads for key in head.config.tasks}
    corpora = sorted({checkpoint.provenance.trained_on for checkpoint in (encoder, *(c for _, c in heads))})
    windows = {
        (c.provenance.window_frames or WINDOW_FRAMES, c.provenance.stride_frames or STRIDE_FRAMES) for _, c in heads
    }
    if len(windows) > 1:
        raise ExportError(f"the heads differ in window and stride: {sorted(windows)} frames; expected the same for all")
    window, stride = windows.pop()
    return HeadDescription(
        labels={key: task.names for key, task in TASKS.items() if key in trained},
        window_frames=window,
        stride_frames=stride,
        trained_on="+".join(corpora),
        encoder=encoder.fingerprint,
    )


def _write_configs(staging: Path, tasks: Sequence[str], description: HeadDescription) -> None:
    for model in MODELS:
        (staging / model / "1").mkdir(parents=True)
        for template in sorted((TEMPLATES / model).rglob("*.pbtxt")):
            place = staging / template.relative_to(TEMPLATES)
            place.parent.mkdir(parents=True, exist_ok=True)
            described = description if model in (TEMPORAL_HEAD.name, AFFECT.name) else None
            write_config(template, place, tasks, described)


def _artefact(root: Path, model: str) -> Path:
    return root / model / "1" / ONNX_FILE


def _manifest(
    root: Path,
    description: HeadDescription,
    encoder: Checkpoint,
    heads: Sequence[Checkpoint],
    checks: list[dict[str, Any]],
) -> dict[str, Any]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        "schema": MANIFEST_SCHEMA,
        "trained_on": description.trained_on,
        "labels": {key: list(names) for key, names in description.labels.items()},
        "window_frames": description.window_frames,
        "stride_frames": description.stride_frames,
        "precision": "fp32",
        "encoder": {"fingerprint": encoder.fingerprint, **asdict(encoder.provenance)},
        "heads": [{"fingerprint": head.fingerprint, **asdict(head.provenance)} for head in heads],
        "parity": checks,
        "versions": {name: _version(name) for name in VERSIONED_PACKAGES},
        "files": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
