"""A head over whole videos: segments of features in, outputs per frame and what validators compare with labels out.

Two validators score the same predictions of overlapping segments: `official` merges them and counts each labelled frame
once, which is what a served video gets; `paper` takes full windows only, drops tails and counts overlapped frames
twice, as the paper's authors do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.train.evaluation.scores import OFFICIAL, PAPER, Scores, score
from affserve.train.features.videos import LabelledVideo
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead
from affserve.train.trainer.ranks import Ranks
from affserve.train.windows import Outputs, OverlapMerger, segments

if TYPE_CHECKING:
    from affserve.train.stages.fit import FitConfig


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a model said about the validation set, by validator: arrays by task of (N, K), (N, columns) and (N,)."""

    scores: Mapping[str, Scores]
    predicted: Mapping[str, Mapping[str, NDArray[Any]]]
    truth: Mapping[str, Mapping[str, NDArray[Any]]]
    valid: Mapping[str, Mapping[str, NDArray[np.bool_]]]

    def of(self, validator: str) -> list[Mapping[str, NDArray[Any]]]:
        """Return the arrays of one validator: predicted, truth, valid."""
        return [one[validator] for one in (self.predicted, self.truth, self.valid)]


Arrays = dict[str, NDArray[Any]]


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
