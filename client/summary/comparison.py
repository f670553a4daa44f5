"""Conditions compared over people: means with intervals, and a paired or unpaired t test by SciPy.

Everybody counts once: somebody's rows in a condition are averaged first. People in both conditions are compared with
themselves (paired t test); where nobody is in both, Welch's t test compares two independent groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import MissingExtraError

LEVEL = 0.95
FEWEST = 2  # people of whom there is an interval
PAIRED, UNPAIRED, NONE = "paired t", "Welch's t", "none: too few people, or no differences"
Values = Mapping[str, Mapping[str, float]]
"""By condition, then by person: one number."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a measure over the people of a condition, with its 95 % t interval; None: fewer than two people."""

    event: str
    measure: str
    condition: str
    people: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """b less a. effect: Cohen's dz (paired) or Hedges' g (unpaired). p_fdr: over all tests."""

    event: str
    measure: str
    a: str
    b: str
    test: str
    people: int  # in the test
    left_out: int  # who are in one of the conditions only, where others are in both
    difference: float | None
    low: float | None
    high: float | None
    effect: float | None
    p: float | None
    p_fdr: float | None = None


def means_of(event: str, measure: str, values: Values) -> list[Mean]:
    """Return the mean of each condition."""
    means = []
    for condition, people in values.items():
        numbers = np.array(list(people.values()))
        low, high = _interval(numbers)
        means.append(
            Mean(
                event=event,
                measure=measure,
                condition=condition,
                people=len(numbers),
                mean=float(numbers.mean()),
                low=low,
                high=high,
            )
        )
    return means


def compare(event: str, measure: str, values: Values) -> list[Comparison]:
    """Compare each pair of conditions."""
    return [_pair(event, measure, (a, b), values) for a, b in combinations(values, 2)]


def with_false_discoveries(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add p values that hold for all comparisons together (Benjamini and Hochberg)."""
    tested = [one.p for one in comparisons if one.p is not None]
    adjusted = iter(_stats().false_discovery_control(tested).tolist() if tested else ())
    return [one if one.p is None else replace(one, p_fdr=next(adjusted)) for one in comparisons]


def gathered(rows: Sequence[tuple[str, str, float]]) -> dict[str, dict[str, float]]:
    """Average (condition, person, number): everybody once in a condition."""
    lists: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for condition, person, number in rows:
        lists[condition][person].append(number)
    return {
        condition: {person: sum(numbers) / len(numbers) for person, numbers in people.items()}
        for condition, people in lists.items()
    }


def _pair(event: str, measure: str, pair: tuple[str, str], values: Values) -> Comparison:
    a, b = (values[condition] for condition in pair)
    both = [person for person in a if person in b]
    x, y = (np.array([side[person] for person in both or side]) for side in (a, b))
    differences = y - x if both else None
    blank: dict[str, Any] = dict.fromkeys(("low", "high", "effect", "p"))
    found = {"test": NONE, "difference": float(y.mean() - x.mean()), **blank}
    if differences is not None and len(differences) >= FEWEST and np.ptp(differences) > 0:
        found |= _tested(_stats().ttest_rel(y, x), PAIRED, float(differences.mean() / differences.std(ddof=1)))
    elif differences is None and min(len(x), len(y)) >= FEWEST and np.ptp(x) + np.ptp(y) > 0:
        found |= _tested(_stats().ttest_ind(y, x, equal_var=False), UNPAIRED, _hedges_g(x, y))
    people = len(both) if both else len(x) + len(y)
    left_out = len(set(a) | set(b)) - people
    return Comparison(event=event, measure=measure, a=pair[0], b=pair[1], people=people, left_out=left_out, **found)


def _tested(result: Any, test: str, effect: float) -> dict[str, Any]:
    interval = result.confidence_interval(LEVEL)
    return {
        "test": test,
        "low": float(interval.low),
        "high": float(interval.high),
        "effect": effect,
        "p": float(result.pvalue),
    }


def _hedges_g(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the difference in units of the pooled spread, corrected for few people."""
    free = len(x) + len(y) - 2
    pooled = np.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / free)
    return float((y.mean() - x.mean()) / pooled * (1 - 3 / (4 * free - 1)))


def _interval(numbers: NDArray[np.float64]) -> tuple[float | None, float | None]:
    if len(numbers) < FEWEST:
        return None, None
    reach = _stats().t.ppf((1 + LEVEL) / 2, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers))
    return float(numbers.mean() - reach), float(numbers.mean() + reach)


def _stats() -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "summary") from error
    return stats
