"""The gate before anything is served: does an artefact compute what the PyTorch model computes?

Compared on real frames and windows plus inputs meant to hurt (black, white, noise, one frame, T = 1, T = 299). Every
check has a figure, a limit and, where there is one, the worst frame; the limits and their reasons are in `precision`.
PyTorch's answers are computed once, as `Truth`, and serve every artefact.

A decision (the expression, an action unit) disagrees when it is another one although PyTorch's own margin was larger
than a tie: where two classes are equally probable to PyTorch, rounding may choose either. That alone would let a model
through whose every decision is a tie; so every probability must also stay close, and follow PyTorch's over the window.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file compares with it
import torch  # noqa: TID253 - this file compares with it
from numpy.typing import NDArray

from affserve.export.contract import CHUNK_FRAMES, FEATURES, FRAMES, IMAGE_SIZE_PX
from affserve.export.graphs.head import HeadGraph
from affserve.export.precision.tolerances import TOLERANCES, Precision, Tolerance
from affserve.train.errors import ParityError
from affserve.train.evaluation.metrics import ACTIVE_PROBABILITY
from affserve.train.labels import TASKS, Kind
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

SEGMENT_LENGTHS = (1, 2, WINDOW_FRAMES - 1, WINDOW_FRAMES)
ADVERSARIAL = ("black", "white", "noise")
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


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What PyTorch computes."""

    frames: NDArray[np.uint8]  # (N + 3, 224, 224, 3): faces, then ADVERSARIAL
    features: Floats  # (N + 3, D)
    windows: tuple[Floats, ...]  # (1, T, D) each, of SEGMENT_LENGTHS
    outputs: tuple[Outputs, ...]  # of each window
    graph: HeadGraph

    @property
    def faces(self) -> int:
        """N, how many of the frames are faces."""
        return len(self.frames) - len(ADVERSARIAL)


def establish(encoder: ClipEncoder, graph: HeadGraph, frames: NDArray[np.uint8]) -> Truth:
    """Compute PyTorch's answers on faces (N, 224, 224, 3), consecutive ones of each person, and on inputs that hurt."""
    everything = np.concatenate([frames, adversarial_frames()])
    features = encode(encoder, everything)
    windows = _windows(features[: len(frames)])
    return Truth(
        frames=everything,
        features=features,
        windows=windows,
        outputs=tuple(_head_outputs(graph, window) for window in windows),
        graph=graph,
    )


def encode(encoder: ClipEncoder, frames: NDArray[np.uint8]) -> Floats:
    """Return PyTorch's features (N, D) of frames (N, 224, 224, 3)."""
    return _in_chunks(lambda chunk: _run_torch(encoder, chunk)[0], frames)


def require(tables: Mapping[str, Sequence[Check]], refused: str, remedy: str) -> None:
    """The gate: ParityError with the whole tables when a check in any of them failed; tables: by what was compared.

    refused: what is wrong and what was therefore not done; remedy: what may be tried.
    """
    if not all(check.passed for checks in tables.values() for check in checks):
        lines = [line for name, checks in tables.items() for line in (f"{name}:", *(f"  {check}" for check in checks))]
        table = "\n".join(lines)
        raise ParityError(f"{refused}:\n{table}\nexpected every line within its limit; {remedy}")


