"""Stage 2: train a temporal head over windows of features.

In come the features of every frame, out goes a head checkpoint, of the epoch that does best on videos never trained on.
Two validators score each epoch on the same predictions of overlapping segments: `official` merges them and counts each
labelled frame once, which is what a served video gets; `paper` takes full windows only, drops tails and counts
overlapped frames twice, as the paper's authors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253

from affserve.train.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.balance import loss_weights
from affserve.train.checkpoint import Provenance, save_head
from affserve.train.distributed import Ranks
from affserve.train.errors import DataError
from affserve.train.evaluation import OFFICIAL, PAPER, Scores, score
from affserve.train.gaps import HOLD, check_policy
from affserve.train.gradients import Batch
from affserve.train.head_ensemble import HeadEnsemble
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL, task_by_key
from affserve.train.loop import run_training, shuffled
from affserve.train.stage import Stage, TrainingConfig, Validation
from affserve.train.temporal_head import TemporalHead, TemporalHeadConfig
from affserve.train.training_log import Log
from affserve.train.training_state import Fresh
from affserve.train.window_dataset import LabelledVideo, WindowDataset, load_videos
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES, Outputs, OverlapMerger, segments

PAPER_EPOCHS = {VALENCE_AROUSAL.key: 40, EXPRESSION.key: 10, ACTION_UNITS.key: 30}
MULTI_TASK_EPOCHS = 40

Arrays = dict[str, NDArray[Any]]


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
    stopped or killed, it goes on; its state, log and last checkpoint are in `<target>.run/` (train.training_state).
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


def validate_videos(
    model: TemporalHead | HeadEnsemble,
    videos: Sequence[LabelledVideo],
    config: FitConfig,
    device: str,
    ranks: Ranks,
    now_and_then: Callable[[], None] = lambda: None,
) -> Validation:
    """Score a head on whole videos with both validators; each rank predicts some of the videos."""
    mine: dict[int, list[Outputs]] = {}
    for index in range(ranks.rank, len(videos), ranks.world):
        now_and_then()
        mine[index] = predict_segments(model, videos[index].features(), config, device)
    by_video = {index: one for part in ranks.gather_objects(mine) for index, one in part.items()}
    protocols: dict[str, Callable[[LabelledVideo, list[Outputs]], Iterator[tuple[Outputs, slice]]]] = {
        OFFICIAL: partial(_merged, config=config),
        PAPER: partial(_full_windows, config=config),
    }
    scores: dict[str, Scores] = {}
    joined: dict[str, tuple[Arrays, Arrays, Arrays]] = {}
    for name, protocol in protocols.items():
        pieces = [
            (outputs, video, span)
            for index, video in enumerate(videos)
            for outputs, span in protocol(video, by_video[index])
        ]
        if pieces:
            joined[name] = _join(pieces, config.head.tasks)
            scores[name] = score(*joined[name])
    predicted, truth, valid = ({name: three[k] for name, three in joined.items()} for k in range(3))
    return Validation(scores=scores, predicted=predicted, truth=truth, valid=valid)


def _merged(video: LabelledVideo, predicted: list[Outputs], *, config: FitConfig) -> Iterator[tuple[Outputs, slice]]:
    """Merge the predictions of overlapping segments, as a client does."""
    if predicted:
        yield merge_segments(predicted, video.frames, config), slice(0, video.frames)


def _full_windows(
    video: LabelledVideo, predicted: list[Outputs], *, config: FitConfig
) -> Iterator[tuple[Outputs, slice]]:
    """Leave full windows as they are, overlaps and all."""
    for outputs, span in zip(predicted, segments(video.frames, config.window, config.served_stride), strict=True):
        if span.stop - span.start == config.window:
            yield outputs, span


def _join(pieces: Sequence[tuple[Outputs, LabelledVideo, slice]], keys: Sequence[str]) -> tuple[Arrays, Arrays, Arrays]:
    return (
        {key: np.concatenate([outputs[key] for outputs, _, _ in pieces]) for key in keys},
        {key: np.concatenate([video.truth[key][span] for _, video, span in pieces]) for key in keys},
        {key: np.concatenate([video.valid[key][span] for _, video, span in pieces]) for key in keys},
    )


def predict_segments(
    model: TemporalHead | HeadEnsemble, features: NDArray[np.float32], config: FitConfig, device: str
) -> list[Outputs]:
    """Predict each segment of a video, (N, D) -> (T, K) by task; full ones in batches, the others on their own."""
    model.eval()

    def predict(stack: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            outputs = model.answers(torch.from_numpy(stack).to(device))
        return {key: values.float().cpu().numpy() for key, values in outputs.items()}

    spans = segments(len(features), config.window, config.served_stride)
    full = [span for span in spans if span.stop - span.start == config.window]
    predicted: list[Outputs] = []
    for first in range(0, len(full), config.batch):
        stacked = predict(np.stack([features[span] for span in full[first : first + config.batch]]))
        rows = len(next(iter(stacked.values())))
        predicted += [{key: values[row] for key, values in stacked.items()} for row in range(rows)]
    for span in spans[len(full) :]:
        predicted.append({key: values[0] for key, values in predict(features[span][None]).items()})
    return predicted


def merge_segments(predicted: Sequence[Outputs], frames: int, config: FitConfig) -> Outputs:
    """Merge the predictions of a video's segments, in order, to one of every frame, (frames, K) by task."""
    left = iter(predicted)
    # The merger cuts the very segments that were predicted; it needs their lengths, not their features.
    merger = OverlapMerger(lambda _: next(left), config.window, config.served_stride)
    parts = [*merger.push(np.empty((frames, 0), np.float32)), *merger.finish()]
    return {key: np.concatenate([part[key] for part in parts]) for key in predicted[0]}


def predict_video(model: TemporalHead | HeadEnsemble, features: NDArray[np.float32], config: FitConfig) -> Outputs:
    """Predict every frame of a video, (N, D) -> (N, K) by task, as it is served: windows of 300, 200 apart, merged."""
    return merge_segments(predict_segments(model, features, config, config.device), len(features), config)


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
