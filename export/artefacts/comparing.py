"""The figures by which answers are judged: features and outputs beside those that PyTorch gave, each with its limit.

NumPy alone: export judges graphs with it, and a server that starts judges itself.

A decision (the expression, an action unit) disagrees when it is another one although PyTorch's own margin was larger
than a tie: where two classes are equally probable to PyTorch, rounding may choose either. That alone would let a model
through whose every decision is a tie; so every probability must also stay close, and follow PyTorch's over the window.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.precision.tolerances import Tolerance
from affserve.train.errors import ParityError
from affserve.train.evaluation.metrics import ACTIVE_PROBABILITY
from affserve.train.labels import TASKS, Kind
from affserve.train.windows import WINDOW_FRAMES

ADVERSARIAL = ("black", "white", "noise")  # inputs that are no faces, after the faces
CONSTANT = 1e-3  # a served series that varies by less, of a range of 1 or 2, is constant: CCC says nothing about it

Floats = NDArray[np.float32]
Outputs = Mapping[str, Floats]  # by task: (T, K)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the parity table."""

    what: str
    figure: float
    limit: float
    at_least: bool  # whether the figure must not fall below the limit, rather than not exceed it
    where: str = ""  # the worst input

    @property
    def passed(self) -> bool:
        """Say whether the figure keeps to the limit; a NaN never does."""
        return bool((operator.ge if self.at_least else operator.le)(self.figure, self.limit))

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        where = f", {self.where}" if self.where else ""
        return (
            f"{'ok  ' if self.passed else 'FAIL'}  {self.what:<52} {self.figure:.6g}  (limit {sign} {self.limit:g}"
            f"{where})"
        )


def require(tables: Mapping[str, Sequence[Check]], refused: str, remedy: str) -> None:
    """The gate: ParityError with the whole tables when a check in any of them failed; tables: by what was compared.

    refused: what is wrong and what was therefore not done; remedy: what may be tried.
    """
    if any(map(fault, tables.values())):
        raise ParityError(f"{refused}:\n{text(tables)}\nexpected every line within its limit; {remedy}")


def fault(checks: Iterable[Check]) -> str:
    """Return the first figure that is beyond its limit, in words; empty where all keep to theirs."""
    failed = next((check for check in checks if not check.passed), None)
    return "" if failed is None else f"{failed.what} is {failed.figure:.4g}, limit {failed.limit:g}"


def text(tables: Mapping[str, Sequence[Check]]) -> str:
    """Return tables, by what was compared, line by line."""
    return "\n".join(line for name, checks in tables.items() for line in (f"{name}:", *(f"  {one}" for one in checks)))


@dataclass(frozen=True, kw_only=True)
class Features:
    """PyTorch's features of some frames: faces, after which inputs may come that hurt."""

    values: Floats  # (N, D)
    faces: int  # how many of the N are faces
    middle: Floats  # (D,), the mean over faces, which says nothing about any of them

    @property
    def scale(self) -> float:
        """The largest magnitude of a feature, at least 1."""
        return max(1.0, float(np.abs(self.values).max()))


def feature_checks(truth: Features, answer: Floats, limits: Tolerance) -> list[Check]:
    """Compare features (N, D) of the same frames."""
    checks: list[Check] = []
    if limits.feature_difference is not None:
        differences = np.abs(answer - truth.values).max(axis=1) / truth.scale
        what = "features, largest difference"
        checks.append(_worst(what, differences, limits.feature_difference, truth, at_least=False))
    alike = cosines(answer, truth.values)
    checks.append(_worst("features, cosine of the worst frame", alike, limits.feature_cosine, truth, at_least=True))
    if limits.centred_cosine is not None:
        centred = cosines(answer[: truth.faces] - truth.middle, truth.values[: truth.faces] - truth.middle)
        what = "features, centred cosine of the worst face"
        checks.append(_worst(what, centred, limits.centred_cosine, truth, at_least=True))
    return checks


