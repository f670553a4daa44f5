"""From a PyTorch model to the ONNX files that may be served, in every precision asked for, each compared with PyTorch.

PyTorch's own answers, the slowest part, are computed once and shared by all precisions. A failed comparison is reported
in the artefact and not raised: who asked for a precision decides what it means. Before INT8 or FP16 gives up it climbs
a ladder: the layers that suffer most go back to float32, a few more at each rung, and the notes say how far it went.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affserve.export.artefacts import parity
from affserve.export.artefacts.material import Material
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.timing import with_times
from affserve.export.contract import CLIP_ENCODER, FEATURE_WIDTH, FEATURES, FRAMES, TEMPORAL_HEAD
from affserve.export.graphs.head import HeadGraph
from affserve.export.graphs.layers import Dialect
from affserve.export.graphs.onnx_file import export_encoder, export_head
from affserve.export.precision.half import ISLANDS, WIDER_ISLANDS, to_half
from affserve.export.precision.int8 import Feed, calibrate, quantize
from affserve.export.precision.tolerances import Precision
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

CALIBRATION_BATCH_FRAMES = 16
HEAD_CALIBRATION_FRAMES = 64  # crops whose features make the windows that heads are calibrated on
# Shares of the products with a weight that INT8 leaves in float32, most sensitive first. With half of a ViT's linear
# work in float32 little speed is left to gain.
INT8_RUNGS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def make_artefacts(
    encoder: ClipEncoder,
    graph: HeadGraph,
    folder: Path,
    precisions: Mapping[str, Sequence[Precision]],
    material: Material,
    progress: Callable[[str], None] = lambda _: None,
    *,
    timed: Collection[Precision] = (),
    threads: int | None = None,
) -> list[Artefact]:
    """Write `<folder>/<model>.<precision>.onnx` for every model and precision asked for and compare it with PyTorch.

    precisions: by contract name of the model. timed: those of which the ones that passed get their speed on this CPU,
    at so many threads (None: the physical cores). ExportError when a graph cannot be made at all.
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
        made: dict[Precision, Artefact] = {}
        for precision in precisions.get(maker.model, ()):
            progress(f"{maker.model} in {precision.value}")
            made[precision] = _make(maker, precision)
        maker.tidy()
        rivals = [one for one in made.values() if one.passed and one.precision in timed]
        if len(rivals) > 1:
            progress(f"speed of {maker.model} in {' and '.join(one.precision.value for one in rivals)}")
            made |= {one.precision: one for one in with_times(rivals, threads)}
        artefacts += made.values()
    return artefacts


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
        export_encoder(self.encoder, path, dialect)

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
