"""What measured numbers say: percentiles, how far a median or a ratio can be trusted, how cost grows with work.

In come raw samples, out come figures with a bootstrap interval. What was measured in turns is resampled in turns: a
round disturbed by another program disturbed all that ran in it, so whole rounds are drawn, never single times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERCENTILES = (50, 90, 95, 99)
RESAMPLES = 2000
# Values resampled at once: 16 MB of indices at a time, however long the runs are.
_BLOCK_VALUES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the range that holds the true one with a confidence of 95 %."""

    value: float  # of the samples as they are
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval is {self.low} to {self.high}, expected low <= high")

    def __contains__(self, number: float) -> bool:
        """Say whether a value lies inside: a ratio whose interval holds 1 has not changed beyond noise."""
        return self.low <= number <= self.high

    def rounded(self) -> dict[str, float]:
        """Return it as plain values for JSON, rounded to three decimals."""
        return {name: round(getattr(self, name), 3) for name in ("value", "low", "high")}


def percentiles(values: Sequence[float], wanted: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Return {"p50": ..., "p90": ..., "p95": ..., "p99": ...}, linear between order statistics as NumPy's default.

    Units are those of `values`; ValueError without values.
    """
    sample = _checked(values)
    return {f"p{rank:g}": float(value) for rank, value in zip(wanted, np.percentile(sample, wanted), strict=True)}


def summary_ms(times_s: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the percentiles and the mean of times in seconds as {"p50_ms": ..., ..., "mean_ms": ...}."""
    told = {f"{name}_ms": 1000 * value for name, value in percentiles(times_s).items()}
    return {name: round(value, digits) for name, value in (told | {"mean_ms": 1000 * float(np.mean(times_s))}).items()}


def median_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the median of `values` and its percentile-bootstrap interval."""
    sample = _checked(values)
    medians = _resampled_medians(sample, np.random.default_rng(seed))
    return _interval(float(np.median(sample)), medians)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], *, in_turns: bool, seed: int = 0
) -> Interval:
    """Return median(numerator) / median(denominator) and its percentile-bootstrap interval.

    in_turns: value k of both comes from the same round of one run, so rounds are drawn; both must be equally long.
    Otherwise (two runs, such as two result files) each side is drawn by itself. ValueError when a denominator is not
    positive.
    """
    above, below = _checked(numerator), _checked(denominator)
    if in_turns and len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} values, expected equally many: they were measured in turns")
    if below.min() <= 0:
        raise ValueError(f"smallest denominator is {below.min()}, expected above 0")
    first = np.random.default_rng(seed)
    # The same generator state draws the same rounds for both sides.
    second = np.random.default_rng(seed if in_turns else seed + 1)
    medians_above = _resampled_medians(above, first)
    medians_below = _resampled_medians(below, second)
    return _interval(float(np.median(above) / np.median(below)), medians_above / medians_below)


def _resampled_medians(sample: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.concatenate([np.median(sample[picked], axis=1) for picked in _resampled(len(sample), rng)])


def _resampled(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield RESAMPLES rows of `count` indices drawn with replacement, in blocks."""
    rows = max(1, min(RESAMPLES, _BLOCK_VALUES // count))
    for start in range(0, RESAMPLES, rows):
        yield rng.integers(0, count, (min(rows, RESAMPLES - start), count))


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value=value, low=float(low), high=float(high))


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    sample: NDArray[Any] = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0:
        raise ValueError(f"samples have shape {sample.shape}, expected one axis with at least one value")
    if not np.isfinite(sample).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(sample))} of {len(sample)} samples are not finite numbers")
    return sample


def linear_fit(work: Sequence[float], cost: Sequence[float]) -> dict[str, float]:
    """Return slope, intercept and R^2 of the least-squares line cost = intercept + slope x work, from two points on."""
    x, y = _checked_pairs(work, cost)
    slope, intercept = np.polyfit(x, y, 1)
    spread = float(np.sum((y - y.mean()) ** 2))
    missed = float(np.sum((y - (intercept + slope * x)) ** 2))
    return {
        "slope": float(f"{slope:.6g}"),
        "intercept": float(f"{intercept:.6g}"),
        "r_squared": round(1 - missed / spread, 6) if spread > 0 else 1.0,
    }


def power_exponent(work: Sequence[float], cost: Sequence[float]) -> float:
    """Return p of the least-squares cost = c x work^p, both above 0: 1 is linear, 0 is flat."""
    x, y = _checked_pairs(work, cost)
    if min(*x, *y) <= 0:
        raise ValueError(f"work is {list(x)}, cost is {list(y)}; expected all above 0")
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    return round(float(exponent), 4)


def fitted(work: Sequence[float], cost: Sequence[float]) -> dict[str, Any]:
    """Return line and power as a result keeps them; nothing where all the work is the same."""
    return {"fit": linear_fit(work, cost), "exponent": power_exponent(work, cost)} if len(set(work)) > 1 else {}


def _checked_pairs(work: Sequence[float], cost: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(work, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(f"work is {list(work)}, cost is {list(cost)}; expected two different amounts of work at least")
    return x, y


def counted(count: int, noun: str) -> str:
    """Write how many there are of something: 1 caller, 2 callers."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
