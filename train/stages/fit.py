"""Stage 2: train a temporal head over windows of features.

In come the features of every frame and labelled videos cut into windows, out goes a head checkpoint, of the epoch that
does best on videos never trained on, judged by the validator that was chosen (`evaluation.prediction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.utils.data import Dataset  # noqa: TID253 - this file is about it

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.errors import DataError
from affserve.train.evaluation.prediction import validate_videos
from affserve.train.evaluation.scores import OFFICIAL, PAPER, Scores
from affserve.train.features.gaps import HOLD, check_policy
from affserve.train.features.videos import LabelledVideo, load_videos
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL, task_by_key
from affserve.train.models.checkpoint import save_head
from affserve.train.models.temporal_head import TemporalHead, TemporalHeadConfig
from affserve.train.provenance import Provenance
from affserve.train.trainer.gradient import Batch
from affserve.train.trainer.log import Log
from affserve.train.trainer.loop import run_training, shuffled
from affserve.train.trainer.losses import loss_weights
from affserve.train.trainer.ranks import Ranks
from affserve.train.trainer.run_folder import Fresh
from affserve.train.trainer.stage import Stage, TrainingConfig
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES

if TYPE_CHECKING:
    from affserve.train.evaluation.prediction import Arrays


PAPER_EPOCHS = {VALENCE_AROUSAL.key: 40, EXPRESSION.key: 10, ACTION_UNITS.key: 30}
MULTI_TASK_EPOCHS = 40


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainingConfig):
    """Stage 2; the defaults are the paper's."""

    head: TemporalHeadConfig = field(default_factory=TemporalHeadConfig)
    epochs: int | None = None  # passes over the windows; None: VA 40, EXPR 10, AU 30, several tasks 40
    batch: int = 32  # windows of an optimiser step
    lr: float = 3e-5  # peak learning rate of AdamW
    weight_decay: float = 1e-5  # of AdamW
    amp: str = "none"  # autocast: none, bf16, fp16, or auto, by the device
    window: int = WINDOW_FRAMES  # frames
    stride: int = STRIDE_FRAMES  # frames between training windows
    full_only: bool = False  # train on full windows only, as the paper; otherwise tails and short videos are padded
    gaps: str = HOLD  # what stands where a frame has no crop: a policy of train.gaps
    validator: str = OFFICIAL  # whose scores choose the best epoch: official or paper

    def __post_init__(self) -> None:
        super().__post_init__()
        check_policy(self.gaps)
        if not 1 <= self.stride <= self.window <= WINDOW_FRAMES:
            raise ValueError(
                f"window is {self.window}, stride {self.stride}; expected 1 <= stride <= window <= {WINDOW_FRAMES}"
            )
        if self.validator not in (OFFICIAL, PAPER):
            raise ValueError(f"validator is {self.validator!r}; expected {OFFICIAL} or {PAPER}")
        if self.balance.sampling != "uniform":
            raise ValueError(f"sampling is {self.balance.sampling}; windows hold many expressions: expected uniform")

    @property
    def passes(self) -> int:
        """Epochs to train."""
        if self.epochs is not None:
            return self.epochs
        return PAPER_EPOCHS[self.head.tasks[0]] if len(self.head.tasks) == 1 else MULTI_TASK_EPOCHS

    @property
    def served_stride(self) -> int:
        """Frames between the segments of inference."""
        return min(STRIDE_FRAMES, self.window)


def fit(
    corpus: Corpus, features: Path, config: FitConfig, target: Path, log: Log = print, *, fresh: Fresh = False
) -> Scores:
    """Train a head, write the best epoch's checkpoint to `target` and return its scores on the validation videos.

    features: the folder that extract_features returned; its name is the encoder's fingerprint. Run again after it was
    stopped or killed, it goes on; its state, log and last checkpoint are in `<target>.run/` (trainer.run_folder).
    CheckpointError when another training is there.
    """
    description = {
        "stage": "head",
        "config": config.description(),
        "corpus": corpus.fingerprint(),
        "features": features.name,
    }
    return run_training(target, config, description, partial(_stage, corpus, features, config), log, fresh)


