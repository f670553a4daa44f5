"""When an open loop sends: times that are fixed before the first request and do not wait for any answer.

Latency is counted from these times. A load generator that waits for an answer before it sends the next request skips
the requests that a stalled server would have delayed, and hides the stall.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def poisson(rate_per_s: float, duration_s: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrivals of independent callers, in seconds after the start, increasing, below `duration_s`.

    As many as `rate_per_s * duration_s` says, placed uniformly: a Poisson process of which the count is known, so that
    two runs of a rate offer the same load. Several processes with different seeds add up to one of the summed rate.
    """
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError(f"rate is {rate_per_s} per s for {duration_s} s, expected both above 0")
    count = max(1, round(rate_per_s * duration_s))
    return np.sort(np.random.default_rng(seed).uniform(0, duration_s, count))
