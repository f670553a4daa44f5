"""What stage 1 trains on: the labelled crops of a corpus, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset  # noqa: TID253 - this file is about it

from affserve.train.affwild2 import Corpus
from affserve.train.alignment import to_encoder_input
from affserve.train.augmentation import Augmentation
from affserve.train.errors import DataError
from affserve.train.labels import Task


@dataclass(frozen=True, kw_only=True)
class LabelledFrames:
    """The labelled frames of a corpus part, one row per crop; tasks a frame is not labelled for are marked invalid."""

    paths: list[Path]
    truth: dict[str, NDArray[np.float32]]  # (N, columns) by task
    valid: dict[str, NDArray[np.bool_]]  # (N,) by task


class FrameDataset(Dataset[dict[str, Any]]):
    """Crops as the encoder takes them, with their labels."""

    def __init__(self, frames: LabelledFrames, augment: bool, seed: int = 0) -> None:
        self.frames = frames
        self.augmentation = Augmentation(seed) if augment else None
        self.epoch = 0  # changes what is augmented how

    def __len__(self) -> int:
        return len(self.frames.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        crop = read_crop(self.frames.paths[index])
        augment = self.augmentation
        return {
            "frames": to_encoder_input(crop) if augment is None else augment(crop, self.epoch, index),
            "truth": {key: values[index] for key, values in self.frames.truth.items()},
            "valid": {key: values[index] for key, values in self.frames.valid.items()},
        }


def read_crop(path: Path) -> NDArray[np.uint8]:
    """Read a crop as (H, W, 3) RGB; DataError names a file that cannot be read."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    # Of a truncated JPEG cv2.imread paints the rest grey and says nothing; imdecode refuses it.
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise DataError(f"{path} cannot be decoded as an image ({content.size} bytes); delete or replace it")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def labelled_frames(
    corpus: Corpus, tasks: Sequence[Task], part: str, frame_step: int = 1, *, hold_out: str = "any"
) -> LabelledFrames:
    """Collect the crops of a set that are labelled for at least one of the tasks; hold_out as in Corpus.part_videos."""
    paths: list[Path] = []
    truth: dict[str, list[NDArray[np.float32]]] = {task.key: [] for task in tasks}
    valid: dict[str, list[NDArray[np.bool_]]] = {task.key: [] for task in tasks}
    for video in corpus.part_videos(tasks, part, hold_out):
        crops = corpus.crops(video)
        numbers = np.fromiter(crops, dtype=np.int64, count=len(crops))[::frame_step]
        labels = {task.key: corpus.labels(task, part, video, numbers) for task in tasks}
        keep = np.any([ok for _, ok in labels.values()], axis=0)
        paths += [crops[number] for number in numbers[keep].tolist()]
        for key, (rows, ok) in labels.items():
            truth[key].append(rows[keep])
            valid[key].append(ok[keep])
    if not paths:
        raise DataError(f"{corpus.root}: no labelled crops in {part} for {', '.join(task.key for task in tasks)}")
    return LabelledFrames(
        paths=paths,
        truth={key: np.concatenate(rows) for key, rows in truth.items()},
        valid={key: np.concatenate(rows) for key, rows in valid.items()},
    )
