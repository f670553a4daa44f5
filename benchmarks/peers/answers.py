"""Whether two systems answer the same: by the tolerances that export holds a precision to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.artefacts.comparing import steady_ccc
from affserve.export.precision.tolerances import TOLERANCES, Precision
from affserve.train.evaluation.metrics import chosen_class, is_active
from affserve.train.labels import TASKS, Kind
from affserve.train.windows import Outputs


def compare_answers(reference: Outputs, answer: Outputs, precision: Precision) -> dict[str, Any]:
    """Say how far an answer (T, K) by task is from the reference, and whether the precision allows it."""
    limits = TOLERANCES[precision]
    if reference.keys() != answer.keys():
        return {"equal": False, "found": sorted(answer), "expected": sorted(reference)}
    difference = max(float(np.abs(reference[task] - answer[task]).max()) for task in reference)
    ccc = min(steady_ccc(reference[task].ravel(), answer[task].ravel()) for task in reference)
    decisions = [np.mean(_decided(task, reference) == _decided(task, answer)) for task in reference]
    return {
        "largest_difference": float(f"{difference:.3g}"),
        "limit": limits.output_difference,
        "lowest_ccc": round(ccc, 6),
        "ccc_limit": limits.ccc,
        "same_decisions": round(float(min(decisions)), 4),
        "equal": bool(difference <= limits.output_difference and ccc >= limits.ccc),
    }


def _decided(task: str, outputs: Outputs) -> Any:
    """Return the class, the active units, or the quadrant that a user would read."""
    return _DECIDED[TASKS[task].kind](outputs[task])


_DECIDED: dict[Kind, Callable[[NDArray[np.float32]], Any]] = {
    "regression": lambda values: values >= 0,
    "one_of": chosen_class,
    "any_of": is_active,
}
