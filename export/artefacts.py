"""From a PyTorch model to the ONNX files that may be served, in every precision asked for, each compared with PyTorch.

PyTorch's own answers, the slowest part, are computed once and shared by all precisions. A failed comparison is reported
in the artefact and not raised: who asked for a precision decides what it means. Before INT8 or FP16 gives up it climbs
a ladder: the layers that suffer most go back to float32, a few more at each rung, and the notes say how far it went.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file measures with it
from numpy.typing import NDArray

from affserve.export import parity
from affserve.export.contract import CLIP_ENCODER, FEATURE_WIDTH, FEATURES, FRAMES, TEMPORAL_HEAD
from affserve.export.cores import usable_cores
from affserve.export.graphs import HeadGraph
from affserve.export.lean_layers import Dialect
from affserve.export.precision import Precision
from affserve.export.quantize import Feed, calibrate, quantize
from affserve.export.to_half import ISLANDS, WIDER_ISLANDS, to_half
from affserve.export.to_onnx import export_encoder, export_head
from affserve.train.clip_encoder import ClipEncoder
from affserve.train.errors import ParityError
from affserve.train.windows import WINDOW_FRAMES

CALIBRATION_BATCH_FRAMES = 16
HEAD_CALIBRATION_FRAMES = 64  # crops whose features make the windows that heads are calibrated on
# Shares of the products with a weight that INT8 leaves in float32, most sensitive first. With half of a ViT's linear
# work in float32 little speed is left to gain.
INT8_RUNGS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
TIMED_BATCH_FRAMES = 8
TIMED_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One ONNX file and what is known about it."""

    model: str  # contract name: clip_encoder or temporal_head
    precision: Precision
    path: Path
    checks: list[parity.Check]
    notes: tuple[str, ...] = ()  # what a reader should know, such as layers left in float32 and why
    seconds: float  # to build and check

    @property
    def passed(self) -> bool:
        """Say whether every figure keeps to its limit."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Material:
    """Real inputs; the two sets should show different people."""

    calibration: NDArray[np.uint8]  # (N, 224, 224, 3) face crops, for INT8 only; never judged on
    parity: NDArray[np.uint8]  # (M, 224, 224, 3) consecutive face crops, judged on


def make_artefacts(
    encoder: ClipEncoder,
    graph: HeadGraph,
    folder: Path,
    precisions: Mapping[str, Sequence[Precision]],
    material: Material,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Artefact]:
    """Write `<folder>/<model>.<precision>.onnx` for every model and precision asked for and compare it with PyTorch.

    precisions: by contract name of the model. ExportError when a graph cannot be made at all.
    """
    encoder.eval()
    graph.eval()
    progress("PyTorch's answers")
    truth = parity.establish(encoder, graph, material.parity)
    makers = (
        _EncoderMaker(folder=folder, truth=truth, material=material, encoder=encoder),
        _HeadMaker(folder=folder, truth=truth, material=material, encoder=encoder),
    )
    artefacts: list[Artefact] = []
    for maker in makers:
        for precision in precisions.get(maker.model, ()):
            progress(f"{maker.model} in {precision.value}")
            artefacts.append(_make(maker, precision))
        maker.tidy()
    return artefacts


def fastest(artefacts: Sequence[Artefact], threads: int | None = None) -> Artefact:
    """Return the one that ONNX Runtime runs fastest on this CPU, of those of one model that passed, timed in turns.

    threads: as the server will have them; the physical cores unless given. ParityError when none passed.
    """
    passed = [artefact for artefact in artefacts if artefact.passed]
    if not passed:
        names = ", ".join(f"{one.model} in {one.precision.value}" for one in artefacts)
        raise ParityError(f"none of {names or 'no artefacts'} computes what PyTorch computes; see their checks")
    if len(passed) == 1:
        return passed[0]
    runs = [runner(artefact.path, timed_feed(artefact.model), threads) for artefact in passed]
    times_s = in_turns(runs, TIMED_ROUNDS)
    return min(zip(passed, times_s, strict=True), key=lambda pair: statistics.median(pair[1]))[0]


def timed_feed(model: str, batch: int = TIMED_BATCH_FRAMES) -> dict[str, NDArray[Any]]:
    """Return inputs of a usual size: a batch of frames, or a whole window."""
    rng = np.random.default_rng(0)
    if model == CLIP_ENCODER.name:
        return {FRAMES.name: rng.integers(0, 256, (batch, *FRAMES.shape), dtype=np.uint8)}
    return {FEATURES.name: rng.standard_normal((1, WINDOW_FRAMES, FEATURE_WIDTH)).astype(np.float32)}


def runner(path: Path, feed: Mapping[str, NDArray[Any]], threads: int | None = None) -> Callable[[], None]:
    """Open a graph as the server does and return a call that runs it once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feed)) and None


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call, run after run in every round: what disturbs one disturbs all."""
    for run in runs:
        run()
    times_s: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, times_s, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return times_s


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """What making one model's artefacts needs; graphs that others are made from are exported once."""

    folder: Path
    truth: parity.Truth
    material: Material
    encoder: ClipEncoder

    model = ""

    def path(self, form: str) -> Path:
        return self.folder / f"{self.model}.{form}.onnx"

    def source(self, dialect: Dialect) -> Path:
        """Return the float32 graph of a dialect, exported when first asked for."""
        path = self.path(Precision.FP32.value if dialect is Dialect.STANDARD else "source")
        if not path.exists():
            self.export(path, dialect)
        return path

    def tidy(self) -> None:
        self.path("source").unlink(missing_ok=True)

    def export(self, path: Path, dialect: Dialect) -> None:
        raise NotImplementedError

    def check(self, path: Path, precision: Precision) -> list[parity.Check]:
        raise NotImplementedError

    def feeds(self) -> Iterator[Feed]:
        raise NotImplementedError


