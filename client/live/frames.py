"""The newest frames of a running source: what cannot be analysed in time is thinned out evenly and counted.

A thread decodes and puts; whoever analyses takes what there is, but no more than it can do in time: then the frames are
spread evenly over the time since the last ones were taken, with the newest among them, and the rest is dropped. So
nothing queues up, and a slow machine sees fewer frames, not older ones. What is counted meanwhile (frames, breaks, the
delay from frame to answer) takes bounded memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BATCH_FRAMES = 10  # at most, however fast the machine is
RECENT_BATCHES = 15  # by which the speed of machine and server is judged
WAITING_FRAMES = 2 * BATCH_FRAMES  # a bound on memory: 120 MB of 1080p
JOIN_S = 1.0  # how long a stopped source may take to notice; a read from a silent network ends with its own timeout


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveFrame:
    """A frame that has just arrived.

    index: number of the frame, ascending; a lost connection leaves a gap of about the frames that were missed.
    timestamp_s: seconds since the source's first frame, ascending. arrived_s: time.monotonic() when it was there to be
    analysed; of a file in real time, when it was due. rgb: returns the image (H, W, 3) uint8, upright: what is dropped
    need not be converted.
    """

    index: int
    timestamp_s: float
    arrived_s: float
    rgb: Callable[[], NDArray[np.uint8]]


class LiveSource(Protocol):
    """Something that yields frames as they happen."""

    name: str
    fps: float  # frames per second, as announced

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterable[LiveFrame]:
        """Yield frames until the source ends, breaks off with a VideoError, or `stop` is set."""
        ...


class NewestFrames(AbstractContextManager["NewestFrames"]):
    """Reads a source in a thread of its own for as long as the context lasts."""

    def __init__(self, source: LiveSource, counters: LiveCounters) -> None:
        self._source = source
        self._counters = counters
        self._waiting: list[LiveFrame] = []
        self._last_taken_s = 0.0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        # A daemon, because a read from the network cannot be interrupted.
        self._thread = threading.Thread(target=self._read, name="affserve-live", daemon=True)

    def __enter__(self) -> NewestFrames:
        """Start reading."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(JOIN_S)

    def take(self, most: int, timeout_s: float) -> list[LiveFrame] | None:
        """Return at most `most` frames, none when the time is up, or None when the source has ended.

        Whatever broke the source off is raised once its last frames have been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, timeout_s)
            frames, self._waiting = self._waiting, []
        if frames:
            kept = evenly([frame.arrived_s for frame in frames], self._last_taken_s, most)
            self._counters.thinned += len(frames) - len(kept)
            self._last_taken_s = frames[-1].arrived_s
            return [frames[k] for k in kept]
        if not self._ended:
            return []
        if self._error is not None:
            raise self._error
        return None

    def _read(self) -> None:
        try:
            for frame in self._source.frames(self._stop, self._counters):
                self._put(frame)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 raised again in the thread that takes the frames
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _put(self, frame: LiveFrame) -> None:
        with self._changed:
            self._counters.decoded += 1
            self._waiting.append(frame)
            if len(self._waiting) > WAITING_FRAMES:
                self._counters.overflown += len(self._waiting) - len(self._waiting[::-2])
                self._waiting = self._waiting[::-2][::-1]
            self._changed.notify()


def evenly(arrived_s: list[float], before_s: float, most: int) -> list[int]:
    """Choose at most `most` frames, evenly spread over the time since `before_s`, the newest always; all if they fit.

    arrived_s: ascending times. Returns positions, ascending.
    """
    if len(arrived_s) <= most:
        return list(range(len(arrived_s)))
    # The first frames of a source have no time before them.
    start_s = max(before_s, 2 * arrived_s[0] - arrived_s[1])
    wanted_s = start_s + (arrived_s[-1] - start_s) * np.arange(1, most + 1) / most
    wanted_s[-1] = arrived_s[-1]
    positions = np.searchsorted(arrived_s, wanted_s, side="right") - 1
    return sorted({int(k) for k in positions if k >= 0})


class Pace:
    """How many frames to take at once, so that those after the first take no longer than `limit_s`.

    What a batch takes however small it is, such as the way to a distant server, is no reason to drop frames: it is the
    same for more of them.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen: deque[tuple[int, float]] = deque(maxlen=RECENT_BATCHES)  # frames and seconds

    @property
    def most(self) -> int:
        """How many: at least two, or it would never show what a second one costs."""
        if not self._seen:
            return BATCH_FRAMES
        frames, seconds = np.array(self._seen).T
        more = np.subtract.outer(frames, frames)
        slopes_s = np.subtract.outer(seconds, seconds)[more > 0] / more[more > 0]
        # Medians: a single delay, of the machine or the network, says nothing about the next batch.
        another_s = np.median(seconds / frames)
        if len(slopes_s):
            another_s = min(another_s, np.median(slopes_s))
        return int(np.clip(self._limit_s / max(another_s, SHORTEST_DELAY_S), 2, BATCH_FRAMES))

    def saw(self, frames: int, seconds: float) -> None:
        """Learn from a batch of frames and the time it took."""
        self._seen.append((frames, seconds))


