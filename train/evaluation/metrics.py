"""The challenge's metrics on NumPy arrays, over all valid frames of all videos concatenated.

CCC of numbers, F1 of classes and of units; definitions as on the ABAW pages. Every function has
a defined value on degenerate input, so that a table never holds a NaN that nobody can explain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affserve.train.labels import TASKS, Kind

ACTIVE_PROBABILITY = 0.5

Floats = NDArray[Any]


def ccc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Concordance correlation coefficient of two (N,) series, with population variances.

    2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2); 0 where one of the two is constant (it carries no information about a
    signal), where N is 0 and where a number is NaN (a diverged model agrees with nothing).
    """
    x = np.asarray(truth, dtype=np.float64)
    y = np.asarray(prediction, dtype=np.float64)
    # Said outright: the rounding of a constant's mean would leave "variances" that divide to anything.
    if x.size == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    denominator = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * covariance / denominator) if denominator > 0 else 0.0


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation coefficient of two (N,) series; 0 where one of them is constant or holds a NaN."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size == 0 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    scale = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / scale) if scale > 0 else 0.0


def confusion_counts(
    truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Count frames by true (rows) and predicted (columns) class, (classes, classes), from class indices (N,)."""
    return np.bincount(truth * classes + prediction, minlength=classes * classes).reshape(classes, classes)


def chosen_class(outputs: Floats) -> NDArray[np.int64]:
    """Return the class index of each row of (N, K) outputs, (N,); -1, which no label is, where one is not a number."""
    return np.where(np.isfinite(outputs).all(axis=1), outputs.argmax(axis=1), -1)


def is_active(outputs: Floats) -> NDArray[np.bool_]:
    """Say which units (N, K) outputs call active."""
    return outputs >= ACTIVE_PROBABILITY


def score_each(kind: Kind, truth: Floats, outputs: Floats) -> NDArray[np.float64]:
    """CCC or F1 of each output, (K,), from labels (N, columns) and outputs (N, K); of a unit where truth is not -1."""
    if kind == "regression":
        return np.array([ccc(x, y) for x, y in zip(truth.T, outputs.T, strict=True)])
    return f1_of_sums(sums_of(kind, truth, outputs))


def sums_of(kind: Kind, truth: Floats, outputs: Floats) -> NDArray[np.float64]:
    """Return what the score of each output is made of, summed over frames, (S, K); sums of people add up.

    S is 3 for F1: frames rightly called, with the label, called; 0 where neither is nor is called. 6 for CCC: frames,
    x, y, x x, y y, x y of truth x and outputs y.
    """
    if kind == "regression":
        x, y = truth.astype(np.float64), outputs.astype(np.float64)
        return np.asarray(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y]).sum(axis=1))
    if kind == "one_of":
        classes = np.arange(outputs.shape[1])
        true, called = truth == classes, chosen_class(outputs)[:, None] == classes
    else:
        true, called = truth > 0.5, is_active(outputs) & (truth >= 0)
    return np.asarray(np.stack([true & called, true, called]).sum(axis=1), np.float64)


def f1_of_sums(sums: Floats) -> NDArray[np.float64]:
    """F1 of sums (..., 3, K), (..., K); 0 where there is nothing to find and nothing was found."""
    hits, actual, called = np.moveaxis(sums, -2, 0)
    return np.asarray(2 * hits / np.maximum(actual + called, 1))


def ccc_of_sums(sums: Floats) -> NDArray[np.float64]:
    """CCC of sums (..., 6, K), (..., K), to the rounding of differences of squares: for intervals."""
    frames, *others = np.moveaxis(sums, -2, 0)
    x, y, xx, yy, xy = (one / np.maximum(frames, 1) for one in others)
    distance = xx - x * x + yy - y * y + (x - y) ** 2
    return np.asarray(np.nan_to_num(2 * (xy - x * y) / np.maximum(distance, 1e-12)))


FROM_SUMS: dict[Kind, Callable[[Floats], NDArray[np.float64]]] = {
    "regression": ccc_of_sums,
    "one_of": f1_of_sums,
    "any_of": f1_of_sums,
}
MEASURES: dict[Kind, str] = {"regression": "CCC", "one_of": "F1", "any_of": "F1"}  # of one output
METRIC_NAMES: dict[Kind, str] = {"regression": "mean CCC", "one_of": "macro F1", "any_of": "mean F1"}  # of a task


def metric_titles() -> dict[str, str]:
    """Return what to call each number of `Scores.summary` in a table, in order; numbers of one output are indented."""
    titles: dict[str, str] = {}
    for key, task in TASKS.items():
        titles[key] = f"{task.title}, {METRIC_NAMES[task.kind]}"
        if task.kind == "regression":
            titles |= {name: f"  {name}, {MEASURES[task.kind]}" for name in task.names}
    return titles


def people_drawn(person: NDArray[np.int64], times: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of as many people as there are, drawn with replacement: what an interval over people is made of.

    person: (N,) whose each row is, from 0 without gaps; rows of -1 are nobody's.
    """
    rows = [np.flatnonzero(person == one) for one in range(person.max(initial=-1) + 1)]
    rng = np.random.default_rng(0)
    for _ in range(times):
        yield np.concatenate([rows[one] for one in rng.integers(len(rows), size=len(rows))])