class _EncoderMaker(_Maker):
    model = CLIP_ENCODER.name

    def export(self, path: Path, dialect: Dialect) -> None:
        # Called without its default where it can be: tests put a faulty export in its place.
        export_encoder(self.encoder, path, *(() if dialect is Dialect.STANDARD else (dialect,)))

    def check(self, path: Path, precision: Precision) -> list[parity.Check]:
        return parity.check_encoder(self.truth, path, precision)

    def feeds(self) -> Iterator[Feed]:
        frames = self.material.calibration
        for start in range(0, len(frames), CALIBRATION_BATCH_FRAMES):
            yield {FRAMES.name: frames[start : start + CALIBRATION_BATCH_FRAMES]}


class _HeadMaker(_Maker):
    model = TEMPORAL_HEAD.name

    def export(self, path: Path, dialect: Dialect) -> None:
        export_head(self.truth.graph, path, dialect)

    def check(self, path: Path, precision: Precision) -> list[parity.Check]:
        return parity.check_head(self.truth, path, precision)

    def feeds(self) -> Iterator[Feed]:
        """Windows of the calibration crops' features, whole, halved and a single frame."""
        if len(self.material.calibration) == 0:
            return
        step = -(-len(self.material.calibration) // HEAD_CALIBRATION_FRAMES)
        features = parity.encode(self.encoder, self.material.calibration[::step])
        features = np.resize(features, (WINDOW_FRAMES, FEATURE_WIDTH))
        for part in (features, features[::2], features[:1]):
            yield {FEATURES.name: np.ascontiguousarray(part[None])}


def _make(maker: _Maker, precision: Precision) -> Artefact:
    started = time.perf_counter()
    path = maker.path(precision.value)
    checks: list[parity.Check] = []
    notes: tuple[str, ...] = ()
    for rung in _RUNGS[precision](maker, path):
        checks, notes = maker.check(path, precision), (rung,) if rung else ()
        if all(check.passed for check in checks):
            break
    seconds = time.perf_counter() - started
    return Artefact(model=maker.model, precision=precision, path=path, checks=checks, notes=notes, seconds=seconds)


def _fp32(maker: _Maker, path: Path) -> Iterator[str]:
    maker.source(Dialect.STANDARD)
    yield ""


def _fp16(maker: _Maker, path: Path) -> Iterator[str]:
    for islands in (ISLANDS, WIDER_ISLANDS):
        to_half(maker.source(Dialect.STANDARD), path, islands)
        yield f"{' and '.join(islands)} in float32, the rest in float16"


def _int8(maker: _Maker, path: Path) -> Iterator[str]:
    calibrated = calibrate(maker.source(Dialect.CPU), maker.feeds())
    total = len(calibrated.products)
    for count in sorted({round(share * total) for share in INT8_RUNGS}):
        kept = calibrated.products[:count]
        quantize(calibrated, path, keep=kept)
        left = f": {', '.join(kept)}" if kept else ""
        yield (
            f"{total - count} of {total} products with a weight in INT8, {calibrated.smoothed} activations smoothed, "
            f"{count} products left in float32{left}"
        )


_RUNGS: Mapping[Precision, Callable[[_Maker, Path], Iterator[str]]] = {
    Precision.FP32: _fp32,
    Precision.FP16: _fp16,
    Precision.INT8: _int8,
}
