"""What a model gets right and wrong on labelled frames: `report.json`, `report.md` and `report.png`.

In come served outputs and labels, out go the challenge's numbers and what lies behind them: which expressions are taken
for which, precision and recall of every class and action unit, how far valence and arousal are off. The JSON holds
everything, the other two are views of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affserve.train.evaluation.metrics import MEASURES, METRIC_NAMES, Floats, chosen_class, is_active, pearson
from affserve.train.evaluation.scores import Arrays, Evaluation, Scores, evaluate
from affserve.train.files import write_file
from affserve.train.labels import EXPRESSION, TASKS, Kind

JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "report.json", "report.md", "report.png"


def write_report(folder: Path, predicted: Arrays, truth: Arrays, valid: Arrays, person: Arrays | None = None) -> Scores:
    """Score served outputs (N, K) against labels (N, columns) on the valid (N,) frames and write the report.

    person: (N,) by task, for intervals.
    Tasks without a labelled frame are left out. The three files in `folder` are replaced one by one, each whole.
    """
    from affserve.train.evaluation.report_plot import draw_evaluation

    evaluation = evaluate(predicted, truth, valid, person)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / JSON_FILE, (json.dumps(as_document(evaluation), indent=2) + "\n").encode())
    write_file(folder / MARKDOWN_FILE, as_markdown(evaluation).encode())
    write_file(folder / PICTURE_FILE, draw_evaluation(evaluation))
    return evaluation.scores


def as_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return every number of the report for JSON; no value is NaN."""
    document: dict[str, Any] = {
        "scores": evaluation.scores.summary(),
        "intervals": dict(evaluation.scores.intervals),
        "frames": dict(evaluation.scores.frames),
        "constant_guess": evaluation.constant.summary(),
    }
    for key in evaluation.scores.by_task:
        kind = TASKS[key].kind
        details = partial(_DETAILS[kind], evaluation.truth[key], evaluation.predicted[key])
        document[key] = {
            name: {MEASURES[kind].lower(): value, **details(TASKS[key].names.index(name))}
            for name, value in evaluation.scores.parts[key].items()
        }
    if EXPRESSION.key in evaluation.scores.by_task:
        document["confusion"] = {
            "rows": "truth",
            "columns": "prediction",
            "names": list(EXPRESSION.names),
            "frames": evaluation.confusion().tolist(),
        }
    return document


def _agreement(truth: ArrayLike, predicted: ArrayLike) -> dict[str, float | None]:
    """Break the disagreement of two (N,) series down: a CCC is low for want of correlation, scale or location.

    None stands for what a diverged model leaves undefined: JSON has no NaN.
    """
    x, y = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    values = {
        "pearson": pearson(x, y),
        "root_mean_square_error": float(np.sqrt(np.mean((x - y) ** 2))),
        "truth_mean": float(x.mean()),
        "truth_standard_deviation": float(x.std()),
        "predicted_mean": float(y.mean()),
        "predicted_standard_deviation": float(y.std()),
    }
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _detection(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, float]:
    hits, actual, called = (int(np.count_nonzero(x)) for x in (truth & predicted, truth, predicted))
    return {
        "precision": hits / called if called else 0.0,
        "recall": hits / actual if actual else 0.0,
        "frames": actual,
        "predicted_frames": called,
    }


_DETAILS: dict[Kind, Callable[[Floats, Floats, int], Mapping[str, float | None]]] = {
    "regression": lambda truth, predicted, k: _agreement(truth[:, k], predicted[:, k]),
    "one_of": lambda truth, predicted, k: _detection(truth[:, 0] == k, chosen_class(predicted) == k),
    "any_of": lambda truth, predicted, k: _detection(truth[:, k] > 0, is_active(predicted[:, k]) & (truth[:, k] >= 0)),
}


def as_markdown(evaluation: Evaluation) -> str:
    """Render the report for people."""
    document = as_document(evaluation)
    lines = [
        "# Evaluation",
        "",
        "| task | metric | model | constant guess | labelled frames |",
        "|---|---|--:|--:|--:|",
    ]
    for key, value in evaluation.scores.by_task.items():
        constant, frames = evaluation.constant.by_task[key], evaluation.scores.frames[key]
        metric = METRIC_NAMES[TASKS[key].kind] + evaluation.scores.share(key)
        lines.append(f"| {TASKS[key].title} | {metric} | {value:.4f} | {constant:.4f} | {frames:,} |")
    for key in evaluation.scores.by_task:
        lines += ["", f"## {TASKS[key].title.capitalize()}", "", *_detail_table(document[key])]
    if "confusion" in document:
        lines += ["", "## Confusion of expressions", "", *_confusion_table(evaluation.confusion())]
    lines += ["", f"![Confusion, F1 and density of the predictions]({PICTURE_FILE})"]
    return "\n".join(lines) + "\n"


def _detail_table(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in columns)} |", "|---|" + "--:|" * len(columns)]
    for name, values in rows.items():
        lines.append(f"| {name} | {' | '.join(map(_cell, values.values()))} |")
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _confusion_table(counts: NDArray[np.int64]) -> list[str]:
    lines = [f"| truth \\ prediction | {' | '.join(EXPRESSION.names)} |", "|---|" + "--:|" * EXPRESSION.outputs]
    for name, row in zip(EXPRESSION.names, counts, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in row)} |")
    return lines
