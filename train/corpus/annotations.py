"""Annotation files of Aff-Wild2: `<name>.txt` in, values and a validity mask per frame out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError
from affserve.train.labels import TASKS, Task
from affserve.train.provenance import UNTAUGHT


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The labels of one video for one task; row k belongs to crop `<k+1:05d>.jpg`.

    values: (N, task.columns) float32, the file's numbers as they stand (invalid codes included).
    valid: (N,) bool, False where the frame has no label (for action units: where any that the file labels is missing).
    """

    task: Task
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]


def aligned(
    annotation: Annotation | None, task: Task, numbers: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return labels (N, columns) and validity (N,) of frame numbers (N,), counted from 1.

    Numbers past the annotation's end, and all of a video without an annotation, are invalid.
    """
    rows = np.full((len(numbers), task.columns), task.invalid, dtype=np.float32)
    valid = np.zeros(len(numbers), dtype=np.bool_)
    if annotation is not None:
        inside = numbers <= len(annotation.values)
        rows[inside] = annotation.values[numbers[inside] - 1]
        valid[inside] = annotation.valid[numbers[inside] - 1]
    return rows, valid


def validity(task: Task, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which rows of `values` (N, task.columns) carry a label: (N,) bool.

    A row counts when every number in it lies in the task's range; this drops the invalid code and, for valence and
    arousal, a row in which only one of the two is missing. Units that no row has a label of are not asked for: a corpus
    may label some of the twelve only.
    """
    inside = (values >= task.low) & (values <= task.high)
    return np.asarray(inside[:, labelled_columns(task, values)].all(axis=1), dtype=np.bool_)


def labelled_columns(task: Task, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which columns of labels (N, columns) are labelled at all: (columns,) bool; all where that is none or no unit.

    A unit without a label is marked by the invalid code, also in rows that are valid for the others.
    """
    if task.kind != "any_of" or not (found := ((values >= task.low) & (values <= task.high)).any(axis=0)).any():
        return np.ones(task.columns, np.bool_)
    return np.asarray(found, np.bool_)


def untaught(truth: Mapping[str, NDArray[Any]], valid: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[str]]:
    """Return what a checkpoint says of units that a training set, labels (N, columns) by task, has no label of."""
    names = [
        TASKS[key].names[k]
        for key, labels in truth.items()
        for k in np.flatnonzero(~labelled_columns(TASKS[key], labels[valid[key]]))
    ]
    return {UNTAUGHT: names} if names else {}


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


def write_annotation(folder: Path, task: Task, part: str, video: str, values: NDArray[np.float32]) -> None:
    """Write the annotation file of one video, values (N, task.columns), into a folder of annotations."""
    path = folder / task.challenge / part / f"{video}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_annotation(task, values), encoding="utf-8", newline="\n")
