"""Frames without a crop: what a temporal model sees in their place.

In come the features of the crops that exist, out goes one feature per frame. Whatever the policy, a frame without a
crop teaches and scores nothing unless somebody asks for it: policies decide what surrounds the frames that do.

- hold: the last feature before the gap, as the paper's authors do; frames before the first crop take the first one.
- nearest: the feature of the nearest crop in time, of the earlier one where two are equally near.
- interpolate: on the line between the crops around the gap; at either end of a video the nearest one.
- mask: zeros.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError

HOLD = "hold"
GAP_POLICIES = (HOLD, "nearest", "interpolate", "mask")


class CropFeatures(Protocol):
    """The features of one video's crops, in memory or on disk."""

    @property
    def numbers(self) -> NDArray[np.int32]:
        """Frame numbers of the crops, (M,), from 1, ascending."""

    @property
    def width(self) -> int:
        """D, the width of a feature."""

    def read(self, positions: slice) -> NDArray[Any]:
        """Return the features (m, D) of the crops at a range of positions in `numbers`."""


def check_policy(policy: str) -> str:
    """Return the name of a gap policy; DataError lists the known ones."""
    if policy not in GAP_POLICIES:
        raise DataError(f"gap policy is {policy!r}, expected one of {', '.join(GAP_POLICIES)}")
    return policy


def have_crop(crops: CropFeatures, frames: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which of the frame numbers (T,) have a crop of their own: (T,) bool."""
    if not len(crops.numbers):
        return np.zeros(len(frames), np.bool_)
    before, _ = _around(crops.numbers, frames)
    return np.asarray(crops.numbers[before] == frames, dtype=np.bool_)


def fill_gaps(crops: CropFeatures, frames: NDArray[np.int64], policy: str = HOLD) -> NDArray[np.float32]:
    """Return one feature per frame number (T,), ascending: (T, D) float32; only rows around these frames are read."""
    check_policy(policy)
    if not len(frames) or not len(crops.numbers):
        return np.zeros((len(frames), crops.width), np.float32)
    before, after = _around(crops.numbers, frames)  # (T,) positions of the crops on either side; equal outside gaps
    first = int(before.min())
    rows = _float32(crops.read(slice(first, int(after.max()) + 1)))
    since = frames - crops.numbers[before]  # (T,) frames; 0 or less: no earlier crop, or the frame's own
    until = crops.numbers[after] - frames
    if policy == "interpolate":
        share = np.where(after > before, since / np.maximum(since + until, 1), 0).astype(np.float32)[:, None]
        blended = rows[before - first] * (1 - share) + rows[after - first] * share
        return np.asarray(blended, dtype=np.float32)
    chosen = np.where(until < since, after, before) if policy == "nearest" else before
    filled: NDArray[np.float32] = rows[chosen - first]
    if policy == "mask":
        filled[since != 0] = 0
    return filled


def _float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    import torch

    # NumPy converts half precision in software: thirty times as long, more than all the rest of a window.
    converted: NDArray[np.float32] = torch.from_numpy(np.require(rows, requirements="W")).float().numpy()
    return converted


def _around(numbers: NDArray[np.int32], frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions (T,) of the last crop at or before each frame and of the first at or after it.

    Where one side has none, both are the other side's.
    """
    before = np.searchsorted(numbers, frames, side="right") - 1
    after = np.searchsorted(numbers, frames, side="left")
    return np.maximum(before, 0), np.minimum(after, len(numbers) - 1)
