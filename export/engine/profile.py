"""What may be asked for when a TensorRT plan is built: options and the shapes it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD, ModelSpec
from affserve.export.machine.gpus import Gpu
from affserve.train.windows import WINDOW_FRAMES

OPTIMUM_FRAMES = 64  # two chunks of two clients; what the encoder's kernels are chosen for

Shape = tuple[int, ...]
Runner = Callable[[NDArray[Any]], list[NDArray[np.float32]]]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a plan is built."""

    optimisation_level: int = 3  # TensorRT's 0 (seconds, slow plan) to 5 (long search); 3 is its default
    workspace_bytes: int = 4 << 30  # scratch memory a kernel may use on the GPU
    timing_cache: Path | None = None  # measurements kept between builds; one file per GPU kind beside this name
    any_version: bool = False  # build with another TensorRT than the serving container's

    def timing_cache_file(self, gpu: Gpu) -> Path | None:
        """Return the timing cache of one kind of GPU: caches of different ones cannot be merged."""
        if self.timing_cache is None:
            return None
        kind = gpu.compute_capability.replace(".", "")
        return self.timing_cache.with_name(f"{self.timing_cache.name}.sm{kind}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes a plan is built for: input name -> (smallest, the one to be fastest at, largest)."""

    model: ModelSpec
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def as_lists(self) -> dict[str, list[list[int]]]:
        """Return the shapes as plain values, for a plan's record."""
        return {name: [list(shape) for shape in shapes] for name, shapes in self.shapes.items()}


def _profile(model: ModelSpec, optimum: int, largest: int = WINDOW_FRAMES) -> Profile:
    (spec,) = model.inputs

    def shape(frames: int) -> Shape:
        # Without batches: the batch axis of 1 that Triton's reshape adds, then the time axis.
        return (frames, *spec.shape) if model.max_batch_size else (1, frames, *spec.shape[1:])

    return Profile(model=model, shapes={spec.name: (shape(1), shape(optimum), shape(largest))})


ENCODER_PROFILE = _profile(CLIP_ENCODER, OPTIMUM_FRAMES)
HEAD_PROFILE = _profile(TEMPORAL_HEAD, WINDOW_FRAMES)
PROFILES = (ENCODER_PROFILE, HEAD_PROFILE)
# Our own backend alone runs plans for RTX cards, longer batches in slices: of 300 frames, scratch memory would be 207
# MB for each of its seven contexts.
RTX_ENCODER_PROFILE = _profile(CLIP_ENCODER, OPTIMUM_FRAMES, largest=OPTIMUM_FRAMES)
RTX_PROFILES = (RTX_ENCODER_PROFILE, HEAD_PROFILE)
