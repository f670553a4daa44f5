"""Between the stages: the features of every crop, computed once with the fine-tuned encoder.

One file per video, named for it, in a folder named for the fingerprint of the encoder, so that two encoders' features
never mix. A file is written whole or not at all; running again computes only what is missing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.train.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.alignment import to_encoder_input
from affserve.train.clip_encoder import ClipEncoder
from affserve.train.errors import DataError
from affserve.train.finetune import read_crop
from affserve.train.labels import TASKS
from affserve.train.loop import check_device

BATCH_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """Features of one video's crops."""

    numbers: NDArray[np.int64]  # (M,) frame numbers from 1, ascending
    features: NDArray[np.float16]  # (M, D)


def extract_features(
    encoder: ClipEncoder,
    fingerprint: str,
    corpus: Corpus,
    store: Path,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Encode every crop of every labelled video and return the folder of the feature files.

    progress: called with the numbers of videos done and to do.
    """
    check_device(device)
    folder = store / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    videos = sorted({v for task in TASKS.values() for part in (TRAIN, VALIDATION) for v in corpus.videos(task, part)})
    encoder.eval().to(device)
    for done, video in enumerate(videos):
        progress(done, len(videos))
        if not _file(folder, video).exists():
            _write(_file(folder, video), _encode(encoder, corpus.crops(video), device))
    progress(len(videos), len(videos))
    return folder


def read_features(folder: Path, video: str) -> VideoFeatures:
    """Read the features of one video."""
    try:
        with np.load(_file(folder, video)) as arrays:
            return VideoFeatures(numbers=arrays["numbers"], features=arrays["features"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{_file(folder, video)} cannot be read: {error}; extract the features again") from error


def on_timeline(stored: VideoFeatures, frames: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lay features on frames 1..N: (N, D) and whether the frame has a crop, (N,).

    A gap holds the last feature before it (the paper's authors do so); frames before the first crop hold the first.
    """
    numbers = np.arange(1, frames + 1)
    if len(stored.numbers) == 0:
        return np.zeros((frames, stored.features.shape[1]), np.float32), np.zeros(frames, np.bool_)
    last = np.searchsorted(stored.numbers, numbers, side="right") - 1
    present = stored.numbers[np.maximum(last, 0)] == numbers
    return stored.features[np.maximum(last, 0)].astype(np.float32), present


def _file(folder: Path, video: str) -> Path:
    return folder / f"{video}.npz"


def _encode(encoder: ClipEncoder, crops: dict[int, Path], device: str) -> VideoFeatures:
    paths = list(crops.values())
    parts = [np.zeros((0, encoder.config.embed_dim), np.float16)]
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH_FRAMES):
            frames = np.stack([to_encoder_input(read_crop(path)) for path in paths[start : start + BATCH_FRAMES]])
            parts.append(encoder(torch.from_numpy(frames).to(device)).cpu().numpy().astype(np.float16))
    return VideoFeatures(numbers=np.fromiter(crops, np.int64, len(crops)), features=np.concatenate(parts))


def _write(path: Path, stored: VideoFeatures) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        np.savez(file, numbers=stored.numbers, features=stored.features)
    os.replace(file.name, path)
