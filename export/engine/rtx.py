"""Plans of TensorRT for RTX: one for all RTX 30, 40 and 50 cards, built on any machine, with a GPU or without.

A plan that no card here can run is not compared with its graph: its layers are judged by the builder's own account,
and its answers by the self-test of the server that loads it. Kernels are compiled on the card, at the first start.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from affserve.export.engine import builder, compiled
from affserve.export.engine.building import keep
from affserve.export.engine.plans import PlanRecord
from affserve.export.engine.profile import RTX_PROFILES, Profile
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.machine.gpus import installed_tensorrt
from affserve.export.pins import RTX_CAPABILITIES, RTX_MODULE, RTX_VERSION, rtx_requirement
from affserve.train.errors import ExportError

if TYPE_CHECKING:
    import tensorrt as trt

NOT_COMPARED = "built without a card: its answers are compared with PyTorch's when a server starts on one"


def build_rtx_plans(
    repository: Path, version: int, progress: Callable[[str], None] = lambda _: None
) -> list[PlanRecord]:
    """Build both models' plans from the graphs in a version's folders; ExportError as `build_rtx_plan`."""
    return [
        build_rtx_plan(repository / profile.model.name / str(version), profile, progress) for profile in RTX_PROFILES
    ]


def build_rtx_plan(folder: Path, profile: Profile, progress: Callable[[str], None] = lambda _: None) -> PlanRecord:
    """Build a plan of `<folder>/model.gpu.onnx` and write it beside the graph; return its sidecar's content.

    ExportError when TensorRT for RTX is not there, cannot read the graph, or compiles it to what would be slow; what
    stood there is then untouched.
    """
    library = require_rtx()
    started, onnx = time.perf_counter(), folder / GPU_ONNX_FILE

    def tell(phase: str) -> None:
        progress(f"plan of {profile.model.name} for RTX cards, no GPU needed: {phase}")

    built = builder.interruptible(
        lambda cancelled: builder.build(library, onnx, profile, tell, cancelled, partial(portable, library))
    )
    layers, softmaxes = compiled.read_layers(built.account), compiled.attentions(onnx)
    compiled.check(layers, softmaxes, f"the plan of {profile.model.name} for RTX cards")
    return keep(
        built,
        onnx,
        profile,
        started,
        tensorrt=library.__version__,
        rtx=True,
        compute_capabilities=list(RTX_CAPABILITIES),
        inspector=compiled.summarise(layers, softmaxes),
        notices=[NOT_COMPARED, *built.notices],
    )


def can_build_rtx() -> bool:
    """Say whether this machine has TensorRT for RTX, of whatever version."""
    return installed_tensorrt(RTX_MODULE) is not None


def require_rtx() -> ModuleType:
    """Return the module of TensorRT for RTX; ExportError when it is absent or another version than is pinned."""
    found = installed_tensorrt(RTX_MODULE)
    if found != RTX_VERSION:
        raise ExportError(
            f"building plans for RTX cards needs TensorRT for RTX {RTX_VERSION}, found {found or 'none'}: "
            f"pip install 'affserve[rtx]' ({rtx_requirement()})"
        )
    return importlib.import_module(RTX_MODULE)


@contextmanager
def portable(trt: ModuleType, config: trt.IBuilderConfig) -> Iterator[builder.Settings]:
    """Name the cards that a plan is for: all in one plan."""
    config.num_compute_capabilities = len(RTX_CAPABILITIES)
    for index, capability in enumerate(RTX_CAPABILITIES):
        kind = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
        if not config.set_compute_capability(kind, index):
            raise ExportError(f"TensorRT for RTX {trt.__version__} does not build for compute capability {capability}")
    yield builder.Settings()
