"""Labelled photographs: a table with a row for each, or a folder for each class, in; what is said of each image out.

A reader yields records as it finds them, name of a column to cell; `collect` makes photographs of them, and a line of
every record that cannot be one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION
from affserve.train.errors import DataError
from affserve.train.importing.class_names import ClassNames, read_csv
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
COLUMNS = ("image", "subject", "split", EXPRESSION.key, *VALENCE_AROUSAL.names, *ACTION_UNITS.names)
TRAINING, VALIDATING = {"train", "training", "train_set", "trn"}, {"val", "valid", "validation", "val_set", "dev"}
TESTING = {"test", "testing", "privatetest"}
ACTIVE = 0.5  # of a unit's probability, as in results
SPLITS = {**dict.fromkeys(TRAINING, TRAIN), **dict.fromkeys((*VALIDATING, *TESTING, "publictest"), VALIDATION)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One row of a table, or one file of a folder, as it was found."""

    where: str  # file and line, for messages
    cells: Mapping[str, str]  # by a name of COLUMNS; what is empty is not labelled
    image: Path | NDArray[np.uint8]  # its file, or its grey pixels (H, W)
    box_px: tuple[float, float, float, float] | None = None  # x, y, width, height of the face that is meant


@dataclass(frozen=True, kw_only=True, eq=False)
class Photograph:
    """One labelled image."""

    where: str
    image: Path | NDArray[np.uint8]
    box_px: tuple[float, float, float, float] | None
    person: str | None
    part: str | None  # Train_Set or Validation_Set, where its owners say so
    labels: Mapping[str, NDArray[np.float32]]  # (columns,) by task key; what it is not labelled for is absent


@dataclass(kw_only=True)
class Collected:
    """What was found."""

    photographs: list[Photograph] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    problems: list[str] = field(default_factory=list)  # a line each


def collect(records: Iterable[Record | DataError], names: ClassNames, pattern: str | None = None) -> Collected:
    """Make photographs of records; pattern: its first group, found in the image's path, is who is on it."""
    found, known = Collected(), []
    for one in records:
        if isinstance(one, DataError):
            found.problems.append(str(one))
        else:
            known.append(one)
    # A test set is what is validated on where there is nothing else for it, and otherwise nobody's business here.
    splits = {record.cells.get("split", "").lower() for record in known}
    tested = TESTING if splits & (VALIDATING | {"publictest"}) else set()
    for record in known:
        try:
            split = record.cells.get("split", "").lower()
            if split in tested:
                found.left_out[f"of the owners' test set ({split})"] += 1
                continue
            labels = read_labels(record.where, record.cells, names)
            if not labels:
                found.left_out["without a label"] += 1
                continue
            person = record.cells.get("subject") or None
            if pattern and isinstance(record.image, Path):
                person = person_of(record.image, pattern)
        except DataError as error:
            found.problems.append(str(error))
            continue
        if split not in SPLITS and split:
            found.problems.append(f"{record.where}: split is {split!r}, expected train, validation or test")
            continue
        found.photographs.append(
            Photograph(
                where=record.where,
                image=record.image,
                box_px=record.box_px,
                person=person,
                part=SPLITS.get(split),
                labels={key: np.array(values, np.float32) for key, values in labels.items()},
            )
        )
    found.problems += [problem] if (problem := names.problem()) else []
    return found


def person_of(path: Path, pattern: str) -> str:
    """Return the first group of a pattern, found in a path: the person; DataError where there is none."""
    match = re.search(pattern, path.as_posix())
    if not match or not match.groups() or not match[1]:
        raise DataError(f"{path} does not show who is in it by --subject-pattern {pattern!r}")
    return match[1]


