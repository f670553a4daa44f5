"""The challenge's metrics on NumPy arrays, over all valid frames of all videos concatenated.

CCC for valence and arousal, F1 for expressions and action units; definitions as on the ABAW pages. Every function has
a defined value on degenerate input, so that a table never holds a NaN that nobody can explain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affserve.train.labels import ACTION_UNITS, EXPRESSION

AU_THRESHOLD = 0.5


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


def mean_ccc(truth: NDArray[np.floating[Any]], prediction: NDArray[np.floating[Any]]) -> float:
    """P_VA: the mean of the CCCs of valence and arousal; both arrays (N, 2)."""
    return (ccc(truth[:, 0], prediction[:, 0]) + ccc(truth[:, 1], prediction[:, 1])) / 2


def binary_f1(truth: ArrayLike, prediction: ArrayLike) -> float:
    """F1 of two boolean (N,) series; 0 where neither holds a positive (scikit-learn's zero_division=0)."""
    t = np.asarray(truth, dtype=bool)
    p = np.asarray(prediction, dtype=bool)
    hits = np.count_nonzero(t & p)
    total = np.count_nonzero(t) + np.count_nonzero(p)
    return 2 * hits / total if total else 0.0


def expression_classes(probability: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the class index of each row of (N, K) outputs, (N,); -1, which no label is, where one is not a number."""
    return np.where(np.isfinite(probability).all(axis=1), probability.argmax(axis=1), -1)


def expression_f1(truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """F1 of each of the eight expressions, (8,), from class indices (N,)."""
    return np.array([binary_f1(truth == k, prediction == k) for k in range(EXPRESSION.outputs)])


def confusion_counts(
    truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Count frames by true (rows) and predicted (columns) class, (classes, classes), from class indices (N,)."""
    return np.bincount(truth * classes + prediction, minlength=classes * classes).reshape(classes, classes)


def action_unit_f1(truth: NDArray[np.floating[Any]], probability: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """F1 of each of the twelve action units at threshold 0.5, (12,), from arrays (N, 12)."""
    active = probability >= AU_THRESHOLD
    return np.array([binary_f1(truth[:, k] > 0.5, active[:, k]) for k in range(ACTION_UNITS.outputs)])
