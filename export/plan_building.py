"""Builds the TensorRT plans of a repository on this machine: one per model and kind of GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from affserve.export.contract import CLIP_ENCODER, GPU_ONNX_FILE, TEMPORAL_HEAD
from affserve.export.machine import Gpu, find_gpus, installed_tensorrt
from affserve.export.plan_parity import compare_with_graph
from affserve.export.plans import PlanRecord
from affserve.export.to_engine import ENCODER_PROFILE, HEAD_PROFILE, EngineOptions, build_plan
from affserve.train.errors import ExportError

PROFILES = {CLIP_ENCODER.name: ENCODER_PROFILE, TEMPORAL_HEAD.name: HEAD_PROFILE}


def can_build() -> bool:
    """Say whether this machine has what builds plans: a GPU and TensorRT for Python."""
    return bool(find_gpus()) and installed_tensorrt() is not None


def build_plans(
    repository: Path, version: int, options: EngineOptions, progress: Callable[[str], None] = lambda _: None
) -> list[PlanRecord]:
    """Build a plan of both models for every kind of GPU here, from the graphs in the version's folders.

    ExportError without a GPU or TensorRT, ParityError when a plan does not compute what its graph computes.
    """
    gpus = distinct_gpus(find_gpus())
    if not gpus:
        raise ExportError(
            "building TensorRT plans needs the GPU they are for, and this machine shows none (nvidia-smi finds no "
            "GPU): export with --no-build-engines and build them in the serving container with the script that "
            "affserve export --print-trtexec writes"
        )
    return [
        _build(repository / model / str(version), model, gpu, options, progress) for gpu in gpus for model in PROFILES
    ]


def distinct_gpus(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the first GPU of each compute capability: the others of its kind run the same plan."""
    return list({gpu.compute_capability: gpu for gpu in reversed(gpus)}.values())[::-1]


def _build(folder: Path, model: str, gpu: Gpu, options: EngineOptions, progress: Callable[[str], None]) -> PlanRecord:
    told: set[str] = set()

    def report(phase: str, done: float) -> None:
        line = f"TensorRT plan of {model} for {gpu.name}: {10 * int(10 * done)} % ({phase})"
        if (step := line.partition(" %")[0]) not in told:
            told.add(step)
            progress(line)

    graph, profile = folder / GPU_ONNX_FILE, PROFILES[model]
    return build_plan(graph, profile, folder, options, gpu, report, compare_with_graph(graph, profile))
