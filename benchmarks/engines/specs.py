"""Which engines can run the two models on this machine, and why the others cannot.

In comes a model repository, or several of the same model in other precisions; out come specifications that a process of
their own opens (process.py). An engine that cannot be run is a line with its reason, never an error: one command
serves every machine.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.gpus import CUDA, DEVICES
from affserve.export.contract import CLIP_ENCODER, CPU, TEMPORAL_HEAD
from affserve.export.engine.plans import plan_file
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.machine.gpus import find_gpus, installed_tensorrt
from affserve.export.repository.manifest import ArtefactRecord, Manifest, VersionRecord, read_manifest
from affserve.train.errors import DataError, RepositoryError

EAGER, COMPILED, TENSORRT = "pytorch-eager", "pytorch-compiled", "tensorrt"
KINDS = (EAGER, COMPILED, ONNX_RUNTIME, OPENVINO, TENSORRT)
FP32, FP16, BF16, INT8, TF32 = "fp32", "fp16", "bf16", "int8", "tf32"
# On a CPU, ONNX Runtime converts FP16 to FP32 and back around every operator; larger batches only take longer.
FP16_ON_CPU_UP_TO = 8
MODELS = (CLIP_ENCODER.name, TEMPORAL_HEAD.name)


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One way to run one model."""

    kind: str  # one of KINDS
    model: str  # contract name
    precision: str
    device: str
    threads: int  # on a CPU
    path: Path = Path()  # ONNX file or plan
    architecture: dict[str, Any] = field(default_factory=dict)  # PyTorch: what rebuilds the module, with random weights

    @property
    def name(self) -> str:
        """Such as `onnxruntime-int8`."""
        return f"{self.kind}-{self.precision}"

    @property
    def product_type(self) -> str:
        """The type in which its matrix products are computed, for the comparison with the machine's peak."""
        if self.device == CPU:
            return INT8 if self.precision == INT8 else FP32
        # ONNX Runtime rounds the inputs of FP32 products to TF32 on CUDA unless told otherwise; PyTorch does not.
        return TF32 if self.precision == FP32 and self.kind in (ONNX_RUNTIME, TENSORRT) else self.precision

    def obstacle(self, frames: int) -> str | None:
        """Say why a size is left out; None when it is measured."""
        if self.device == CPU and self.precision == FP16 and frames > FP16_ON_CPU_UP_TO:
            return f"FP16 is converted to and fro on a CPU; measured up to {FP16_ON_CPU_UP_TO} frames"
        return None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An engine that cannot be run here."""

    kind: str
    model: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What can be measured, and what not."""

    engines: tuple[EngineSpec, ...]
    skipped: tuple[Skipped, ...]
    flops_graphs: dict[str, Path]  # model -> the graph whose arithmetic is counted
    encoder: str  # architecture
    graphs: tuple[dict[str, Any], ...]  # model, precision, bytes and parity of each, as export found it


def find_engines(repositories: Sequence[Path], device: str, threads: int, kinds: Iterable[str] = KINDS) -> Found:
    """Return every engine for the models of `repositories` (the same model in several precisions) on `device`.

    RepositoryError for a folder that is no repository; DataError for an unknown kind or device.
    """
    wanted = tuple(kinds)
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise DataError(f"unknown engine {', '.join(unknown)}; expected some of {', '.join(KINDS)}")
    if device not in DEVICES:
        raise DataError(f"device is {device!r}, expected {' or '.join(DEVICES)}")
    versions = [(root, *_served(root)) for root in repositories]
    engines: list[EngineSpec] = []
    skipped: list[Skipped] = []
    for model, kind in product(MODELS, wanted):
        obstacle, find_ways = _ENGINES[kind]
        reason = obstacle(device)
        ways = [] if reason else find_ways(model, versions, device)
        engines += [EngineSpec(kind=kind, model=model, device=device, threads=threads, **way) for way in ways]
        if not ways:
            skipped.append(
                Skipped(kind=kind, model=model, reason=reason or (NO_PLAN if kind == TENSORRT else NO_GRAPH))
            )
    return Found(
        engines=tuple(engines),
        skipped=tuple(skipped),
        flops_graphs={model: _flops_graph(model, versions) for model in MODELS},
        encoder=str(versions[0][2].encoder["architecture"]["architecture"]),
        graphs=tuple(
            {name: getattr(one, name) for name in ("model", "precision", "bytes", "parity")}
            for _, one in _artefacts(versions)
        ),
    )


