"""By which engine and in which precision each model is served: as asked, or the fastest that computes what PyTorch
computes.

A precision that was asked for by name and fails its comparison stops the export; one that was only tried is left out,
and the manifest says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affserve.export.artefacts.comparing import fault, require
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.sessions import Candidate, is_at_hand
from affserve.export.contract import CLIP_ENCODER, CPU, GPU, TEMPORAL_HEAD
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import ExportError

MODEL_NAMES = (CLIP_ENCODER.name, TEMPORAL_HEAD.name)
CPU_ENGINES = (ONNX_RUNTIME, OPENVINO)
# An engine that gains less than this over one before it in the list is not worth another library in the server, and a
# choice that noise decides would be another one at every export.
WORTH = 1.1

# The first is preferred. There is no float16 arithmetic in ONNX Runtime's CPU kernels: it would convert to and fro. On
# Ampere INT8 gains a ViT little over FP16 and costs a point or two.
_PRECISIONS = {CPU: (Precision.INT8, Precision.BF16, Precision.FP32), GPU: (Precision.FP16, Precision.FP32)}
_ENGINES = {Precision.BF16: (OPENVINO,)}  # of those that not every engine computes
_WHY_NOT = {
    (CPU, Precision.FP16): "ONNX Runtime computes FP16 on a CPU by way of FP32, which gains nothing; bf16 does",
    (GPU, Precision.INT8): "the INT8 graph is made for the instructions of CPUs",
    (GPU, Precision.BF16): "it is a precision of CPUs; FP16 is that of GPUs",
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The artefact that one model is served from on one kind of device."""

    use: str  # CPU or GPU
    artefact: Artefact
    tried: tuple[Mapping[str, Any], ...] = ()  # engine, precision, whether it passed, and ms of a run on this CPU
    notes: tuple[str, ...] = ()  # what was not taken and why


def candidates(use: str, asked: Precision | None, engines: Sequence[str] = CPU_ENGINES) -> tuple[Candidate, ...]:
    """Return what to try for a use; where the asked precision cannot run, what would be tried without asking.

    engines: for a CPU, of those that are installed. For a GPU the graphs are judged by ONNX Runtime's answers.
    """
    precisions = (asked,) if asked in _PRECISIONS[use] else _PRECISIONS[use]
    at_hand = [one for one in engines if is_at_hand(one)] if use == CPU else [ONNX_RUNTIME]
    return tuple(
        Candidate(precision, engine)
        for precision in precisions
        for engine in _ENGINES.get(precision, (ONNX_RUNTIME, OPENVINO))
        if engine in at_hand
    )


def check_usable(uses: Sequence[str], asked: Precision | None, engines: Sequence[str] = CPU_ENGINES) -> None:
    """ExportError when no use of the export can run the precision that was asked for."""
    if asked is not None and not any(asked in _PRECISIONS[use] for use in uses):
        reasons = "; ".join(_WHY_NOT[use, asked] for use in uses)
        possible = ", ".join(sorted({one.value for use in uses for one in _PRECISIONS[use]}))
        raise ExportError(
            f"precision {asked.value} is not for a {' or a '.join(uses)}: {reasons}; choose auto or one of {possible}"
        )
    if CPU in uses and not candidates(CPU, asked, engines):
        raise ExportError(
            f"{asked.value if asked else 'a graph for a CPU'} needs one of {', '.join(engines)}, and none is installed "
            "that can compute it: pip install openvino, or choose another --precision"
        )


def wanted(
    uses: Sequence[str], asked: Precision | None, engines: Sequence[str] = CPU_ENGINES
) -> dict[str, tuple[Candidate, ...]]:
    """Return the candidates that must be made, by model, each once."""
    tried = tuple(dict.fromkeys(one for use in uses for one in candidates(use, asked, engines)))
    return dict.fromkeys(MODEL_NAMES, tried)


def choose(
    artefacts: Sequence[Artefact], uses: Sequence[str], asked: Precision | None, engines: Sequence[str] = CPU_ENGINES
) -> list[Chosen]:
    """Choose for every model and use on its own; ParityError with the table where nothing may be served."""
    by_model = {name: {one.candidate: one for one in artefacts if one.model == name} for name in MODEL_NAMES}
    return [
        _choose([by_model[name][one] for one in candidates(use, asked, engines)], use)
        for name in MODEL_NAMES
        for use in uses
    ]


def passing(tried: Sequence[Artefact]) -> list[Artefact]:
    """Return the artefacts of one model that passed; ParityError with the table where none did."""
    passed = [artefact for artefact in tried if artefact.passed]
    if not passed:
        require(
            {f"{one.model} in {one.candidate}": one.checks for one in tried},
            "the exported graphs do not compute what PyTorch computes; nothing was placed",
            "choose another --precision, or export again after fixing the graph",
        )
    return passed


def _choose(tried: Sequence[Artefact], use: str) -> Chosen:
    passed = passing(tried)
    best = _fastest(passed) if use == CPU else passed[0]
    notes = tuple(_why_not(one, best, use) for one in tried if not one.passed)
    return Chosen(use=use, artefact=best, tried=tuple(map(_figures, tried)) if use == CPU else (), notes=notes)


def _fastest(passed: Sequence[Artefact]) -> Artefact:
    best = passed[0]
    for one in passed[1:]:
        if one.run_s * WORTH < best.run_s:
            best = one
    return best


def _figures(one: Artefact) -> dict[str, Any]:
    return {
        "engine": one.engine,
        "precision": one.precision.value,
        "passed": one.passed,
        "run_ms": round(1000 * one.run_s, 3) if one.run_s else None,
    }


def _why_not(one: Artefact, best: Artefact, use: str) -> str:
    # By what a GPU's graph will be computed, was not tried here.
    taken, left = (one.candidate if use == CPU else one.precision.value for one in (best, one))
    return f"{best.model} for {use} is {taken}, not {left}: {fault(one.checks)}"
