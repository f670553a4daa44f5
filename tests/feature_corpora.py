"""Corpora without a picture: annotations and made-up features, for training heads in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpora import write_annotation
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION
from affserve.train.corpus.annotations import format_annotation
from affserve.train.features.store import FeatureStore, StoreDescription
from affserve.train.labels import TASKS, VALENCE_AROUSAL

FINGERPRINT = "0123456789abcdef"
WIDTH = 8  # D


@dataclass
class Rows:
    """Features of some crops in memory: (C, D) of the crops with these numbers (C,)."""

    numbers: NDArray[np.int32]
    rows: NDArray[np.float16]
    most_read: int = 0  # rows at once

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def read(self, positions: slice) -> NDArray[np.float16]:
        self.most_read = max(self.most_read, positions.stop - positions.start)
        return self.rows[positions]


def write_features(root: Path, rows: Mapping[str, NDArray[np.float16]]) -> Path:
    """Store the features (N, D) of some videos, and make their empty crop folders."""
    folder = root / "features" / FINGERPRINT
    store = FeatureStore.create(folder, StoreDescription(width=WIDTH, corpus="Aff-Wild2"))
    for video, values in rows.items():
        (root / "cropped_aligned" / video).mkdir(parents=True)
        store.write(video, np.arange(1, len(values) + 1), values)
    return folder


def temporal_corpus(root: Path) -> tuple[Path, Path]:
    """A corpus whose valence is the running mean of a noisy feature: seen over time, hardly on one frame."""
    rng = np.random.default_rng(0)
    rows = {}
    for index in range(12):
        part = VALIDATION if index >= 9 else TRAIN
        signal = np.sin(np.arange(320) * rng.uniform(0.01, 0.03) + rng.uniform(0, 6))
        observed = np.stack([signal + 2 * rng.normal(size=320) for _ in range(WIDTH)], axis=1)
        labels = np.stack([signal, -signal], axis=1).astype(np.float32) * 0.8
        write_annotation(root, VALENCE_AROUSAL.challenge, part, f"v{index}", format_annotation(VALENCE_AROUSAL, labels))
        rows[f"v{index}"] = observed.astype(np.float16)
    return root, write_features(root, rows)


def three_task_corpus(root: Path, videos: int = 8, frames: int = 130) -> tuple[Path, Path]:
    """A corpus of noise, labelled for all tasks but for a tenth of the frames; a quarter of the videos validate."""
    rng = np.random.default_rng(1)
    rows = {}
    for index in range(videos):
        part = VALIDATION if index % 4 == 3 else TRAIN
        for task in TASKS.values():
            drawn = rng.uniform(task.low, task.high + task.integer, (frames, task.columns))
            values = np.floor(drawn) if task.integer else drawn
            values = np.where(rng.random((frames, 1)) < 0.1, task.invalid, np.clip(values, task.low, task.high))
            text = format_annotation(task, values.astype(np.float32))
            write_annotation(root, task.challenge, part, f"v{index}", text)
        rows[f"v{index}"] = rng.normal(size=(frames, WIDTH)).astype(np.float16)
    return root, write_features(root, rows)
