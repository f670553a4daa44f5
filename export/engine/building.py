"""ONNX to TensorRT plans: built for the GPU at hand, verified, and written with their sidecars or not at all.

The order of steps is here; what touches TensorRT is in `builder` and `loaded`, which are imported only when a plan is
built: most machines have no TensorRT.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from affserve.export.contract import CLIP_ENCODER, GPU_ONNX_FILE, TEMPORAL_HEAD
from affserve.export.engine.parity import compare_with_graph
from affserve.export.engine.plans import PlanRecord, plan_file, record_file, write_record
from affserve.export.engine.profile import ENCODER_PROFILE, HEAD_PROFILE, EngineOptions
from affserve.export.machine.gpus import Gpu, find_gpus, installed_tensorrt
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, TRITON_CONTAINER_TAG
from affserve.train.errors import ExportError, ParityError
from affserve.train.files import file_sha256

if TYPE_CHECKING:
    from affserve.export.artefacts.parity import Check
    from affserve.export.engine.profile import Profile, Runner


"""A model as a function: its one input to its outputs, in the order of the graph's outputs."""


def build_plan(
    onnx: Path,
    profile: Profile,
    folder: Path,
    options: EngineOptions,
    gpu: Gpu,
    progress: Callable[[str, float], None] = lambda _phase, _done: None,
    check: Callable[[Runner], list[Check]] | None = None,
) -> PlanRecord:
    """Build, verify and write `<folder>/model.smXX.plan` with its sidecar; return what the sidecar says.

    progress: called with a phase of the build and the part of the whole that is done (0 to 1), from several threads;
    check: compares the plan, run on the GPU, with what it was built from; None: parity.compare_with_graph. One
    failed check and nothing is written.
    ExportError or ParityError; a plan that stood there is then untouched. Ctrl-C stops the build within a step.
    """
    version = require_tensorrt(options)
    from affserve.export.engine import builder, loaded
    from affserve.export.engine.parity import compare_with_graph

    started = time.perf_counter()
    built = builder.build(onnx, profile, options, gpu, progress)
    engine = loaded.open_engine(built.plan, gpu)
    inspector = loaded.verify(engine, profile, built.outputs, onnx)
    check = check or compare_with_graph(onnx, profile)
    checks = check(loaded.PlanRunner(engine, profile, built.outputs))
    _require(checks, onnx)
    record = PlanRecord(
        model=profile.model.name,
        built_by="affserve",
        tensorrt=version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        onnx_sha256=file_sha256(onnx),
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        bytes=len(built.plan),
        seconds=round(time.perf_counter() - started, 1),
        flags=built.flags,
        profile={name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()},
        inspector=inspector,
        parity=[asdict(one) for one in checks],
        notices=built.notices,
    )
    write_plan(folder / plan_file(gpu.compute_capability), built.plan, record)
    return record


def require_tensorrt(options: EngineOptions) -> str:
    """Return the installed TensorRT's version; ExportError when it is absent or not the serving container's."""
    found = installed_tensorrt()
    container = "or let the serving container build the plans, with the script of affserve export --print-trtexec"
    if found is None:
        raise ExportError(
            f"TensorRT for Python is not installed (or its libraries cannot be loaded): pip install "
            f"{TENSORRT_REQUIREMENT}, {container}"
        )
    if found != TENSORRT_VERSION and not options.any_version:
        raise ExportError(
            f"TensorRT {found} is installed, and the serving container {TRITON_CONTAINER_TAG} has {TENSORRT_VERSION}, "
            f"which cannot load plans of another version: pip install {TENSORRT_REQUIREMENT}, {container}, or build "
            "for another server with --any-tensorrt"
        )
    return found


def _require(checks: list[Check], onnx: Path) -> None:
    if not all(check.passed for check in checks):
        table = "\n".join(f"  {check}" for check in checks)
        raise ParityError(
            f"the TensorRT plan does not compute what {onnx.name} computes; it was not written:\n{table}\n"
            "expected every line within its limit; build again without a timing cache, or report this table"
        )


def write_plan(path: Path, plan: bytes, record: PlanRecord) -> None:
    """Write a plan and its sidecar so that whoever sees the plan sees its own sidecar beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(plan)
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would lock out a server of another user
        write_record(record_file(path), record)
        os.replace(staging, path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


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
