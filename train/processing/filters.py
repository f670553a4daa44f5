"""Filters over time: of whole series (N, K), and of series that arrive a block at a time, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float32]


def chosen(probabilities: Series, biases: NDArray[np.float64]) -> Series:
    """Return 1 for the class of which log(p) + bias is largest and 0 for the others, (N, K); NaN where p is NaN."""
    with np.errstate(divide="ignore"):
        weighed = np.log(probabilities.astype(np.float64)) + biases
    one: Series = np.eye(len(biases), dtype=np.float32)[np.where(np.isnan(weighed), -np.inf, weighed).argmax(axis=1)]
    one[np.isnan(weighed).any(axis=1)] = np.nan
    return one


def most_frequent(one_hot: Series, before: int, after: int) -> Series:
    """Return the most frequent class of each frame and its neighbours, (N, K) of 0 and 1; a tie keeps the frame's own.

    before, after: frames of the window on each side; at the ends it is shorter.
    """
    counts = np.cumsum(np.pad(np.nan_to_num(one_hot), ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    middle = np.arange(len(one_hot))
    first, end = np.maximum(middle - before, 0), np.minimum(middle + after + 1, len(one_hot))
    votes = counts[end] - counts[first] + 0.5 * np.nan_to_num(one_hot)
    winners: Series = np.eye(one_hot.shape[1], dtype=np.float32)[votes.argmax(axis=1)]
    winners[np.isnan(one_hot).any(axis=1)] = np.nan
    return winners


def median(values: Series, before: int, after: int) -> Series:
    """Return the median of each frame and its neighbours, column by column; see most_frequent."""
    if not len(values):
        return values
    padded = np.pad(values, ((before, after), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1, axis=0)
    with np.errstate(all="ignore"):
        return np.asarray(np.nanmedian(windows, axis=-1), dtype=np.float32)


def without_short(active: Series, shortest: NDArray[np.int64]) -> Series:
    """Return 0 and 1 (N, K) without the runs of 1 that have fewer frames than `shortest` (K,)."""
    kept = active.copy()
    for k, frames in enumerate(shortest.tolist()):
        marks = np.diff(active[:, k] > 0.5, prepend=False, append=False).nonzero()[0]
        for start, end in marks.reshape(-1, 2).tolist():
            if end - start < frames:
                kept[start:end, k] = 0
    return kept


class Stage(Protocol):
    """One filter of one series."""

    def push(self, values: Series) -> Series:
        """Take the next frames (n, K); return those that no later frame can change, (m, K)."""
        ...

    def finish(self) -> Series | None:
        """Return what is left, if anything is ever held back; the stage can then be used for another series."""
        ...


class Window:
    """A filter that looks at a bounded number of frames on each side."""

    def __init__(self, apply: Callable[[Series], Series], before: int, after: int) -> None:
        self._apply, self._before, self._after = apply, before, after
        self._held: Series | None = None
        self._done = 0  # of the held frames; they are there to be looked at

    def push(self, values: Series) -> Series:
        self._held = values if self._held is None else np.concatenate([self._held, values])
        return self._upto(len(self._held) - self._after)

    def finish(self) -> Series | None:
        left = None if self._held is None else self._upto(len(self._held))
        self._held, self._done = None, 0
        return left

    def _upto(self, end: int) -> Series:
        held = np.empty((0, 0), np.float32) if self._held is None else self._held
        if end <= self._done:
            return held[:0]
        final = self._apply(held)[self._done : end]
        first = max(end - self._before, 0)
        self._held, self._done = held[first:], end - first
        return final


class Choose:
    """`chosen`, frame by frame."""

    def __init__(self, biases: NDArray[np.float64]) -> None:
        self._biases = biases

    def push(self, values: Series) -> Series:
        return chosen(values, self._biases)

    def finish(self) -> Series | None:
        return None


class Exponential:
    """The mean of all frames so far, a frame counting `1 - share` of the one after it."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._last: NDArray[np.float64] | None = None

    def push(self, values: Series) -> Series:
        smooth = values.astype(np.float64)
        for k, value in enumerate(smooth):
            if self._last is not None:
                smooth[k] = self._share * value + (1 - self._share) * self._last
            self._last = smooth[k]
        return smooth.astype(np.float32)

    def finish(self) -> Series | None:
        self._last = None
        return None


class Hysteresis:
    """1 from where a value reaches `on` (K,) to where it falls below `off` (K,), else 0."""

    def __init__(self, on: NDArray[np.float64], off: NDArray[np.float64]) -> None:
        self._on, self._off = on, off
        self._last: NDArray[Any] = np.zeros((1, len(on)), np.float32)

    def push(self, values: Series) -> Series:
        says = np.where(values >= self._on, 1.0, np.where(values < self._off, 0.0, np.nan)).astype(np.float32)
        held = np.concatenate([self._last, says])
        # Where a value says nothing, the last one that did holds.
        latest = np.maximum.accumulate(np.where(np.isnan(held), 0, np.arange(len(held))[:, None]), axis=0)
        active: Series = np.take_along_axis(held, latest, axis=0)
        self._last = active[-1:]
        return active[1:]

    def finish(self) -> Series | None:
        self._last = np.zeros_like(self._last)
        return None


class Chain:
    """Stages one after the other."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages

    def push(self, values: Series) -> Series:
        for stage in self._stages:
            values = stage.push(values)
        return values

    def finish(self) -> Series | None:
        left: Series | None = None
        for stage in self._stages:
            passed = None if left is None else stage.push(left)
            parts = [part for part in (passed, stage.finish()) if part is not None]
            left = np.concatenate(parts) if parts else None
        return left
