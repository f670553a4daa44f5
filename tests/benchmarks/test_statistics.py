"""Percentiles and bootstrap intervals, against NumPy and against what the intervals promise."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from affserve.benchmarks.measuring.samples import Interval, median_interval, percentiles, ratio_interval, summary_ms


def test_percentiles_are_numpys() -> None:
    times = np.random.default_rng(0).lognormal(size=997)
    told = percentiles(times.tolist())
    assert list(told) == ["p50", "p90", "p95", "p99"]
    assert list(told.values()) == pytest.approx([np.percentile(times, rank) for rank in (50, 90, 95, 99)])


def test_summary_is_in_milliseconds() -> None:
    told = summary_ms([0.001, 0.002, 0.004])
    assert told["p50_ms"] == 2
    assert told["mean_ms"] == pytest.approx(2.333)


def test_median_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = [1.0 in median_interval(rng.lognormal(0, 0.5, 40).tolist(), seed=k) for k in range(100)]
    assert 0.88 <= statistics.mean(held) <= 1  # 95 % promised; 100 draws of it leave a deviation of 2.2 %


def test_a_disturbance_of_whole_rounds_widens_a_ratio_only_when_rounds_are_torn_apart() -> None:
    rng = np.random.default_rng(2)
    disturbance = rng.lognormal(0, 0.8, 60)
    slow, fast = (2 * disturbance * rng.lognormal(0, 0.01, 60)).tolist(), disturbance.tolist()
    together, apart = (ratio_interval(slow, fast, in_turns=kept) for kept in (True, False))
    assert pytest.approx(together.value, rel=0.05) == 2.0
    assert 2.0 in apart
    assert together.high - together.low < 0.2 * (apart.high - apart.low)


def test_the_same_samples_give_the_same_interval() -> None:
    times = [3.0, 1.0, 2.0, 5.0]
    assert median_interval(times) == median_interval(times)
    assert ratio_interval(times, times, in_turns=True) == Interval(value=1, low=1, high=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [([], "at least one"), ([1.0, float("nan")], "not finite"), ([[1.0]], "one axis")],
    ids=["empty", "nan", "two-axes"],
)
def test_samples_that_are_none_are_refused(values: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        percentiles(values)


def test_rounds_must_match() -> None:
    with pytest.raises(ValueError, match="measured in turns"):
        ratio_interval([1.0, 2.0], [1.0], in_turns=True)
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([1.0], [0.0], in_turns=False)
