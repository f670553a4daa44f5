"""Scores of predictions against labels: the challenge's three numbers, and what a constant guess would get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.annotations import labelled_columns
from affserve.train.evaluation.metrics import FROM_SUMS, chosen_class, confusion_counts, score_each, sums_of
from affserve.train.labels import EXPRESSION, TASKS, Kind, Task

OFFICIAL = "official"  # each labelled frame once, after overlapping segments are averaged: the challenge's way
PAPER = "paper"  # full windows only, a frame as often as it lies in one: the way of the paper's authors
PROTOCOLS = (OFFICIAL, PAPER)
RESAMPLINGS = 1000  # of people, for an interval


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The ABAW metrics of the tasks that were scored; tasks without a labelled frame are absent."""

    by_task: Mapping[str, float]  # P_VA, P_EXPR, P_AU
    parts: Mapping[str, Mapping[str, float]]  # CCC of valence and arousal, F1 of each class and labelled unit
    frames: Mapping[str, int]  # labelled frames that were scored
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)  # 95 % over people, of the summary's numbers

    def summary(self) -> dict[str, float]:
        """Return the numbers of the tables: one per task, and valence and arousal apart."""
        apart = (part for key, part in self.parts.items() if TASKS[key].kind == "regression")
        return {**self.by_task, **{name: value for part in apart for name, value in part.items()}}

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of them."""
        return {"metrics": self.summary(), "intervals": self.intervals}

    def share(self, name: str) -> str:
        """Say that a number of the summary is a mean over some units only, ", 8 of 12 units"; else nothing."""
        of, units = len(self.parts.get(name, ())), TASKS[name].outputs if name in TASKS else 0
        return f", {of} of {units} units" if 0 < of < units else ""


Arrays = Mapping[str, NDArray[Any]]


def score(predicted: Arrays, truth: Arrays, valid: Arrays, person: Arrays | None = None) -> Scores:
    """Score served outputs (N, K) against file labels (N, columns) on the valid frames, task by task.

    person: (N,) whose each frame is, numbered from 0; then there are intervals, where there are two people or more.
    """
    by_task: dict[str, float] = {}
    parts: dict[str, dict[str, float]] = {}
    frames: dict[str, int] = {}
    intervals: dict[str, Sequence[float]] = {}
    for key in (key for key in TASKS if key in predicted and valid[key].any()):
        chosen = valid[key]
        task, labels = TASKS[key], truth[key][chosen]
        values = score_each(task.kind, labels, predicted[key][chosen])
        labelled = np.broadcast_to(labelled_columns(task, labels), task.outputs)
        parts[key] = {name: float(values[k]) for k, name in enumerate(task.names) if labelled[k]}
        by_task[key] = float(np.mean(values[labelled]))
        frames[key] = int(chosen.sum())
        if person is not None:
            intervals |= _intervals(task, labels, predicted[key][chosen], person[key][chosen], labelled)
    return Scores(by_task=by_task, parts=parts, frames=frames, intervals=intervals)


def _intervals(
    task: Task, truth: NDArray[Any], outputs: NDArray[Any], person: NDArray[Any], labelled: NDArray[np.bool_]
) -> dict[str, Sequence[float]]:
    """Return the intervals of a task's numbers: of as many people as there are, drawn with replacement."""
    people = [person == one for one in np.unique(person)]
    if len(people) < 2:
        return {}
    sums = np.stack([sums_of(task.kind, truth[rows], outputs[rows]) for rows in people])  # (P, S, K)
    draws = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLINGS)
    values = FROM_SUMS[task.kind](np.tensordot(draws, sums, 1))[:, labelled]  # (R, K)
    apart = zip(task.names, values.T, strict=True) if task.kind == "regression" else ()
    drawn = {task.key: values.mean(axis=1), **dict(apart)}
    return {name: np.percentile(one, (2.5, 97.5)).round(4).tolist() for name, one in drawn.items()}


BEST_CONSTANT: dict[Kind, Callable[[NDArray[Any], Task], NDArray[Any]]] = {
    "regression": lambda labels, task: labels.mean(axis=0),
    "one_of": lambda labels, task: np.eye(task.outputs)[np.bincount(labels[:, 0].astype(np.int64)).argmax()],
    "any_of": lambda labels, task: np.ones(task.outputs),
}


def constant_guess(truth: Arrays, valid: Arrays) -> dict[str, NDArray[np.float32]]:
    """Return the best outputs that never look at a frame, (N, K) by task.

    The mean valence and arousal, the expression and the set of action units that a constant answer scores highest with:
    the most frequent class; every action unit called active (calling it inactive scores 0).
    """
    guesses: dict[str, NDArray[np.float32]] = {}
    for key, values in truth.items():
        row = BEST_CONSTANT[TASKS[key].kind](values[valid[key]], TASKS[key])
        guesses[key] = np.tile(row.astype(np.float32), (len(values), 1))
    return guesses


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Everything a report tells, on the labelled frames only.

    predicted: (M, K) served outputs by task. truth: (M, columns) by task; M differs between tasks.
    """

    scores: Scores
    constant: Scores  # of the best answer that never looks at a frame
    predicted: Arrays
    truth: Arrays

    def confusion(self) -> NDArray[np.int64]:
        """Return frames by true (rows) and predicted (columns) expression, (8, 8)."""
        truth = self.truth[EXPRESSION.key][:, 0].astype(np.int64)
        predicted = chosen_class(self.predicted[EXPRESSION.key])
        answered = predicted >= 0
        return confusion_counts(truth[answered], predicted[answered], EXPRESSION.outputs)


def evaluate(predicted: Arrays, truth: Arrays, valid: Arrays, person: Arrays | None = None) -> Evaluation:
    """Score, and keep the labelled frames of every scored task for a closer look."""
    scores = score(predicted, truth, valid, person)
    keys = list(scores.by_task)
    constant = score(constant_guess({key: truth[key] for key in keys}, valid), truth, valid)
    return Evaluation(
        scores=scores,
        constant=constant,
        predicted={key: predicted[key][valid[key]] for key in keys},
        truth={key: truth[key][valid[key]] for key in keys},
    )
