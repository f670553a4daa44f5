"""Thresholds of units and biases of classes, tuned for F1 on labelled videos, and what they gain on other people.

Rare classes are called too seldom by a model that was trained on few of them: a lower threshold, or a bias on their
log-probability, calls them as often as F1 wants. The gain that is told is that of folds over people: those whose
frames are scored had no part in choosing. What gains nothing there is not declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.annotations import labelled_columns
from affserve.train.errors import DataError
from affserve.train.evaluation.metrics import confusion_counts, f1_of_sums, sums_of
from affserve.train.evaluation.scores import RESAMPLINGS
from affserve.train.labels import TASKS, Kind
from affserve.train.processing.processor import processed
from affserve.train.processing.record import Choice, Episodes, Processing, Record
from affserve.train.windows import Outputs

THRESHOLDS: NDArray[np.float64] = np.arange(1, 100) / 100
BIASES: NDArray[np.float64] = np.arange(-15, 16) / 5
ROUNDS = 5  # over all classes, at most
LEAST_GAIN = 1e-4  # of F1, for a bias to be changed


@dataclass(frozen=True, kw_only=True, eq=False)
class AnsweredVideo:
    """What a head said of a labelled video, before anything is made of it."""

    person: str
    outputs: Outputs  # (N, K) by task
    truth: Mapping[str, NDArray[Any]]  # (N, columns) by task
    valid: Mapping[str, NDArray[np.bool_]]  # (N,) by task


@dataclass(frozen=True, kw_only=True)
class Gain:
    """F1 of one task, before and after, on people who had no part in tuning; the interval is one over people."""

    before: float
    after: float
    low: float  # 95 % of after - before
    high: float
    people: int

    @property
    def kept(self) -> bool:
        """Whether what was tuned is declared."""
        return self.after > self.before

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {**asdict(self), "kept": self.kept}


def tune(videos: Sequence[AnsweredVideo], base: Processing, folds: int) -> tuple[dict[str, Record], dict[str, Gain]]:
    """Return `base` with tuned thresholds and biases where these gain, and the gains by task.

    folds: shares of the people, each scored by what the others chose. DataError where there are fewer than two people.
    """
    declared, gains = dict(base), {}
    for task in videos[0].outputs:
        if TASKS[task].kind not in _TUNED:
            continue
        labelled = [video for video in videos if video.valid[task].any()]
        gains[task] = _gain(task, labelled, base, folds)
        if gains[task].kept:
            declared[task] = _tuned(task, labelled, base)
    return declared, gains


def _gain(task: str, videos: Sequence[AnsweredVideo], base: Processing, folds: int) -> Gain:
    people = sorted({video.person for video in videos})
    if len(people) < 2:
        raise DataError(f"{len(people)} people have labels of {task}; expected at least 2, to check one by the others")
    order = np.random.default_rng(0).permutation(len(people))
    fold_of = {people[k]: place % folds for place, k in enumerate(order.tolist())}
    labelled = np.any([labelled_columns(TASKS[task], one.truth[task][one.valid[task]]) for one in videos], axis=0)
    before, after = (np.zeros((len(people), 3, TASKS[task].outputs)) for _ in range(2))
    for fold in sorted(set(fold_of.values())):
        tuned = _tuned(task, [video for video in videos if fold_of[video.person] != fold], base)
        for video in (video for video in videos if fold_of[video.person] == fold):
            place = people.index(video.person)
            before[place] += _counts(task, video, base)
            after[place] += _counts(task, video, {task: tuned})
    before, after = (counts[..., np.broadcast_to(labelled, TASKS[task].outputs)] for counts in (before, after))
    draws = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), RESAMPLINGS)
    drawn = (_f1(np.einsum("rp,pck->rck", draws, counts)) for counts in (after, before))
    low, high = np.percentile(np.subtract(*drawn), [2.5, 97.5]).tolist()
    return Gain(
        before=float(_f1(before.sum(axis=0))),
        after=float(_f1(after.sum(axis=0))),
        low=low,
        high=high,
        people=len(people),
    )


def _counts(task: str, video: AnsweredVideo, processing: Processing) -> NDArray[np.float64]:
    own = {key: one for key, one in processing.items() if key == task}
    made = processed({task: video.outputs[task]}, own, {task: TASKS[task].names})[task]
    valid = video.valid[task]
    return sums_of(TASKS[task].kind, video.truth[task][valid], made[valid])


def _f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(f1_of_sums(sums).mean(axis=-1))


def _tuned(task: str, videos: Sequence[AnsweredVideo], base: Processing) -> Record:
    outputs = np.concatenate([video.outputs[task][video.valid[task]] for video in videos])
    truth = np.concatenate([video.truth[task][video.valid[task]] for video in videos])
    return _TUNED[TASKS[task].kind](TASKS[task].names, outputs, truth, base.get(task))


def _with_thresholds(
    names: Sequence[str], outputs: NDArray[np.float32], truth: NDArray[Any], base: Record | None
) -> Record:
    episodes = base if isinstance(base, Episodes) else Episodes()
    told = truth >= 0
    on = {name: best_threshold(outputs[told[:, k], k], truth[told[:, k], k] > 0.5) for k, name in enumerate(names)}
    off = {name: min(limit, on[name]) for name, limit in episodes.off.items()}
    return replace(episodes, on=on, off=off)


def best_threshold(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Return the threshold, in hundredths, with the highest F1 over itself and its neighbours; 0.5 without a label."""
    if not truth.any():
        return 0.5
    places = np.searchsorted(THRESHOLDS, probabilities, side="right")  # how many thresholds a frame reaches
    reached = np.bincount(places, minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]
    hits = np.bincount(places[truth], minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]
    f1 = 2 * hits / (reached + truth.sum())
    steady = np.convolve(np.pad(f1, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    best = np.flatnonzero(steady >= steady.max() - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def _with_biases(
    names: Sequence[str], outputs: NDArray[np.float32], truth: NDArray[Any], base: Record | None
) -> Record:
    choice = base if isinstance(base, Choice) else Choice()
    biases = best_biases(outputs, truth[:, 0].astype(np.int64))
    told = zip(names, biases.round(2).tolist(), strict=True)
    return replace(choice, biases={name: bias for name, bias in told if bias})


def best_biases(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return biases (K,) on log-probabilities (M, K) for a high macro F1: class by class until none gains."""
    classes = probabilities.shape[1]
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
    biases = np.zeros(classes)
    best = _macro_f1(truth, logs.argmax(axis=1), classes)
    for _ in range(ROUNDS):
        before = best
        for k in range(classes):
            others = logs + biases
            others[:, k] = -np.inf
            runner_up = others.argmax(axis=1)
            needed = others.max(axis=1) - logs[:, k]  # the bias from which class k is chosen
            scores = [_macro_f1(truth, np.where(bias >= needed, k, runner_up), classes) for bias in BIASES]
            if max(scores) > best + LEAST_GAIN:
                best, biases[k] = max(scores), BIASES[int(np.argmax(scores))]
        if best - before <= LEAST_GAIN:
            break
    return biases


def _macro_f1(truth: NDArray[np.int64], called: NDArray[np.int64], classes: int) -> float:
    confusion = confusion_counts(truth, called, classes)
    return float(_f1(np.stack([np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)]).astype(np.float64)))


_TUNED: dict[Kind, Callable[[Sequence[str], NDArray[np.float32], NDArray[Any], Record | None], Record]] = {
    "one_of": _with_biases,
    "any_of": _with_thresholds,
}
