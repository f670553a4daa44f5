"""Crops decoded ahead of whoever needs them, by threads: OpenCV lets other Python code run while it decodes.

In come paths, out come frames as the encoder takes them, in the same order, however many threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.crops import ENCODER_SIZE_PX, read_crop, to_encoder_input
from affserve.train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """Crops of one video for one step of the encoder; `video` is complete after the last of its batches."""

    video: str
    paths: dict[int, Path]  # by frame number
    last: bool


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """What became of them."""

    crops: CropBatch
    numbers: NDArray[np.int32]  # (B,) of the crops that could be decoded
    frames: NDArray[np.uint8]  # (B, 224, 224, 3)
    unreadable: tuple[int, ...]  # numbers of the others


def decoded_ahead(pool: ThreadPoolExecutor, batches: Iterator[CropBatch], ahead: int) -> Iterator[FrameBatch]:
    """Decode batches in the threads of a pool, `ahead` of them at a time, and yield them in order."""
    waiting: deque[Future[FrameBatch]] = deque()
    for batch in batches:
        waiting.append(pool.submit(_decode, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _decode(crops: CropBatch) -> FrameBatch:
    frames = np.empty((len(crops.paths), ENCODER_SIZE_PX, ENCODER_SIZE_PX, 3), np.uint8)
    good: list[int] = []
    bad: list[int] = []
    for number, path in crops.paths.items():
        try:
            frames[len(good)] = to_encoder_input(read_crop(path))  # OpenCV lets other threads run meanwhile
            good.append(number)
        except DataError:
            bad.append(number)
    return FrameBatch(crops=crops, numbers=np.array(good, np.int32), frames=frames[: len(good)], unreadable=tuple(bad))