def adversarial_frames(seed: int = 0) -> NDArray[np.uint8]:
    """Return (3, 224, 224, 3): black, white and noise."""
    shape = (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def check_encoder(truth: Truth, path: Path, precision: Precision) -> list[Check]:
    """Compare an encoder graph with PyTorch: its features, and what PyTorch's head makes of them."""
    limits = TOLERANCES[precision]
    session = _session(path)
    answer = _in_chunks(lambda chunk: _run_onnx(session, FRAMES.name, chunk)[0], truth.frames)
    checks = _feature_checks(truth, answer, limits)
    checks.append(_batch_check(truth, session, limits))
    for length, window, expected in zip(SEGMENT_LENGTHS, _windows(answer[: truth.faces]), truth.outputs, strict=True):
        checks += _output_checks(length, expected, _head_outputs(truth.graph, window), limits)
    return checks


def check_head(truth: Truth, path: Path, precision: Precision) -> list[Check]:
    """Compare a head graph with PyTorch on PyTorch's features."""
    session = _session(path)
    names = [output.name for output in session.get_outputs()]
    checks: list[Check] = []
    for length, window, expected in zip(SEGMENT_LENGTHS, truth.windows, truth.outputs, strict=True):
        values = [value[0] for value in _run_onnx(session, FEATURES.name, window)]
        checks += _output_checks(length, expected, dict(zip(names, values, strict=True)), TOLERANCES[precision])
    return checks


def _feature_checks(truth: Truth, answer: Floats, limits: Tolerance) -> list[Check]:
    checks: list[Check] = []
    if limits.feature_difference is not None:
        differences = np.abs(answer - truth.features).max(axis=1) / _scale(truth)
        what = "features, largest difference"
        checks.append(_worst(what, differences, limits.feature_difference, truth, at_least=False))
    cosines = _cosine(answer, truth.features)
    checks.append(_worst("features, cosine of the worst frame", cosines, limits.feature_cosine, truth, at_least=True))
    if limits.centred_cosine is not None:
        faces, expected = answer[: truth.faces], truth.features[: truth.faces]
        middle = expected.mean(axis=0)
        centred = _cosine(faces - middle, expected - middle)
        what = "features, centred cosine of the worst face"
        checks.append(_worst(what, centred, limits.centred_cosine, truth, at_least=True))
    return checks


def _batch_check(truth: Truth, session: ort.InferenceSession, limits: Tolerance) -> Check:
    """A face alone and beside the inputs that hurt most: what shares a batch comes from other clients."""
    batch = np.concatenate([truth.frames[:1], truth.frames[truth.faces :]])
    together = _run_onnx(session, FRAMES.name, batch)[0][:1]
    alone = _run_onnx(session, FRAMES.name, truth.frames[:1])[0]
    figure = float(np.abs(together - alone).max()) / _scale(truth)
    what = "features of a frame alone and in a batch"
    return Check(what=what, figure=figure, limit=limits.batch_difference, at_least=False)


def _output_checks(length: int, truth: Outputs, answer: Outputs, limits: Tolerance) -> list[Check]:
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


def _worst(what: str, figures: NDArray[Any], limit: float, truth: Truth, *, at_least: bool) -> Check:
    # NaN first: argmin and argmax stop at it, and no limit lets it through.
    index = int(figures.argmin() if at_least else figures.argmax())
    name = f"frame {index}" if index < truth.faces else ADVERSARIAL[index - truth.faces]
    where = f"worst is {name} of {len(figures)} frames"
    return Check(what=what, figure=float(figures[index]), limit=limit, at_least=at_least, where=where)


def _scale(truth: Truth) -> float:
    return max(1.0, float(np.abs(truth.features).max()))


def _windows(features: Floats) -> tuple[Floats, ...]:
    """Return segments (1, T, D) cut from features (N, D), played over where N is too small."""
    long_enough = np.resize(features, (WINDOW_FRAMES, features.shape[1]))
    return tuple(np.ascontiguousarray(long_enough[None, :length]) for length in SEGMENT_LENGTHS)


def _head_outputs(graph: HeadGraph, window: Floats) -> dict[str, Floats]:
    return {key: value[0] for key, value in zip(graph.tasks, _run_torch(graph, window), strict=True)}


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run_onnx(session: ort.InferenceSession, name: str, values: NDArray[Any]) -> list[Floats]:
    return list(session.run(None, {name: np.ascontiguousarray(values)}))


def _run_torch(module: torch.nn.Module, values: NDArray[Any]) -> list[Floats]:
    with torch.inference_mode():
        answer = module.eval()(torch.from_numpy(np.ascontiguousarray(values)))
    return [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]


def _in_chunks(run: Callable[[NDArray[np.uint8]], Floats], frames: NDArray[np.uint8]) -> Floats:
    return np.concatenate([run(frames[start : start + CHUNK_FRAMES]) for start in range(0, len(frames), CHUNK_FRAMES)])


def _cosine(a: Floats, b: Floats) -> NDArray[np.float64]:
    dot = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    return np.asarray(dot / np.maximum(lengths, 1e-12))


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One ONNX file and what is known about it."""

    model: str  # contract name: clip_encoder or temporal_head
    precision: Precision
    path: Path
    checks: list[Check]
    notes: tuple[str, ...] = ()  # what a reader should know, such as layers left in float32 and why
    seconds: float  # to build and check
    run_s: float = 0.0  # of one run on this CPU, measured in turns with others of the model; 0: not measured

    @property
    def passed(self) -> bool:
        """Say whether every figure keeps to its limit."""
        return all(check.passed for check in self.checks)
