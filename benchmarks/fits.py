"""How cost grows with work: a straight line for what each unit costs, an exponent for the shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def linear_fit(work: Sequence[float], cost: Sequence[float]) -> dict[str, float]:
    """Return slope, intercept and R^2 of the least-squares line cost = intercept + slope x work, from two points on."""
    x, y = _checked(work, cost)
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
    x, y = _checked(work, cost)
    if min(*x, *y) <= 0:
        raise ValueError(f"work is {list(x)}, cost is {list(y)}; expected all above 0")
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    return round(float(exponent), 4)


def _checked(work: Sequence[float], cost: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(work, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    if len(x) != len(y) or len(np.unique(x)) < 2:
        raise ValueError(f"work is {list(work)}, cost is {list(cost)}; expected two different amounts of work at least")
    return x, y
