"""What stage 1 trains on: the labelled crops of a corpus, one by one, and how they are augmented.

Augmentation is what a detector's jitter and another camera do to a face, and nothing that changes its expression: a
little turned, moved, scaled, relit, in another white balance, and mirrored. One matrix changes a crop's colours
(112, 112, 3), one interpolation makes it an encoder input (224, 224, 3), so that augmented faces are no blurrier than
the served ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset  # noqa: TID253 - this file is about it

from affserve.train.corpus.affwild2 import Corpus
from affserve.train.corpus.annotations import aligned
from affserve.train.crops import ENCODER_SIZE_PX, read_crop, to_encoder_input
from affserve.train.errors import DataError
from affserve.train.labels import Task


@dataclass(frozen=True, kw_only=True)
class LabelledFrames:
    """The labelled frames of a corpus part, one row per crop; tasks a frame is not labelled for are marked invalid."""

    paths: list[Path]
    truth: dict[str, NDArray[np.float32]]  # (N, columns) by task
    valid: dict[str, NDArray[np.bool_]]  # (N,) by task
    weights: NDArray[np.float64]  # (N,) how often each is drawn, beside the others
    person: NDArray[np.int64]  # (N,) whose each is, numbered from 0


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


def labelled_frames(
    corpus: Corpus, tasks: Sequence[Task], part: str, frame_step: int = 1, *, hold_out: str = "any"
) -> LabelledFrames:
    """Collect the crops of a set that are labelled for at least one of the tasks; hold_out as in Corpus.part_videos."""
    paths: list[Path] = []
    weights: list[NDArray[np.float64]] = []
    whose: list[str] = []
    truth: dict[str, list[NDArray[np.float32]]] = {task.key: [] for task in tasks}
    valid: dict[str, list[NDArray[np.bool_]]] = {task.key: [] for task in tasks}
    for video in corpus.part_videos(tasks, part, hold_out):
        crops = corpus.crops(video)
        numbers = np.fromiter(crops, dtype=np.int64, count=len(crops))[::frame_step]
        labels = {task.key: aligned(corpus.annotation(task, part, video), task, numbers) for task in tasks}
        keep = np.any([ok for _, ok in labels.values()], axis=0)
        paths += [crops[number] for number in numbers[keep].tolist()]
        whose += [corpus.person(video)] * int(keep.sum())
        weights.append(np.full(int(keep.sum()), corpus.weights.get(video, 1.0)))
        for key, (rows, ok) in labels.items():
            truth[key].append(rows[keep])
            valid[key].append(ok[keep])
    if not paths:
        raise DataError(f"{corpus.root}: no labelled crops in {part} for {', '.join(task.key for task in tasks)}")
    return LabelledFrames(
        paths=paths,
        truth={key: np.concatenate(rows) for key, rows in truth.items()},
        valid={key: np.concatenate(rows) for key, rows in valid.items()},
        weights=np.concatenate(weights),
        person=np.unique(whose, return_inverse=True)[1],
    )


TURN_DEGREES = 8.0
SHIFT = 0.04  # of the side
SCALE = (0.92, 1.08)
BRIGHTNESS = 0.2
CONTRAST = 0.2
SATURATION = 0.2
WHITE_BALANCE = 0.15  # of each channel on its own: rooms differ in the colour of their light more than in its strength
OFFSET = 15.0  # levels of 255
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Augmentation:
    """Transforms of crops that depend on nothing but (seed, epoch, index)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, crop: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """Return another picture (224, 224, 3) of a crop (H, W, 3)."""
        rng = np.random.default_rng([self.seed, epoch, index])
        height, width = crop.shape[:2]
        relit = cv2.transform(crop, _light(rng, float(crop.mean())))
        return resampled(np.asarray(relit, dtype=np.uint8), _motion(rng, height, width))


def _light(rng: np.random.Generator, level: float) -> NDArray[np.float64]:
    """Draw a (3, 4) matrix over (R, G, B, 1): saturation, contrast about the mean level, white balance, brightness."""
    saturation = 1 + rng.uniform(-SATURATION, SATURATION)
    contrast = 1 + rng.uniform(-CONTRAST, CONTRAST)
    gains = (1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)) * (1 + rng.uniform(-WHITE_BALANCE, WHITE_BALANCE, 3))
    mixing = saturation * np.eye(3) + (1 - saturation) * LUMA
    offset = gains * (1 - contrast) * level + rng.uniform(-OFFSET, OFFSET)
    return np.hstack([gains[:, None] * contrast * mixing, offset[:, None]])


def _motion(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Draw a (3, 3) similarity about the middle of an image, mirrored half of the time, in pixel centres."""
    angle = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    scale = rng.uniform(*SCALE)
    mirror = rng.choice((-1.0, 1.0))
    x, y = (width - 1) / 2, (height - 1) / 2
    shift_x, shift_y = rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[mirror * cosine, -sine, x + shift_x], [mirror * sine, cosine, y + shift_y], [0, 0, 1]])
    motion: NDArray[np.float64] = turn @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    return motion


def resampled(image: NDArray[np.uint8], motion: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Move an image (H, W, 3) by a (3, 3) matrix and resize it to (224, 224, 3) at once, its border repeated."""
    height, width = image.shape[:2]
    along, down = ENCODER_SIZE_PX / width, ENCODER_SIZE_PX / height
    # Pixels are areas: the centre of the first is at half a pixel from the edge, before and after.
    enlarge = np.array([[along, 0, (along - 1) / 2], [0, down, (down - 1) / 2]])
    size = (ENCODER_SIZE_PX, ENCODER_SIZE_PX)
    moved = cv2.warpAffine(image, enlarge @ motion, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)
