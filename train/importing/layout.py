"""Photographs laid out as a corpus: who is in which set, which image is which frame of which folder, and the files.

One folder a person, or, where nobody knows who is on an image, one of a thousand images; frame k is line k of the
annotations. Numbers are given before any image is looked at, so that a lost one changes no other.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import CORPUS_FILE, TRAIN, VALIDATION
from affserve.train.corpus.annotations import validity, write_annotation
from affserve.train.corpus.folds import deal
from affserve.train.errors import DataError
from affserve.train.importing.photographs import Photograph
from affserve.train.labels import TASKS

GROUP = 1000  # images of nobody in particular in one folder


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """One folder of a corpus: frames 1, 2, ..."""

    video: str  # its name
    person: str | None
    part: str  # Train_Set or Validation_Set
    photographs: Sequence[Photograph]


def lay_out(photographs: Sequence[Photograph], validation: float, seed: int) -> list[LaidOut]:
    """Split photographs by person and give each its place; the same seed gives the same split on every machine.

    validation: share of the images of each expression that people are dealt to validation for, as nearly as people
    allow, where their owners have not split them. DataError where nobody knows how to split.
    """
    if not photographs:
        raise DataError("no labelled photograph was found; there is nothing to import")
    adrift = [one.where for one in photographs if one.person is None and one.part is None]
    if adrift:
        raise DataError(
            f"{len(adrift)} of {len(photographs)} photographs tell neither who is on them nor their set (the first: "
            f"{adrift[0]}), and people must not be in both sets: name the column (--columns subject=NAME or "
            "split=NAME), or the part of the file name that tells the person (--subject-pattern)"
        )
    sizes: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: label_counts({}))
    for one in photographs:
        if one.part is None:
            sizes[str(one.person)] += label_counts({key: values[None] for key, values in one.labels.items()})
    dealt = deal_people(sizes, validation, seed)
    folders: defaultdict[tuple[str | None, str, int], list[Photograph]] = defaultdict(list)
    nobody: dict[str, int] = dict.fromkeys((TRAIN, VALIDATION), 0)
    for one in photographs:
        part = one.part or dealt[str(one.person)]
        nobody[part] += one.person is None
        group = (nobody[part] - 1) // GROUP + 1 if one.person is None else 0
        folders[one.person, part, group].append(one)
    taken: set[str] = set()
    return [
        LaidOut(video=_name(person, part, group, taken), person=person, part=part, photographs=members)
        for (person, part, group), members in sorted(folders.items(), key=lambda item: (item[0][0] or "", *item[0][1:]))
    ]


def deal_people(sizes: Mapping[str, NDArray[np.float64]], validation: float, seed: int) -> dict[str, str]:
    """Return the set of each person: those with rare labels first, each to where such labels lack most.

    sizes: by person, what `label_counts` says. DataError for one person alone.
    """
    if len(sizes) == 1:
        raise DataError(
            f"all is of {next(iter(sizes))!r}: a split by person needs two people or more (--subject-pattern)"
        )
    places = deal(sizes, (1 - validation, validation), seed) if sizes else {}
    return {person: (TRAIN, VALIDATION)[place] for person, place in places.items()}


def label_counts(labels: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Count the labels of some frames, (N, columns) by task: of each class and active unit, and how many are rated."""
    counts = []
    for key, task in TASKS.items():
        values = labels.get(key, np.zeros((0, task.columns), np.float32))
        values = values[validity(task, values)]
        if task.kind == "one_of":
            counts.append(np.bincount(values[:, 0].astype(np.int64), minlength=task.outputs))
        else:
            counts.append(np.full(task.outputs, len(values)) if task.kind == "regression" else (values > 0).sum(axis=0))
    return np.concatenate(counts).astype(np.float64)


def _name(person: str | None, part: str, group: int, taken: set[str]) -> str:
    """Return a name for a folder that no other has."""
    side = "train" if part == TRAIN else "validation"
    wanted = re.sub(r"[^\w.+-]", "_", person).lstrip(".") if person else f"{side}_{group:04d}"
    choices = (wanted, f"{wanted}_{side}", *(f"{wanted}_{k}" for k in range(2, len(taken) + 3)))
    name = next(choice for choice in choices if choice and choice.lower() not in taken)
    taken.add(name.lower())
    return name


def write_labels(root: Path, folders: Sequence[LaidOut]) -> None:
    """Write the annotations of photographs: of each task that any is labelled for."""
    for task in TASKS.values():
        for one in folders:
            if any(task.key in photograph.labels for photograph in one.photographs):
                missing = np.full(task.columns, task.invalid, np.float32)
                rows = [photograph.labels.get(task.key, missing) for photograph in one.photographs]
                write_annotation(root / "annotations", task, one.part, one.video, np.stack(rows))


def write_description(root: Path, name: str, people: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Write what a corpus is called, who is in its folders (by their names), and where it comes from."""
    described = {"corpus": name, **facts, "people": dict(sorted(people.items()))}
    (root / CORPUS_FILE).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