def _stage(corpus: Corpus, features: Path, config: FitConfig, ranks: Ranks, device: str) -> Stage:
    tasks = [task_by_key(key) for key in config.head.tasks]
    load = partial(load_videos, corpus, features, tasks, gaps=config.gaps)
    training, held_out = load(TRAIN, hold_out=config.hold_out), load(VALIDATION)
    windows = WindowDataset(training, config.window, config.stride, full_only=config.full_only)
    if not len(windows):
        raise DataError(f"no training video has {config.window} frames, which full windows need; allow shorter ones")
    model = TemporalHead(config.head)

    def save(path: Path, scores: Scores) -> str:
        return save_head(path, model, _provenance(corpus, features, config, scores, len(windows)))

    return Stage(
        name="head",
        model=model,
        dataset=windows,
        order=lambda epoch: shuffled(config.seed, epoch, len(windows)),
        samples=len(windows),
        frames_per_sample=config.window,
        forward=partial(window_outputs, device=device),
        validate=partial(validate_videos, model, held_out, config, device),
        save=save,
        # The paper warms up over the first epoch.
        warmup_steps=-(-len(windows) // config.batch),
        weights=loss_weights(config.balance, *_all_labels(training, config.head.tasks), device),
        validator=config.validator,
    )


def window_outputs(model: nn.Module, batch: Batch, device: str) -> dict[str, Tensor]:
    """Return the raw outputs (B, T, K) by task of a batch of windows; B may be 0."""
    present = batch["present"]
    mask = None if bool(present.all()) else present.to(device, non_blocking=True)
    outputs: dict[str, Tensor] = model(batch["features"].to(device, non_blocking=True), mask)
    return outputs


def _all_labels(videos: Sequence[LabelledVideo], keys: Sequence[str]) -> tuple[Arrays, Arrays]:
    return (
        {key: np.concatenate([video.truth[key] for video in videos]) for key in keys},
        {key: np.concatenate([video.valid[key] for video in videos]) for key in keys},
    )


def _provenance(corpus: Corpus, features: Path, config: FitConfig, scores: Scores, windows: int) -> Provenance:
    return Provenance(
        trained_on=corpus.name,
        data={"fingerprint": corpus.fingerprint(), "windows": windows},
        metrics=scores.summary(),
        training={**asdict(config), "epochs": config.passes},
        encoder=features.name,
        window_frames=config.window,
        stride_frames=config.served_stride,
    )


class WindowDataset(Dataset[dict[str, Any]]):
    """Windows of at most T frames over videos, padded to T; `present` tells padding from frames.

    full_only: the paper's protocol, full windows only: tails are dropped and shorter videos give none. Otherwise
    every frame is in a window.
    """

    def __init__(self, videos: Sequence[LabelledVideo], window: int, stride: int, *, full_only: bool = False) -> None:
        self.videos = videos
        self.window = window
        # The last window starts where it still holds something no earlier window does, or where it is still full.
        beyond = 1 - window if full_only else stride - window
        self.starts = [
            (index, start)
            for index, video in enumerate(videos)
            for start in range(0, max(0 if full_only else min(1, video.frames), video.frames + beyond), stride)
        ]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, start = self.starts[item]
        video = self.videos[index]
        span = slice(start, min(start + self.window, video.frames))
        return {
            "features": self._padded(video.features(span)),
            "present": np.arange(self.window) < span.stop - span.start,
            "truth": {key: self._padded(values[span]) for key, values in video.truth.items()},
            "valid": {key: self._padded(values[span]) for key, values in video.valid.items()},
        }

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        padded = np.zeros((self.window, *values.shape[1:]), values.dtype)
        padded[: len(values)] = values
        return padded
