"""Segments of a video and the merging of what a model says about each of them.

A video of n frames is cut into segments i = 0, 1, ... of at most w frames, s frames apart (paper, section 3.2:
[n/s]+1 segments of w = 300, s = 200). Every frame lies in at least one segment; where segments overlap the predictions
are averaged. `OverlapMerger` does this for frames that arrive one by one, holding at most one window of them, so the
length of a video never shows in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

WINDOW_FRAMES = 300
STRIDE_FRAMES = 200

Outputs = dict[str, NDArray[np.float32]]
PredictWindow = Callable[[NDArray[np.float32]], Outputs]


class FrameAnswers(Protocol):
    """Turns a stream of per-frame features into a stream of per-frame answers, one for each, in order."""

    def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        """Take the next features (N, D); yield the answers (n, K) that are final."""
        ...

    def finish(self) -> Iterator[Outputs]:
        """Yield the answers that are still to come; the object can then be used for another stream."""
        ...


def segments(frames: int, window: int = WINDOW_FRAMES, stride: int = STRIDE_FRAMES) -> list[slice]:
    """Return the frame ranges of a video's segments, in order.

    They start at 0, s, 2s, ... below n: the paper's [n/s]+1, less the empty one when s divides n.
    """
    _check(window, stride)
    return [slice(start, min(start + window, frames)) for start in range(0, frames, stride)]


def _check(window: int, stride: int) -> None:
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}, window is {window}; expected 1 <= stride <= window")


class OverlapMerger:
    """Turns a stream of per-frame features into a stream of merged per-frame predictions.

    predict: called with features (T, D), 1 <= T <= window; returns arrays (T, K) by name.
    """

    def __init__(self, predict: PredictWindow, window: int = WINDOW_FRAMES, stride: int = STRIDE_FRAMES) -> None:
        _check(window, stride)
        self._predict = predict
        self._window = window
        self._stride = stride
        self._features: NDArray[np.float32] | None = None  # (<= window, D), from the current segment's first frame on
        self._sums: Outputs = {}  # of earlier segments, for the first frames of the current one
        self._counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        """Take the next features (N, D); yield predictions (n, K) of the frames that no later segment can change."""
        for start in range(0, len(features), self._window):
            yield from self._push_at_most_a_window(features[start : start + self._window])

    def _push_at_most_a_window(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        held = features if self._features is None else np.concatenate([self._features, features])
        while len(held) >= self._window:
            yield self._close_segment(held[: self._window], final=self._stride)
            held = held[self._stride :]
        self._features = held

    def finish(self) -> Iterator[Outputs]:
        """Yield the predictions of all frames still held; the merger is then empty and can be used again."""
        held = self._features
        while held is not None and len(held):
            yield self._close_segment(held, final=min(self._stride, len(held)))
            held = held[self._stride :]
        self._features, self._sums, self._counts = None, {}, np.zeros(0, dtype=np.int64)

    def _close_segment(self, features: NDArray[np.float32], final: int) -> Outputs:
        predicted = self._predict(features)
        counts = np.ones(len(features), dtype=np.int64)
        counts[: len(self._counts)] += self._counts
        sums = {name: values.astype(np.float32, copy=True) for name, values in predicted.items()}
        for name, carried in self._sums.items():
            sums[name][: len(carried)] += carried
        self._sums = {name: values[final:] for name, values in sums.items()}
        self._counts = counts[final:]
        shared = counts[:final, None].astype(np.float32)
        return {name: values[:final] / shared for name, values in sums.items()}
