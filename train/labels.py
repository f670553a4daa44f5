"""The vocabulary of Aff-Wild2: tasks, label order, invalid codes, and annotation files.

In come `<name>.txt` annotation files, out go arrays with a validity mask. The order of every label list is the
official index order of the ABAW challenge files; nothing else in the project repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the three ABAW tasks: what it is called, what a model puts out, what a file holds."""

    key: str  # name of the model output and of the option value
    title: str  # for tables and plots
    challenge: str  # folder below annotations/
    older_challenges: tuple[str, ...] = ()  # the same folder in older releases
    names: tuple[str, ...] = field()  # one per model output, in index order
    columns: int  # numbers on one line of an annotation file
    invalid: float  # code of an unlabelled frame
    low: float  # smallest valid value in a file
    high: float  # largest valid value in a file
    integer: bool  # whether file values are whole numbers

    @property
    def outputs(self) -> int:
        """K, the number of model outputs per frame."""
        return len(self.names)

    @property
    def header(self) -> str:
        """First line of an annotation file."""
        return ",".join(self.names)


VALENCE_AROUSAL = Task(
    key="valence_arousal",
    title="valence-arousal",
    challenge="VA_Estimation_Challenge",
    names=("valence", "arousal"),
    columns=2,
    invalid=-5,
    low=-1,
    high=1,
    integer=False,
)
EXPRESSION = Task(
    key="expression",
    title="expressions",
    challenge="EXPR_Recognition_Challenge",
    older_challenges=("EXPR_Classification_Challenge",),
    names=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    columns=1,
    invalid=-1,
    low=0,
    high=7,
    integer=True,
)
ACTION_UNITS = Task(
    key="action_units",
    title="action units",
    challenge="AU_Detection_Challenge",
    names=("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"),
    columns=12,
    invalid=-1,
    low=0,
    high=1,
    integer=True,
)
TASKS: dict[str, Task] = {task.key: task for task in (VALENCE_AROUSAL, EXPRESSION, ACTION_UNITS)}


def task_by_key(key: str) -> Task:
    """Return the task called `key`; an unknown key is a DataError that lists the known ones."""
    if key not in TASKS:
        raise DataError(f"unknown task {key!r}; expected one of {', '.join(TASKS)}")
    return TASKS[key]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The labels of one video for one task; row k belongs to crop `<k+1:05d>.jpg`.

    values: (N, task.columns) float32, the file's numbers as they stand (invalid codes included).
    valid: (N,) bool, False where the frame has no label (for action units: where any of the twelve is missing).
    """

    task: Task
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]


def validity(task: Task, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which rows of `values` (N, task.columns) carry a label: (N,) bool.

    A row counts when every number in it lies in the task's range; this drops the invalid code and, for valence and
    arousal, a row in which only one of the two is missing.
    """
    inside = (values >= task.low) & (values <= task.high)
    return np.asarray(inside.all(axis=1), dtype=np.bool_)


def read_annotation(path: str | os.PathLike[str], task: Task) -> Annotation:
    """Read one annotation file; DataError names the file and line that cannot be understood."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as an annotation file: {error}") from error
    if not lines or lines[0].replace(" ", "") != task.header:
        found = lines[0] if lines else "nothing"
        raise DataError(f"{path}: first line is {found!r}, expected {task.header!r} ({task.challenge})")
    values = _parse(path, lines, task)
    return Annotation(task=task, values=values, valid=validity(task, values))


def _parse(path: Path, lines: list[str], task: Task) -> NDArray[np.float32]:
    """Return the numbers of a file's lines after the header, (N, task.columns)."""
    try:
        # Three times as fast as line by line, which is then left to say what is wrong where.
        values = (
            np.loadtxt(lines[1:], delimiter=",", ndmin=2, comments=None) if any(map(str.strip, lines[1:])) else None
        )
    except ValueError:
        values = None
    if values is None or values.shape[1] != task.columns:
        rows = [_parse_row(path, number, line, task) for number, line in enumerate(lines[1:], start=2) if line.strip()]
        values = np.array(rows, dtype=np.float64).reshape(-1, task.columns)
    return values.astype(np.float32)


def _parse_row(path: Path, number: int, line: str, task: Task) -> list[float]:
    cells = line.split(",")
    try:
        row = [float(cell) for cell in cells]
    except ValueError:
        row = []
    if len(row) != task.columns:
        raise DataError(f"{path}:{number}: found {line!r}, expected {task.columns} comma-separated number(s)")
    return row


def format_annotation(task: Task, values: NDArray[np.float32]) -> str:
    """Render values (N, task.columns) as the text of an annotation file."""
    rows: Iterable[str]
    if task.integer:
        rows = (",".join(str(int(v)) for v in row) for row in values)
    else:
        rows = (",".join(f"{v:.4g}" for v in row) for row in values)
    return "\n".join((task.header, *rows)) + "\n"
