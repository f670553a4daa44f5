"""Golden inputs of a repository with the answers that PyTorch gave: what a server proves itself on when it starts.

Written at export into the version's folder of each model with weights; arrays alone, no pickled objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from affserve.export.artefacts.comparing import Features, Floats
from affserve.export.contract import CLIP_ENCODER, FRAMES, TEMPORAL_HEAD
from affserve.export.repository.manifest import WRITE_AGAIN, reading
from affserve.train.errors import RepositoryError

if TYPE_CHECKING:
    from affserve.export.artefacts.parity import Truth

GOLDEN_FILE = "golden.npz"
GOLDEN_FRAMES = 8  # crops, spread over the people that export compared on
_FEATURES, _MIDDLE = "features", "middle"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a server is asked, and what PyTorch answered."""

    frames: NDArray[np.uint8]  # (N, 224, 224, 3)
    features: Features  # of those frames
    window: Floats  # (T, D)
    outputs: Mapping[str, Floats]  # by task: (T, K)


def golden_file(model: str, version: int) -> str:
    """Return where the golden inputs of a model lie, relative to the repository."""
    return f"{model}/{version}/{GOLDEN_FILE}"


def write_golden(root: Path, version: int, truth: Truth) -> list[str]:
    """Write golden inputs of what export compared on; return the files, relative to the repository."""
    faces = truth.features.faces
    chosen = np.unique(np.linspace(0, faces - 1, min(GOLDEN_FRAMES, faces)).round().astype(int))
    encoder = {
        FRAMES.name: truth.frames[chosen],
        _FEATURES: truth.features.values[chosen],
        _MIDDLE: truth.features.middle,
    }
    head = {_FEATURES: truth.windows[-1][0], **truth.outputs[-1]}
    content = {CLIP_ENCODER.name: encoder, TEMPORAL_HEAD.name: head}
    for model, arrays in content.items():
        np.savez(root / golden_file(model, version), **arrays)
    return [golden_file(model, version) for model in content]


def read_golden(root: Path, version: int) -> Golden:
    """Read what `write_golden` wrote; RepositoryError for anything else."""
    try:
        encoder, head = (_read(root / golden_file(one.name, version)) for one in (CLIP_ENCODER, TEMPORAL_HEAD))
        frames, values, middle = encoder[FRAMES.name], encoder[_FEATURES], encoder[_MIDDLE]
        window = head.pop(_FEATURES)
    except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
        raise RepositoryError(f"{root}: a {GOLDEN_FILE} holds something else ({error}); {WRITE_AGAIN}") from error
    return Golden(
        frames=frames, features=Features(values=values, faces=len(values), middle=middle), window=window, outputs=head
    )


def _read(path: Path) -> dict[str, Any]:
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
