"""Folds and ablations: other splits of a corpus and other forms of the model, run by the same two stages.

Fold 0 is the official split. Folds 1 to 4 are the KFold(4) over the files of training and validation together. People
are dealt to the folds, not files, and once for all tasks: a person whose files tell that they belong together is never
on both sides, and a video that one task validates on is not trained on for another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.errors import DataError
from affserve.train.labels import TASKS

OFFICIAL_FOLD = 0
DEALT_FOLDS = 4
FOLDS = tuple(range(DEALT_FOLDS + 1))


def deal_folds(corpus: Corpus, seed: int = 0) -> dict[str, int]:
    """Deal all labelled videos to the folds 1 to 4; the same seed gives the same folds on every machine.

    Large recordings first, each to the fold that has the fewest annotated frames so far, all tasks weighed alike: the
    longest file of Aff-Wild2 is six hundred times the shortest.
    """
    sizes: dict[str, NDArray[np.float64]] = {}  # recording -> share of each task's frames, (tasks,)
    for column, key in enumerate(TASKS):
        for video, path in _files(corpus, key).items():
            sizes.setdefault(corpus.person(video), np.zeros(len(TASKS)))[column] += _lines(path)
    if len(sizes) < DEALT_FOLDS:
        raise DataError(
            f"{corpus.root} has {len(sizes)} recording(s); expected at least {DEALT_FOLDS} to make folds of"
        )
    places = deal(sizes, [1 / DEALT_FOLDS] * DEALT_FOLDS, seed)
    return {video: places[corpus.person(video)] + 1 for key in TASKS for video in _files(corpus, key)}


def deal(sizes: Mapping[str, NDArray[np.float64]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Deal people or recordings to parts so that each gets about its share of everything; return the part of each.

    sizes: by name, how much of each kind it holds, (K,). shares: of the parts, in sum 1. The largest come first, and a
    kind counts the more the rarer it is.
    """
    columns = len(next(iter(sizes.values())))
    totals = np.maximum(sum(sizes.values(), np.zeros(columns)), 1)
    order = [sorted(sizes)[k] for k in np.random.default_rng(seed).permutation(len(sizes))]
    order.sort(key=lambda name: -math.floor(math.log2(float((sizes[name] / totals).sum()) or 2.0**-60)))
    loads, wanted = np.zeros((len(shares), columns)), np.array(shares)[:, None]
    places: dict[str, int] = {}
    for name in order:
        # The sum of squared loads over shares is least when all have theirs: where it grows least takes the next.
        grown = ((np.square(loads + sizes[name] / totals) - np.square(loads)) / wanted).sum(axis=1)
        places[name] = int(grown.argmin())
        loads[places[name]] += sizes[name] / totals
    return places


def fold_corpus(corpus: Corpus, fold: int, seed: int = 0) -> Corpus:
    """Return the corpus with its annotation files rearranged: the fold's people validate, all others train.

    Fold 0 is the corpus as it is. Tasks that a fold has no validation file for are an error.
    """
    if fold == OFFICIAL_FOLD:
        return corpus
    if fold not in FOLDS:
        raise DataError(f"fold is {fold}; expected 0 (the official split) to {DEALT_FOLDS}")
    fold_of = deal_folds(corpus, seed)
    files: dict[tuple[str, str], dict[str, Path]] = {}
    for key in (key for key in TASKS if _files(corpus, key)):
        for part in (TRAIN, VALIDATION):
            held_out = part == VALIDATION
            files[key, part] = {v: path for v, path in _files(corpus, key).items() if (fold_of[v] == fold) == held_out}
            if not files[key, part]:
                raise DataError(f"{corpus.root}: fold {fold} leaves no {key} file in {part}: too few videos for folds")
    return replace(corpus, annotation_files=files)


def _files(corpus: Corpus, key: str) -> dict[str, Path]:
    """Return the annotation files of both sets, by video."""
    return {v: path for part in (VALIDATION, TRAIN) for v, path in corpus.annotation_files.get((key, part), {}).items()}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
