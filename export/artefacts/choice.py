"""Which precision each model is served in: what was asked for, or the fastest that computes what PyTorch computes.

A precision that was asked for by name and fails its comparison stops the export; one that was only tried is left out,
and the manifest says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affserve.export.artefacts.parity import Artefact, require
from affserve.export.contract import CLIP_ENCODER, CPU, GPU, TEMPORAL_HEAD
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import ExportError

MODEL_NAMES = (CLIP_ENCODER.name, TEMPORAL_HEAD.name)

# The first is preferred. There is no float16 arithmetic in ONNX Runtime's CPU kernels: it would convert to and fro. On
# Ampere INT8 gains a ViT little over FP16 and costs a point or two.
_CANDIDATES = {CPU: (Precision.INT8, Precision.FP32), GPU: (Precision.FP16, Precision.FP32)}
_WHY_NOT = {
    (CPU, Precision.FP16): "ONNX Runtime computes FP16 on a CPU by way of FP32, which gains nothing",
    (GPU, Precision.INT8): "the INT8 graph is made for the instructions of CPUs",
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The artefact that one model is served from on one kind of device."""

    use: str  # CPU or GPU
    artefact: Artefact
    notes: tuple[str, ...] = ()  # what was not taken and why


def candidates(use: str, asked: Precision | None) -> tuple[Precision, ...]:
    """Return the precisions to try for a use; where the asked one cannot run, what would be tried without asking."""
    return (asked,) if asked in _CANDIDATES[use] else _CANDIDATES[use]


def check_usable(uses: Sequence[str], asked: Precision | None) -> None:
    """ExportError when no use of the export can run the precision that was asked for."""
    if asked is None or any(asked in _CANDIDATES[use] for use in uses):
        return
    reasons = "; ".join(_WHY_NOT[use, asked] for use in uses)
    possible = ", ".join(sorted({one.value for use in uses for one in _CANDIDATES[use]}))
    raise ExportError(
        f"precision {asked.value} is not for a {' or a '.join(uses)}: {reasons}; choose auto or one of {possible}"
    )


def wanted(uses: Sequence[str], asked: Precision | None) -> dict[str, tuple[Precision, ...]]:
    """Return the precisions that must be made, by model, FP32 first."""
    tried = {one for use in uses for one in candidates(use, asked)}
    return {model: tuple(one for one in Precision if one in tried) for model in MODEL_NAMES}


def timed(uses: Sequence[str], asked: Precision | None) -> tuple[Precision, ...]:
    """Return the precisions whose speed decides between them, for `make_artefacts`."""
    return candidates(CPU, asked) if CPU in uses else ()


def choose(artefacts: Sequence[Artefact], uses: Sequence[str], asked: Precision | None) -> list[Chosen]:
    """Choose for every model and use on its own; ParityError with the table where nothing may be served."""
    by_model = {name: {one.precision: one for one in artefacts if one.model == name} for name in MODEL_NAMES}
    return [_choose(by_model[name], use, asked) for name in MODEL_NAMES for use in uses]


def _choose(made: Mapping[Precision, Artefact], use: str, asked: Precision | None) -> Chosen:
    tried = [made[one] for one in candidates(use, asked)]
    passed = [artefact for artefact in tried if artefact.passed]
    if not passed:
        require(
            {f"{one.model} in {one.precision.value}": one.checks for one in tried},
            "the exported graphs do not compute what PyTorch computes; nothing was placed",
            "choose another --precision, or export again after fixing the graph",
        )
    best = min(passed, key=lambda one: one.run_s) if use == CPU else passed[0]
    better = tried[: tried.index(best)]  # each would have been the first choice
    return Chosen(use=use, artefact=best, notes=tuple(_why_not(one, best, use) for one in better))


def _why_not(one: Artefact, best: Artefact, use: str) -> str:
    taken = f"{best.model} for {use} is {best.precision.value}, not {one.precision.value}"
    failed = [check for check in one.checks if not check.passed]
    if not failed:
        return f"{taken}, which was slower here"
    return f"{taken}: {failed[0].what} is {failed[0].figure:.4g}, limit {failed[0].limit:g}"
