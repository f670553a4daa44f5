"""The face crops that an export calibrates and judges on: from a corpus, or drawn for who has none at hand.

Calibration shows people of the training set, many of them; parity shows other people, a few, frame after frame as a
video shows them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, open_corpus
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import DataError
from affserve.train.labels import TASKS


@dataclass(frozen=True, kw_only=True)
class Material:
    """Real inputs; the two sets should show different people."""

    calibration: NDArray[np.uint8]  # (N, 224, 224, 3) face crops, for INT8 only; never judged on
    parity: NDArray[np.uint8]  # (M, 224, 224, 3) consecutive face crops, judged on


PARITY_FRAMES = 64
CALIBRATION_FRAMES = 128
CALIBRATION_VIDEOS = 32
GENERATED_VIDEOS = 8  # half of them for calibration


def corpus_material(root: Path, parity_frames: int, calibration_frames: int) -> Material:
    """Take crops of a corpus; DataError when it has none."""
    corpus = open_corpus(root)
    return Material(
        calibration=calibration_crops(corpus, calibration_frames), parity=sample_frames(corpus, parity_frames)
    )


def parity_only(frames: NDArray[np.uint8]) -> Material:
    """Take crops (N, 224, 224, 3) for parity alone: all that FP32 and FP16 need."""
    return Material(calibration=frames[:0], parity=frames)


def generated_material(parity_frames: int, calibration_frames: int) -> Material:
    """Draw crops of generated faces."""
    from affserve.train.synthetic.corpus import write_corpus
    from affserve.train.synthetic.plan import SyntheticConfig

    # A gap or a late start takes up to half of a short video.
    longest = max(parity_frames, calibration_frames)
    frames = max(60, 2 * -(-longest // (GENERATED_VIDEOS // 2)))
    config = SyntheticConfig(
        videos=GENERATED_VIDEOS, validation_share=0.5, frames_min=frames, frames_max=frames, whole_frame_videos=0
    )
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "corpus", config, workers=1)
        return corpus_material(Path(folder) / "corpus", parity_frames, calibration_frames)


def calibration_crops(corpus: Corpus, count: int) -> NDArray[np.uint8]:
    """Return up to (count, 224, 224, 3) crops of training videos, the same share of each, spread over its length."""
    videos = corpus.part_videos(list(TASKS.values()), TRAIN)[:CALIBRATION_VIDEOS]
    share = -(-count // max(1, len(videos)))
    paths = [path for video in videos for path in _spread(list(corpus.crops(video).values()), share)]
    if not paths:
        raise DataError(f"{corpus.root} has no crops of its {TRAIN}; expected some to calibrate INT8 on")
    return np.stack([to_encoder_input(read_crop(path)) for path in _spread(paths, count)])


def _spread(paths: list[Path], count: int) -> list[Path]:
    """Return `count` of the paths at even distances, or all where there are fewer."""
    if len(paths) <= count:
        return paths
    return [paths[k * len(paths) // count] for k in range(count)]


PARITY_VIDEOS = 4  # people whose crops are compared


def sample_frames(corpus: Corpus, count: int) -> NDArray[np.uint8]:
    """Return (count, 224, 224, 3) crops of validation videos, consecutive ones from a few people."""
    videos = corpus.part_videos(list(TASKS.values()), VALIDATION)
    share = -(-count // min(len(videos), PARITY_VIDEOS))
    paths = [path for video in videos[:PARITY_VIDEOS] for path in list(corpus.crops(video).values())[:share]]
    return np.stack([to_encoder_input(read_crop(path)) for path in paths[:count]])
