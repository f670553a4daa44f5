"""ONNX to TensorRT plans: built for the GPU at hand, verified, and written with their sidecars or not at all.

The order of steps is here; what touches TensorRT and the GPU is in `loaded` and `device`, which are imported only when
a plan is built: most machines have no TensorRT.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from affserve.export.artefacts.comparing import require
from affserve.export.engine import builder
from affserve.export.engine.parity import compare_with_graph
from affserve.export.engine.plans import PlanRecord, record_file, write_record
from affserve.export.engine.profile import PROFILES, EngineOptions, Profile
from affserve.export.engine.tuning import tuned
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.machine.gpus import Gpu, find_gpus, installed_tensorrt
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, TRITON_CONTAINER_TAG
from affserve.train.errors import ExportError
from affserve.train.files import file_sha256, write_file

Progress = Callable[[str], None]


def can_build() -> bool:
    """Say whether this machine has what builds plans: a GPU and TensorRT for Python."""
    return bool(find_gpus()) and installed_tensorrt() is not None


def build_plans(
    repository: Path, version: int, options: EngineOptions, progress: Progress = lambda _: None
) -> list[PlanRecord]:
    """Build a plan of both models for every kind of GPU here, from the graphs in the version's folders.

    ExportError without a GPU or TensorRT, ParityError when a plan does not compute what its graph computes.
    """
    gpus = distinct_gpus(find_gpus())
    if not gpus:
        raise ExportError(
            "building TensorRT plans needs the GPU they are for, and this machine shows none (nvidia-smi finds no "
            "GPU): export with --no-build-engines and build them in the serving container with the script that "
            "affserve export --print-trtexec writes; plans for RTX cards need no GPU: pip install 'affserve[rtx]'"
        )
    return [
        build_plan(repository / profile.model.name / str(version), profile, gpu, options, progress)
        for gpu in gpus
        for profile in PROFILES
    ]


def distinct_gpus(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the first GPU of each compute capability: the others of its kind run the same plan."""
    return list({gpu.compute_capability: gpu for gpu in reversed(gpus)}.values())[::-1]


def build_plan(
    folder: Path, profile: Profile, gpu: Gpu, options: EngineOptions, progress: Progress = lambda _: None
) -> PlanRecord:
    """Build a plan of `<folder>/model.gpu.onnx`, verify it and write it beside the graph; return its sidecar's content.

    ExportError or ParityError; what stood there is then untouched. Ctrl-C stops the build within a step.
    """
    version = require_tensorrt(options)
    import tensorrt
    import torch

    from affserve.export.engine import loaded
    from affserve.export.engine.device import cuda_device

    started, onnx = time.perf_counter(), folder / GPU_ONNX_FILE

    def tell(phase: str) -> None:
        progress(f"TensorRT plan of {profile.model.name} for {gpu.name}: {phase}")

    def build(cancelled: Event) -> builder.Built:
        with torch.cuda.device(cuda_device(gpu)):
            return builder.build(tensorrt, onnx, profile, tell, cancelled, partial(tuned, tensorrt, options, gpu))

    built = builder.interruptible(build)
    engine = loaded.open_engine(built.plan, gpu)
    inspector = loaded.verify(engine, profile, built.outputs, onnx)
    checks = compare_with_graph(loaded.PlanRunner(engine, profile, built.outputs), onnx, profile)
    require(
        {f"{profile.model.name} for {gpu.name}": checks},
        f"the TensorRT plan does not compute what {onnx.name} computes; it was not written",
        "build again without a timing cache, or report this table",
    )
    return keep(
        built,
        onnx,
        profile,
        started,
        tensorrt=version,
        gpu=gpu.name,
        compute_capabilities=[gpu.compute_capability],
        driver=gpu.driver,
        inspector=inspector,
        parity=[asdict(one) for one in checks],
        notices=built.notices,
    )


def keep(built: builder.Built, onnx: Path, profile: Profile, started_s: float, **known: Any) -> PlanRecord:
    """Write a plan beside the graph it was built from; known: what its sidecar says besides, which is returned."""
    record = PlanRecord(
        model=profile.model.name,
        built_by="affserve",
        onnx_sha256=file_sha256(onnx),
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        bytes=len(built.plan),
        seconds=round(time.perf_counter() - started_s, 1),
        flags=built.flags,
        profile=profile.as_lists(),
        **known,
    )
    write_plan(onnx.with_name(record.file), built.plan, record)
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


def write_plan(path: Path, plan: bytes, record: PlanRecord) -> None:
    """Write a plan and its sidecar so that whoever sees the plan sees its own sidecar beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    write_record(record_file(path), record)
    write_file(path, plan)
