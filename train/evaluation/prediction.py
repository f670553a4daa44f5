"""A head over whole videos: segments of features in, outputs per frame and what validators compare with labels out.

Two validators score the same predictions of overlapping segments: `official` merges them and counts each labelled frame
once, which is what a served video gets; `paper` takes full windows only, drops tails and counts overlapped frames
twice, as the paper's authors do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.train.evaluation.scores import OFFICIAL, PAPER, Arrays, Scores, score
from affserve.train.features.gaps import HOLD
from affserve.train.features.videos import LabelledVideo
from affserve.train.labels import task_by_key
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead
from affserve.train.processing.processor import processed
from affserve.train.processing.record import Processing
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES, Outputs, OverlapMerger, segments


@dataclass(frozen=True, kw_only=True)
class Segmenting:
    """How a video is cut for a head to answer, and where it computes."""

    window: int = WINDOW_FRAMES  # frames of a segment
    stride: int = STRIDE_FRAMES  # frames between the starts of two segments
    gaps: str = HOLD  # what stands where a frame has no crop: a policy of features.gaps
    batch: int = 32  # segments that go through the head at once
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a model said about the validation set, by validator: arrays by task of (N, K), (N, columns), (N,), (N,)."""

    arrays: Mapping[str, tuple[Arrays, ...]]  # predicted, truth, valid, whose frame

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """The challenge's numbers, by validator."""
        return {validator: score(*four) for validator, four in self.arrays.items()}


def judge(
    videos: Sequence[LabelledVideo],
    predicted: Sequence[list[Outputs]],
    segmenting: Segmenting,
    keys: Sequence[str],
    processing: Processing = MappingProxyType({}),
) -> Validation:
    """Lay what a head said of some videos, segment by segment, beside their labels, as each validator does.

    processing: what is made of the answers: of a whole video's, or of a window's where windows are what is scored.
    """
    labels = {key: task_by_key(key).names for key in keys}
    arrays: dict[str, tuple[Arrays, ...]] = {}
    for name, protocol in {OFFICIAL: _merged, PAPER: _full_windows}.items():
        pieces = [
            (processed(outputs, processing, labels), video, span)
            for video, one in zip(videos, predicted, strict=True)
            for outputs, span in protocol(video, one, segmenting)
        ]
        if pieces:
            arrays[name] = _join(pieces, keys)
    return Validation(arrays=arrays)


def _merged(video: LabelledVideo, predicted: list[Outputs], segmenting: Segmenting) -> Iterator[tuple[Outputs, slice]]:
    """Merge the predictions of overlapping segments, as a client does."""
    if predicted:
        yield merge_segments(predicted, video.frames, segmenting), slice(0, video.frames)


def _full_windows(
    video: LabelledVideo, predicted: list[Outputs], segmenting: Segmenting
) -> Iterator[tuple[Outputs, slice]]:
    """Leave full windows as they are, overlaps and all."""
    for outputs, span in zip(predicted, segments(video.frames, segmenting.window, segmenting.stride), strict=True):
        if span.stop - span.start == segmenting.window:
            yield outputs, span


def _join(pieces: Sequence[tuple[Outputs, LabelledVideo, slice]], keys: Sequence[str]) -> tuple[Arrays, ...]:
    people = {person: k for k, person in enumerate(sorted({video.person for _, video, _ in pieces}))}
    whose = np.concatenate([np.full(span.stop - span.start, people[video.person]) for _, video, span in pieces])
    return (
        {key: np.concatenate([outputs[key] for outputs, _, _ in pieces]) for key in keys},
        {key: np.concatenate([video.truth[key][span] for _, video, span in pieces]) for key in keys},
        {key: np.concatenate([video.valid[key][span] for _, video, span in pieces]) for key in keys},
        dict.fromkeys(keys, whose),
    )


def predict_segments(
    model: TemporalHead | HeadEnsemble, features: NDArray[np.float32], segmenting: Segmenting
) -> list[Outputs]:
    """Predict each segment of a video, (N, D) -> (T, K) by task; full ones in batches, the others on their own.

    A head that streams goes over the whole video once, and its segments are parts of that.
    """
    model.eval()
    spans = segments(len(features), segmenting.window, segmenting.stride)
    if model.config.streams and spans:
        whole = predict_stream(model, features, segmenting)
        return [{key: values[span] for key, values in whole.items()} for span in spans]

    def predict(stack: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            return _arrays(model.answers(torch.from_numpy(stack).to(segmenting.device)))

    full = [span for span in spans if span.stop - span.start == segmenting.window]
    predicted: list[Outputs] = []
    for first in range(0, len(full), segmenting.batch):
        stacked = predict(np.stack([features[span] for span in full[first : first + segmenting.batch]]))
        rows = len(next(iter(stacked.values())))
        predicted += [{key: values[row] for key, values in stacked.items()} for row in range(rows)]
    for span in spans[len(full) :]:
        predicted.append({key: values[0] for key, values in predict(features[span][None]).items()})
    return predicted


def predict_stream(
    model: TemporalHead | HeadEnsemble, features: NDArray[np.float32], segmenting: Segmenting
) -> Outputs:
    """Predict every frame of a video by a head that streams, (N, D) -> (N, K) by task: each goes through it once."""
    late = model.config.lookahead_frames
    held = np.concatenate([features, np.repeat(features[-1:], late, axis=0)])  # (N + L, D)
    state = tuple(part.to(segmenting.device) for part in model.initial_state())
    parts: list[Outputs] = []
    with torch.inference_mode():
        for first in range(0, len(held), segmenting.window):
            some = torch.from_numpy(held[None, first : first + segmenting.window]).to(segmenting.device)
            answers, state = model.stream(some, state)
            parts.append(_arrays(answers))
    return {key: np.concatenate([part[key][0] for part in parts])[late:] for key in model.config.tasks}


def _arrays(outputs: dict[str, torch.Tensor]) -> Outputs:
    return {key: values.float().cpu().numpy() for key, values in outputs.items()}


def merge_segments(predicted: Sequence[Outputs], frames: int, segmenting: Segmenting) -> Outputs:
    """Merge the predictions of a video's segments, in order, to one of every frame, (frames, K) by task."""
    left = iter(predicted)
    # The merger cuts the very segments that were predicted; it needs their lengths, not their features.
    merger = OverlapMerger(lambda _: next(left), segmenting.window, segmenting.stride)
    parts = [*merger.push(np.empty((frames, 0), np.float32)), *merger.finish()]
    return {key: np.concatenate([part[key] for part in parts]) for key in predicted[0]}


def predict_video(model: TemporalHead | HeadEnsemble, features: NDArray[np.float32], segmenting: Segmenting) -> Outputs:
    """Predict every frame of a video, (N, D) -> (N, K) by task, as it is served: overlapping segments, merged."""
    return merge_segments(predict_segments(model, features, segmenting), len(features), segmenting)