def read_labels(where: str, cells: Mapping[str, str], names: ClassNames) -> dict[str, list[float]]:
    """Return the numbers of each task that a row has labels for; units that it does not tell have the invalid code.

    DataError for what is no number or out of range.
    """
    labels: dict[str, list[float]] = {}
    for key, task in TASKS.items():
        if task.kind == "one_of":
            name = cells.get(key, "").strip()
            index = names.index(name) if name else None
            if index is not None:
                labels[key] = [index]
            continue
        texts = [cells.get(name, "").strip() for name in task.names]
        if all(texts) or (task.kind == "any_of" and any(texts)):
            labels[key] = _numbers(where, task, texts)
    return labels


def _numbers(where: str, task: Task, texts: Sequence[str]) -> list[float]:
    try:
        values = [float(text) if text else task.invalid for text in texts]
    except ValueError:
        values = [np.nan]
    units = task.kind == "any_of"
    if not all(task.low <= value <= task.high or (units and value == task.invalid) for value in values):
        named = ", ".join(name for name, text in zip(task.names, texts, strict=True) if text)
        raise DataError(f"{where}: {named} are {', '.join(filter(None, texts))}, expected {task.low} to {task.high}")
    return [value if value == task.invalid else float(value >= ACTIVE) for value in values] if units else values


def columns_of(path: Path, header: Sequence[str], given: Mapping[str, str], known: Sequence[str]) -> dict[str, int]:
    """Return where the columns that are known here stand in a table; given: what the user calls them.

    DataError for a name that the table has twice or not at all, and for valence without arousal.
    """
    titles = [title.strip().lower() for title in header]
    if strangers := sorted(set(given) - set(known)):
        raise DataError(f"--columns names {', '.join(strangers)}; known here are {', '.join(known)}")
    places: dict[str, int] = {}
    for name in known:
        title = given.get(name, name).strip().lower()
        if titles.count(title) > 1:
            raise DataError(f"{path} has {titles.count(title)} columns {title!r}, expected one for {name}; rename one")
        if title in titles:
            places[name] = titles.index(title)
        elif name in given:
            raise DataError(f"{path} has no column {given[name]!r} for {name}; it has {', '.join(header)}")
    missing = [name for name in VALENCE_AROUSAL.names if name in known and name not in places]
    if len(missing) == 1:
        raise DataError(f"{path} labels {VALENCE_AROUSAL.title} without {missing[0]}; a corpus needs both")
    return places


def read_table(path: Path, images: Path, given: Mapping[str, str]) -> Iterator[Record]:
    """Yield the rows of a table with a column `image`, relative to a folder, and any other of COLUMNS."""
    rows = read_csv(path)
    places = columns_of(path, rows[0] if rows else [], given, COLUMNS)
    if "image" not in places:
        raise DataError(f"{path} has no column 'image'; name it: --columns image=NAME (it has {', '.join(rows[0])})")
    for number, row in enumerate(rows[1:], start=2):
        cells = {name: row[place].strip() for name, place in places.items() if place < len(row)}
        if cells.get("image"):
            yield Record(where=f"{path}:{number}", cells=cells, image=images / cells["image"])


def read_class_folders(root: Path) -> Iterator[Record]:
    """Yield the images of `<class>/` or `<split>/<class>/` below a folder, and of folders in these."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        folders = path.relative_to(root).parts[:-1]
        split = folders[0] if folders and folders[0].lower() in SPLITS else ""
        if len(folders) > bool(split):
            yield Record(where=str(path), cells={"split": split, EXPRESSION.key: folders[bool(split)]}, image=path)


def grey_pixels(where: str, text: str, side_px: int = 48) -> NDArray[np.uint8]:
    """Read the grey pixels (side, side) of a cell with numbers and blanks, as in FER2013."""
    try:
        values = np.array(text.split(), np.int64)
    except ValueError:
        values = np.zeros(0, np.int64)
    if len(values) != side_px * side_px or values.min() < 0 or values.max() > 255:
        raise DataError(f"{where}: expected {side_px * side_px} pixels from 0 to 255, found {len(values)} numbers")
    return values.astype(np.uint8).reshape(side_px, side_px)
