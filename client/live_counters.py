"""What is counted while a live source runs: frames, breaks, and the delay from frame to answer, in bounded memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
    server_trouble: str = ""
    delays: Delays = field(default_factory=Delays)

    @property
    def dropped(self) -> int:
        """Frames that were decoded and will never be answered."""
        return self.overflown + self.thinned + self.lost