def output_checks(length: int, truth: Outputs, answer: Outputs, limits: Tolerance) -> list[Check]:
    """Compare the outputs of one window of so many frames, by task."""
    checks: list[Check] = []
    for key, expected in truth.items():
        given = answer.get(key)
        if given is None or given.shape != expected.shape:
            # A figure that no limit lets through.
            checks.append(Check(what=f"{key}, T = {length}, shape", figure=float("nan"), limit=0, at_least=False))
            continue
        checks.append(_difference(key, length, expected, given, limits))
        if TASKS[key].kind in _DECISIONS:
            checks.append(_agreement(key, length, expected, given, limits))
        if length >= WINDOW_FRAMES - 1:
            checks.append(_ccc(key, length, expected, given, limits))
    return checks


def _difference(key: str, length: int, truth: Floats, answer: Floats, limits: Tolerance) -> Check:
    by_frame = np.abs(answer - truth).max(axis=1)
    return Check(
        what=f"{key}, T = {length}, largest difference",
        figure=float(by_frame.max()),
        limit=limits.output_difference,
        at_least=False,
        where=f"frame {int(by_frame.argmax())}",
    )


def _expression_decisions(values: Floats) -> tuple[NDArray[Any], Floats]:
    """Return (T, 1) classes and by how much each was the most probable."""
    ordered = np.sort(values, axis=1)
    return values.argmax(axis=1)[:, None], (ordered[:, -1] - ordered[:, -2])[:, None]


def _action_unit_decisions(values: Floats) -> tuple[NDArray[Any], Floats]:
    """Return (T, 12) whether active, and twice the distance from the threshold: the margin over the other answer."""
    return values >= ACTIVE_PROBABILITY, 2 * np.abs(values - ACTIVE_PROBABILITY)


_DECISIONS: dict[Kind, Callable[[Floats], tuple[NDArray[Any], Floats]]] = {
    "one_of": _expression_decisions,
    "any_of": _action_unit_decisions,
}


def _agreement(key: str, length: int, truth: Floats, answer: Floats, limits: Tolerance) -> Check:
    decide = _DECISIONS[TASKS[key].kind]
    (expected, margin), (given, _) = decide(truth), decide(answer)
    differs = (expected != given) & (margin > limits.tie)
    ties = float(np.mean(margin <= limits.tie))
    return Check(
        what=f"{key}, T = {length}, agreement",
        figure=1 - float(np.mean(differs)),
        limit=limits.agreement,
        at_least=True,
        where=f"{ties:.0%} of PyTorch's decisions are ties",
    )


def _ccc(key: str, length: int, truth: Floats, answer: Floats, limits: Tolerance) -> Check:
    """Valence and arousal each; probabilities all together, so that classes in another order show."""
    columns = range(truth.shape[1]) if TASKS[key].kind == "regression" else [slice(None)]
    figures = [steady_ccc(truth[:, one].ravel(), answer[:, one].ravel()) for one in columns]
    return Check(what=f"{key}, T = {length}, CCC", figure=min(figures), limit=limits.ccc, at_least=True)


def steady_ccc(truth: Floats, answer: Floats) -> float:
    """CCC of two (N,) series that tends to 1 instead of to noise where both are constant and equal.

    A variance of CONSTANT^2, common to both, is added: it counts for nothing in a series that varies, and a constant
    one is judged by its offset.
    """
    x, y = truth.astype(np.float64), answer.astype(np.float64)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    floor = 2 * CONSTANT**2
    return float((2 * covariance + floor) / (x.var() + y.var() + (x.mean() - y.mean()) ** 2 + floor))


def _worst(what: str, figures: NDArray[Any], limit: float, truth: Features, *, at_least: bool) -> Check:
    # NaN first: argmin and argmax stop at it, and no limit lets it through.
    index = int(figures.argmin() if at_least else figures.argmax())
    name = f"frame {index}" if index < truth.faces else ADVERSARIAL[index - truth.faces]
    where = f"worst is {name} of {len(figures)} frames"
    return Check(what=what, figure=float(figures[index]), limit=limit, at_least=at_least, where=where)


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each row of a (N, D) with the same row of b: (N,)."""
    dot = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    return np.asarray(dot / np.maximum(lengths, 1e-12))
