"""Stage 2: train a temporal head over windows of features.

In come the features of every frame and labelled videos cut into windows, out goes a head checkpoint, of the epoch that
does best on videos never trained on, judged by the validator that was chosen (`evaluation.prediction`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.utils.data import Dataset  # noqa: TID253 - this file is about it

from affserve.train.corpus.affwild2 import PHOTOGRAPHS, TRAIN, VALIDATION, Corpus
from affserve.train.corpus.annotations import untaught
from affserve.train.errors import DataError
from affserve.train.evaluation.prediction import Segmenting, Validation, judge, predict_segments
from affserve.train.evaluation.scores import OFFICIAL, PAPER, Scores
from affserve.train.features.gaps import HOLD, check_policy
from affserve.train.features.videos import LabelledVideo, labels_of, load_videos
from affserve.train.labels import task_by_key
from affserve.train.models.checkpoint import save_head
from affserve.train.models.temporal_head import TemporalHead, TemporalHeadConfig
from affserve.train.provenance import Provenance
from affserve.train.trainer.gradient import Batch
from affserve.train.trainer.log import Log
from affserve.train.trainer.loop import run_training
from affserve.train.trainer.losses import drawn_order, loss_weights
from affserve.train.trainer.ranks import Ranks
from affserve.train.trainer.run_folder import Fresh
from affserve.train.trainer.stage import Stage, TrainingConfig
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES, Outputs

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
    gaps: str = HOLD  # what stands where a frame has no crop: a policy of features.gaps
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
        tasks = self.head.tasks
        return task_by_key(tasks[0]).paper_epochs if len(tasks) == 1 else MULTI_TASK_EPOCHS

    @property
    def lead(self) -> int:
        """Frames before a training window that a head that streams is shown, so that no answer lacks its past."""
        reach = self.head.reach_frames
        return min(WINDOW_FRAMES if reach is None else reach, WINDOW_FRAMES) if self.head.streams else 0

    def segmenting(self, device: str) -> Segmenting:
        """Return how the head answers whole videos."""
        stride = min(STRIDE_FRAMES, self.window)
        return Segmenting(window=self.window, stride=stride, gaps=self.gaps, batch=self.batch, device=device)


def fit(
    corpus: Corpus, features: Path, config: FitConfig, target: Path, log: Log = print, *, fresh: Fresh = False
) -> Scores:
    """Train a head, write the best epoch's checkpoint to `target` and return its scores on the validation videos.

    features: the folder of an extraction; its name is the encoder's fingerprint. Run again after it was
    stopped or killed, it goes on; its state, log and last checkpoint are in `<target>.run/` (trainer.run_folder).
    CheckpointError when another training is there.
    """
    if corpus.kind == PHOTOGRAPHS and (config.head.use_tcn or config.head.use_encoder or config.head.recurrent):
        raise DataError(
            f"{corpus.root} holds photographs, which do not follow one another: a head over time needs recordings; one "
            "that sees a frame at a time does not: train head --no-tcn --no-attention"
        )
    fingerprint = corpus.fingerprint()
    description = {"stage": "head", "config": config.description(), "corpus": fingerprint, "features": features.name}
    prepare = partial(_Windows, corpus, features, config, fingerprint)
    return run_training(target, config, description, prepare, log, fresh)


class _Windows(Stage):
    """Windows over whole videos, shuffled."""

    name = "head"

    def __init__(
        self, corpus: Corpus, features: Path, config: FitConfig, fingerprint: str, ranks: Ranks, device: str
    ) -> None:
        """fingerprint: of the corpus."""
        load = partial(load_videos, corpus, features, [task_by_key(key) for key in config.head.tasks], gaps=config.gaps)
        videos, self.held_out = load(TRAIN, hold_out=config.hold_out), load(VALIDATION)
        self.dataset = windows = WindowDataset(
            videos,
            config.window,
            config.stride,
            full_only=config.full_only,
            lead=config.lead,
            tail=config.head.lookahead_frames,
        )
        self.samples = len(windows)
        if not self.samples:
            raise DataError(
                f"no training video has {config.window} frames, which full windows need; allow shorter ones"
            )
        self.drawn = np.array([corpus.weights.get(videos[index].name, 1.0) for index, _ in windows.starts])
        self.model: TemporalHead = TemporalHead(config.head)
        self.config, self.device, self.seed, self.validator = config, device, config.seed, config.validator
        self.segmenting = config.segmenting(device)
        self.frames_per_sample = config.window
        self.warmup_steps = -(-self.samples // config.batch)  # as the paper, over the first epoch
        labels = labels_of(videos, config.head.tasks)
        self.weights = loss_weights(config.balance, *labels, device)
        self.provenance = Provenance(
            trained_on=corpus.name,
            data={"fingerprint": fingerprint, "images": corpus.images, "windows": self.samples, **untaught(*labels)},
            training={**asdict(config), "epochs": config.passes},
            encoder=features.name,
            window_frames=config.window,
            stride_frames=self.segmenting.stride,
        )

    def order(self, epoch: int) -> NDArray[np.int64]:
        return drawn_order(np.random.default_rng([self.seed, epoch]), self.drawn)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return window_outputs(model, batch, self.device)

    def validate(self, ranks: Ranks, now_and_then: Callable[[], None]) -> Validation:
        mine: list[list[Outputs]] = []
        for video in self.held_out[ranks.rank :: ranks.world]:
            now_and_then()
            mine.append(predict_segments(self.model, video.features(), self.segmenting))
        predicted: list[list[Outputs]] = [[] for _ in self.held_out]
        for rank, part in enumerate(ranks.gather_objects(mine)):
            predicted[rank :: ranks.world] = part
        return judge(self.held_out, predicted, self.segmenting, self.config.head.tasks)

    def save(self, path: Path, scores: Scores) -> str:
        return save_head(path, self.model, replace(self.provenance, **scores.record()))


def window_outputs(model: nn.Module, batch: Batch, device: str) -> dict[str, Tensor]:
    """Return the raw outputs (B, T, K) by task of a batch of windows; B may be 0."""
    present = batch["present"]
    mask = None if bool(present.all()) else present.to(device, non_blocking=True)
    outputs: dict[str, Tensor] = model(batch["features"].to(device, non_blocking=True), mask)
    return outputs


class WindowDataset(Dataset[dict[str, Any]]):
    """Windows of at most `window` frames over videos, padded to the longest; `present` tells padding from frames.

    full_only: the paper's protocol, full windows only: tails are dropped and shorter videos give none. Otherwise
    every frame is in a window. lead, tail: so many frames before and after a window are there too, where the video has
    them, and teach nothing: what a head that streams looks back at, and what it waits for.
    """

    def __init__(
        self,
        videos: Sequence[LabelledVideo],
        window: int,
        stride: int,
        *,
        full_only: bool = False,
        lead: int = 0,
        tail: int = 0,
    ) -> None:
        self.videos = videos
        self.window, self.lead, self.tail = window, lead, tail
        # The last window starts where it still holds something no earlier window does, or where it is still full.
        beyond = 1 - window if full_only else stride - window
        self.starts = [
            (index, start)
            for index, video in enumerate(videos)
            for start in range(0, max(0 if full_only else min(1, video.frames), video.frames + beyond), stride)
        ]
        shown = (self._shown(*window) for window in self.starts)
        self.longest = max((span.stop - span.start for span in shown), default=0)  # T, frames

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, start = self.starts[item]
        video, shown = self.videos[index], self._shown(index, start)
        frames = np.arange(shown.start, shown.stop)
        taught = (frames >= start) & (frames < start + self.window)  # (T,)
        return {
            "features": self._padded(video.features(shown)),
            "present": np.arange(self.longest) < len(frames),
            "truth": {key: self._padded(values[shown]) for key, values in video.truth.items()},
            "valid": {key: self._padded(values[shown] & taught) for key, values in video.valid.items()},
        }

    def _shown(self, index: int, start: int) -> slice:
        return slice(max(0, start - self.lead), min(start + self.window + self.tail, self.videos[index].frames))

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        padded = np.zeros((self.longest, *values.shape[1:]), values.dtype)
        padded[: len(values)] = values
        return padded