Versions = Sequence[tuple[Path, int, VersionRecord]]
Way = dict[str, Any]  # what else an EngineSpec has: the precision, and a path or an architecture
NO_GRAPH = "the repository has no graph for it: affserve export ... --for gpu writes the FP16 one"
NO_PLAN = "the repository has no plan for this GPU: affserve export ... --build-engines makes it"


def _pytorch(model: str, versions: Versions, device: str) -> list[Way]:
    record = versions[0][2]
    heads = {"heads": [head["architecture"] for head in record.heads]}
    architecture = dict(record.encoder["architecture"]) if model == CLIP_ENCODER.name else heads
    precisions = (FP32,) if device == CPU else (FP32, FP16)
    return [{"precision": precision, "architecture": architecture} for precision in precisions]


def _onnx(model: str, versions: Versions, device: str) -> list[Way]:
    found: dict[str, Path] = {}
    for path, artefact in _artefacts(versions):
        # A CPU's INT8 graph has operators in layouts that CUDA only emulates.
        if artefact.model == model and not (device == CUDA and artefact.precision == INT8):
            found.setdefault(artefact.precision, path)
    order = (FP32, FP16, BF16, INT8)
    return [{"precision": precision, "path": found[precision]} for precision in order if precision in found]


def _openvino(model: str, versions: Versions, device: str) -> list[Way]:
    """OpenVINO rounds the products of the half graph to bfloat16; the others it computes as they are."""
    graphs = {way["precision"]: way for way in _onnx(model, versions, device)}
    return [{**way, "precision": BF16 if name in (FP16, BF16) else name} for name, way in graphs.items()]


def _plans(model: str, versions: Versions, device: str) -> list[Way]:
    name = plan_file(find_gpus()[0].compute_capability)
    paths = [root / model / str(number) / name for root, number, _ in versions]
    return [{"precision": FP16, "path": path} for path in paths if path.is_file()][:1]


def _served(root: Path) -> tuple[int, VersionRecord]:
    manifest: Manifest | None = read_manifest(root)
    if manifest is None:
        raise RepositoryError(f"{root} has no manifest; expected a repository that `affserve export` wrote")
    return manifest.served, manifest.versions[manifest.served]


def _artefacts(versions: Versions) -> Iterator[tuple[Path, ArtefactRecord]]:
    """Yield the graphs that are served and there."""
    for root, number, record in versions:
        for artefact in record.artefacts:
            if f"/{number}/" in artefact.path and (path := root / artefact.path).is_file():
                yield path, artefact


def _flops_graph(model: str, versions: Versions) -> Path:
    """Return a graph of the model; the same work is done in every precision, so any one of them counts it."""
    graphs = [(path, one) for path, one in _artefacts(versions) if one.model == model]
    found = next((path for wanted in (FP32, INT8, FP16) for path, one in graphs if one.precision == wanted), None)
    if found is None:
        raise RepositoryError(f"no graph of {model} in {versions[0][0]}; write it again with: affserve export")
    return found


def _pytorch_obstacle(device: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install 'affserve[export]'"
    if device == CUDA:
        import torch

        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} sees no GPU"
    return None


def _compiler_obstacle(device: str) -> str | None:
    if reason := _pytorch_obstacle(device):
        return reason
    if device == CPU and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler, and g++, clang++ and c++ are not on PATH"
    return None


def _onnx_obstacle(device: str) -> str | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'affserve[serve]'"
    if device == CUDA:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this ONNX Runtime is for the CPU: install onnxruntime-gpu in place of onnxruntime"
    return None


def _openvino_obstacle(device: str) -> str | None:
    if device != CPU:
        return "OpenVINO computes on the CPU here"
    return None if importlib.util.find_spec(OPENVINO) else "OpenVINO is not installed: pip install 'affserve[serve]'"


def _tensorrt_obstacle(device: str) -> str | None:
    if device == CPU:
        return "TensorRT runs on a GPU"
    if installed_tensorrt() is None:
        return "TensorRT for Python is not installed, or its libraries cannot be loaded"
    return None if find_gpus() else "no NVIDIA GPU (nvidia-smi finds none)"


# Of each kind: what stands in its way on a device, and the ways to run a model of some repositories.
_ENGINES: Mapping[str, tuple[Callable[[str], str | None], Callable[[str, Versions, str], list[Way]]]] = {
    EAGER: (_pytorch_obstacle, _pytorch),
    COMPILED: (_compiler_obstacle, _pytorch),
    ONNX_RUNTIME: (_onnx_obstacle, _onnx),
    OPENVINO: (_openvino_obstacle, _openvino),
    TENSORRT: (_tensorrt_obstacle, _plans),
}
