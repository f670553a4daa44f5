"""The highest rate at which a service keeps its promise: doubled until it breaks, halved in between, then confirmed.

The search knows nothing of servers: it is given a function that measures one rate and says whether the promise held.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from affserve.train.errors import DataError

TOLERANCE = 0.05  # of the rate: the search ends when the interval is this narrow
CONFIRMATIONS = 6  # each a step lower; a rate that was kept once by luck is not kept twice
LOWEST_SHARE = 1 / 64  # of the first rate: below it the promise cannot be kept at any load
HIGHEST_FACTOR = 4096.0  # of the first rate


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A latency target such as p99=100ms."""

    percentile: str  # a key of a point's latency without its unit, such as "p99"
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> Promise:
        """Read `p99=100ms` or `p95=0.5s`; DataError otherwise."""
        match = re.fullmatch(r"(p50|p90|p95|p99)=(\d+(?:\.\d+)?)(ms|s)", text.strip())
        if match is None or float(match[2]) == 0:
            raise DataError(f"service level objective is {text!r}, expected p50, p90, p95 or p99 and a time: p99=100ms")
        return cls(percentile=match[1], limit_ms=float(match[2]) * (1000 if match[3] == "s" else 1))

    def __str__(self) -> str:
        return f"{self.percentile}={self.limit_ms:g}ms"

    def kept(self, point: Mapping[str, Any]) -> bool:
        """Say whether a measured point kept it: the percentile within the limit, and not one error."""
        latency = point["latency"]
        return latency is not None and not point["errors"] and latency[f"{self.percentile}_ms"] <= self.limit_ms


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One measured rate."""

    rate: float
    kept: bool
    confirming: bool = False


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search found."""

    rate: float  # the highest that was kept twice; 0: none
    trials: tuple[Trial, ...]  # in the order they were measured


def highest_rate(kept: Callable[[float, bool], bool], first: float, *, whole: bool = False) -> Search:
    """Return the highest rate that keeps the promise, to within TOLERANCE.

    kept: measures a rate and says whether the promise held; its second argument says that the answer is to be confirmed
    (measure for longer). first: where to start. whole: only whole numbers, such as cameras.
    """
    if first <= 0:
        raise ValueError(f"first rate is {first}; expected above 0")
    trials: list[Trial] = []

    def tried(rate: float, confirming: bool = False) -> bool:
        held = kept(rate, confirming)
        trials.append(Trial(rate=rate, kept=held, confirming=confirming))
        return held

    low, high = _bracket(tried, first, whole)
    while low > 0 and (high - low > 1 if whole else high > low * (1 + TOLERANCE)):
        middle = (low + high) // 2 if whole else (low + high) / 2
        low, high = (middle, high) if tried(middle) else (low, middle)
    return Search(rate=_confirmed(tried, low, whole), trials=tuple(trials))


def _bracket(tried: Callable[[float], bool], first: float, whole: bool) -> tuple[float, float]:
    """Return a rate that was kept (0: none) and one that was not."""
    rate = max(1, round(first)) if whole else first
    if tried(rate):
        while rate < first * HIGHEST_FACTOR:
            if not tried(2 * rate):
                return rate, 2 * rate
            rate *= 2
        return rate, rate
    while rate > (1 if whole else first * LOWEST_SHARE):
        lower = rate // 2 if whole else rate / 2
        if tried(lower):
            return lower, rate
        rate = lower
    return 0, rate


def _confirmed(tried: Callable[[float, bool], bool], rate: float, whole: bool) -> float:
    """Return the first rate, going down in small steps, that is kept once more; 0 when none of them is."""
    for _ in range(CONFIRMATIONS):
        if rate <= 0:
            return 0
        if tried(rate, True):
            return rate
        rate = rate - 1 if whole else rate * (1 - TOLERANCE)
    return 0
