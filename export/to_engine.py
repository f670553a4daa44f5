"""ONNX to a TensorRT plan: built for the GPU at hand, verified, and written with its sidecar or not at all.

What may be asked for, and the order of steps, are here; what touches TensorRT is in engine_builder.py and
engine_check.py, which are imported only when a plan is built: most machines have no TensorRT.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.container import TENSORRT_REQUIREMENT, TENSORRT_VERSION, TRITON_CONTAINER_TAG
from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD, ModelSpec
from affserve.export.machine import Gpu, installed_tensorrt
from affserve.export.plans import PlanRecord, file_sha256, plan_file, record_file, write_record
from affserve.train.errors import ExportError, ParityError
from affserve.train.windows import WINDOW_FRAMES

if TYPE_CHECKING:
    from affserve.export.parity import Check

OPTIMUM_FRAMES = 64  # two chunks of two clients; what the encoder's kernels are chosen for

Shape = tuple[int, ...]
Runner = Callable[[NDArray[Any]], list[NDArray[np.float32]]]
"""A model as a function: its one input to its outputs, in the order of the graph's outputs."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a plan is built."""

    optimisation_level: int = 3  # TensorRT's 0 (seconds, slow plan) to 5 (long search); 3 is its default
    workspace_bytes: int = 4 << 30  # scratch memory a kernel may use on the GPU
    timing_cache: Path | None = None  # measurements kept between builds; one file per GPU kind beside this name
    any_version: bool = False  # build with another TensorRT than the serving container's

    def __post_init__(self) -> None:
        if not 0 <= self.optimisation_level <= 5:
            raise ExportError(f"optimisation_level is {self.optimisation_level}; expected 0 to 5")
        if self.workspace_bytes < 1 << 20:
            raise ExportError(f"workspace_bytes is {self.workspace_bytes}; expected at least 1 MiB (1048576)")

    def timing_cache_file(self, gpu: Gpu) -> Path | None:
        """Return the timing cache of one kind of GPU: caches of different ones cannot be merged."""
        if self.timing_cache is None:
            return None
        kind = gpu.compute_capability.replace(".", "")
        return self.timing_cache.with_name(f"{self.timing_cache.name}.sm{kind}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes a plan is built for: input name -> (smallest, the one to be fastest at, largest)."""

    model: ModelSpec
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def _profile(model: ModelSpec, optimum: int) -> Profile:
    (spec,) = model.inputs
    frames = (1, optimum, WINDOW_FRAMES)
    if model.max_batch_size:
        return Profile(model=model, shapes={spec.name: _three((n, *spec.shape) for n in frames)})
    # The batch axis of 1 that Triton's reshape adds, then the time axis.
    return Profile(model=model, shapes={spec.name: _three((1, n, *spec.shape[1:]) for n in frames)})


def _three(shapes: Any) -> tuple[Shape, Shape, Shape]:
    smallest, optimum, largest = shapes
    return smallest, optimum, largest


ENCODER_PROFILE = _profile(CLIP_ENCODER, OPTIMUM_FRAMES)
HEAD_PROFILE = _profile(TEMPORAL_HEAD, WINDOW_FRAMES)


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
    check: compares the plan, run on the GPU, with what it was built from; None: plan_parity.compare_with_graph. One
    failed check and nothing is written.
    ExportError or ParityError; a plan that stood there is then untouched. Ctrl-C stops the build within a step.
    """
    version = require_tensorrt(options)
    from affserve.export import engine_builder, engine_check
    from affserve.export.plan_parity import compare_with_graph

    started = time.perf_counter()
    built = engine_builder.build(onnx, profile, options, gpu, progress)
    engine = engine_check.open_engine(built.plan, gpu)
    inspector = engine_check.verify(engine, profile, built.outputs, onnx)
    check = check or compare_with_graph(onnx, profile)
    checks = check(engine_check.PlanRunner(engine, profile, built.outputs))
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