def now_s() -> float:
    """Return the clock of `LiveFrame.arrived_s`."""
    return time.monotonic()


SHORTEST_DELAY_S = 1e-4
DELAY_STEP = 1.02  # one bin of the histogram to the next: percentiles are right to 1 %
DELAY_BINS = 900  # up to 5,500 s
RECENT_FRAMES = 300  # ten seconds: what a person wants to see of the delay


class Delays:
    """Delays of any number of frames in a histogram, and those of the last frames one by one."""

    def __init__(self) -> None:
        self._counts = np.zeros(DELAY_BINS, dtype=np.int64)
        self._recent: deque[float] = deque(maxlen=RECENT_FRAMES)
        self.largest_s = 0.0

    def __len__(self) -> int:
        return int(self._counts.sum())

    def add(self, delay_s: NDArray[np.float64]) -> None:
        """Count the delays (n,) of n frames, in seconds."""
        scaled = np.log(np.maximum(delay_s, SHORTEST_DELAY_S) / SHORTEST_DELAY_S) / np.log(DELAY_STEP)
        np.add.at(self._counts, np.minimum(scaled.astype(np.int64), DELAY_BINS - 1), 1)
        self._recent.extend(delay_s.tolist())
        self.largest_s = max(self.largest_s, float(delay_s.max(initial=0.0)))

    def percentile_s(self, percent: float) -> float:
        """Return a percentile over all frames, within 1 %; NaN before the first."""
        total = len(self)
        if not total:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self._counts), percent / 100 * total))
        return float(min(SHORTEST_DELAY_S * DELAY_STEP ** (place + 0.5), self.largest_s))

    def recent_percentile_s(self, percent: float) -> float:
        """Return a percentile over the last frames; NaN before the first."""
        return float(np.percentile(list(self._recent), percent)) if self._recent else float("nan")


@dataclass(kw_only=True)
class LiveCounters:
    """Each field is written by one thread only: the first five by the one that decodes, the others by the analysis."""

    decoded: int = 0  # frames
    overflown: int = 0  # frames dropped because nobody has taken any for a while
    reconnects: int = 0
    slipped_s: float = 0.0  # seconds by which a file fell behind its own timestamps because decoding was too slow
    trouble: str = ""  # what is wrong with the source just now, "" when it runs
    analysed: int = 0  # frames that were answered
    thinned: int = 0  # frames dropped because there were more than can be done in time
    lost: int = 0  # frames dropped because the server did not answer
    delays: Delays = field(default_factory=Delays)

    @property
    def dropped(self) -> int:
        """Frames that were decoded and will never be answered."""
        return self.overflown + self.thinned + self.lost
