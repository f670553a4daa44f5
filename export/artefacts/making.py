"""From a PyTorch model to the ONNX files that may be served, in every precision asked for, each compared with PyTorch.

PyTorch's own answers, the slowest part, are computed once and shared by all precisions. A failed comparison is reported
in the artefact and not raised: who asked for a precision decides what it means. Before INT8 or FP16 gives up it climbs
a ladder: the layers that suffer most go back to float32, a few more at each rung, and the notes say how far it went.
Engines climb together: each keeps the graph of the first rung at which its own answers pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affserve.export.artefacts import parity
from affserve.export.artefacts.comparing import Check
from affserve.export.artefacts.material import Material
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.sessions import Candidate
from affserve.export.artefacts.timing import with_times
from affserve.export.contract import CLIP_ENCODER, FEATURE_WIDTH, FEATURES, FRAMES, TEMPORAL_HEAD
from affserve.export.graphs.layers import Dialect
from affserve.export.graphs.onnx_file import export_encoder, export_head
from affserve.export.precision.half import ISLANDS, WIDER_ISLANDS, to_half
from affserve.export.precision.int8 import Feed, calibrate, quantize
from affserve.export.precision.tolerances import Precision
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

CALIBRATION_BATCH_FRAMES = 16
HEAD_CALIBRATION_FRAMES = 64  # crops whose features make the windows that heads are calibrated on
FORMS = {one: one for one in Precision} | {Precision.BF16: Precision.FP16}  # the graph that is computed in a precision
# Shares of the products with a weight that INT8 leaves in float32, most sensitive first. With half of a ViT's linear
# work in float32 little speed is left to gain.
INT8_RUNGS = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def make_artefacts(
    encoder: ClipEncoder,
    truth: parity.Truth,
    folder: Path,
    candidates: Mapping[str, Sequence[Candidate]],
    material: Material,
    progress: Callable[[str], None] = lambda _: None,
    *,
    timed: Collection[Candidate] = (),
) -> list[Artefact]:
    """Write a graph below `folder` for every model and candidate asked for and compare its answers with PyTorch's.

    candidates: by contract name of the model. timed: those of which the ones that passed get their speed on this CPU.
    ExportError when a graph cannot be made at all.
    """
    makers = (
        _EncoderMaker(folder=folder, truth=truth, material=material, encoder=encoder),
        _HeadMaker(folder=folder, truth=truth, material=material, encoder=encoder),
    )
    artefacts: list[Artefact] = []
    for maker in makers:
        wanted = candidates.get(maker.model, ())
        made: dict[Candidate, Artefact] = {}
        for form in dict.fromkeys(FORMS[one.precision] for one in wanted):
            climbing = [one for one in wanted if FORMS[one.precision] is form]
            progress(f"{maker.model} in {form.value} ({', '.join(map(str, climbing))})")
            made |= _make(maker, form, climbing)
        rivals = [made[one] for one in timed if one in made and made[one].passed]
        if len(rivals) > 1:
            progress(f"speed of {maker.model}: {', '.join(str(one.candidate) for one in rivals)}")
            made |= {one.candidate: one for one in with_times(rivals)}
        artefacts += [made[one] for one in wanted]
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

    def export(self, path: Path, dialect: Dialect) -> None:
        raise NotImplementedError

    def check(self, path: Path, candidate: Candidate) -> list[Check]:
        raise NotImplementedError

    def feeds(self) -> Iterator[Feed]:
        raise NotImplementedError


class _EncoderMaker(_Maker):
    model = CLIP_ENCODER.name

    def export(self, path: Path, dialect: Dialect) -> None:
        export_encoder(self.encoder, path, dialect)

    def check(self, path: Path, candidate: Candidate) -> list[Check]:
        return parity.check_encoder(self.truth, path, *candidate)

    def feeds(self) -> Iterator[Feed]:
        frames = self.material.calibration
        for start in range(0, len(frames), CALIBRATION_BATCH_FRAMES):
            yield {FRAMES.name: frames[start : start + CALIBRATION_BATCH_FRAMES]}


class _HeadMaker(_Maker):
    model = TEMPORAL_HEAD.name

    def export(self, path: Path, dialect: Dialect) -> None:
        export_head(self.truth.graph, path, dialect)

    def check(self, path: Path, candidate: Candidate) -> list[Check]:
        return parity.check_head(self.truth, path, *candidate)

    def feeds(self) -> Iterator[Feed]:
        """Windows of the calibration crops' features, whole, halved and a single frame."""
        if len(self.material.calibration) == 0:
            return
        step = -(-len(self.material.calibration) // HEAD_CALIBRATION_FRAMES)
        features = parity.encode(self.encoder, self.material.calibration[::step])
        features = np.resize(features, (WINDOW_FRAMES, FEATURE_WIDTH))
        for part in (features, features[::2], features[:1]):
            yield {FEATURES.name: np.ascontiguousarray(part[None])}


def _make(maker: _Maker, form: Precision, candidates: Sequence[Candidate]) -> dict[Candidate, Artefact]:
    """Return each candidate with the first graph of a form whose answers passed, or else the last."""
    made: dict[Candidate, Artefact] = {}
    for path, rung in _RUNGS[form](maker):
        for candidate in (one for one in candidates if one not in made or not made[one].passed):
            made[candidate] = Artefact(
                model=maker.model,
                precision=candidate.precision,
                engine=candidate.engine,
                path=path,
                checks=maker.check(path, candidate),
                notes=(rung,) if rung else (),
            )
        if all(one.passed for one in made.values()):
            break
    return made


Rungs = Iterator[tuple[Path, str]]  # graphs, from the boldest on, and what to say of each


def _fp32(maker: _Maker) -> Rungs:
    yield maker.source(Dialect.STANDARD), ""


def _fp16(maker: _Maker) -> Rungs:
    for islands in (ISLANDS, WIDER_ISLANDS):
        path = maker.path(f"{Precision.FP16.value}.{len(islands)}")
        to_half(maker.source(Dialect.STANDARD), path, islands)
        yield path, f"{' and '.join(islands)} in float32, the rest in float16"


def _int8(maker: _Maker) -> Rungs:
    calibrated = calibrate(maker.source(Dialect.CPU), maker.feeds())
    total = len(calibrated.products)
    for count in sorted({round(share * total) for share in INT8_RUNGS}):
        kept = calibrated.products[:count]
        path = maker.path(f"{Precision.INT8.value}.{count}")
        quantize(calibrated, path, keep=kept)
        left = f": {', '.join(kept)}" if kept else ""
        yield (
            path,
            f"{total - count} of {total} products with a weight in INT8, {calibrated.smoothed} activations smoothed, "
            f"{count} products left in float32{left}",
        )


_RUNGS: Mapping[Precision, Callable[[_Maker], Rungs]] = {
    Precision.FP32: _fp32,
    Precision.FP16: _fp16,
    Precision.INT8: _int8,
}
