"""One engine in a process of its own: opened, fed, timed, and its memory read.

Every engine takes a NumPy array in main memory and answers in main memory, so copies to a GPU and back are in every
time alike. Only what an engine needs is imported: its memory is counted from after the imports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.engines.specs import COMPILED, EAGER, FP16, TENSORRT, EngineSpec
from affserve.benchmarks.measuring.gpus import CUDA, gpu_library
from affserve.benchmarks.measuring.processes import forget_peak, memory_mib
from affserve.export.contract import CLIP_ENCODER, CPU, FEATURE_WIDTH, FEATURES, FRAMES
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.train.errors import ExportError

T = TypeVar("T")
Call = Callable[[NDArray[Any]], object]
MIB = 2**20


class OpenEngine:
    """An engine that is loaded, and the input it is timed on."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        opener = _OPENERS[spec.kind]
        _import_for(spec.kind)
        self._resident_before_mib = memory_mib("VmRSS")
        self._gpu_bytes = 0  # since before it was opened
        gpu_before = gpu_used_bytes(spec.device)
        started = time.perf_counter()
        self._call = opener(spec)
        self.open_s = time.perf_counter() - started
        self._gpu_bytes += gpu_used_bytes(spec.device) - gpu_before
        self._feed: NDArray[Any] = np.empty(0)

    def prepare(self, frames: int) -> dict[str, float]:
        """Make the input of a size and call twice; return the seconds of the first (compiling) and second call."""
        self._feed = feed(self.spec.model, frames)
        gpu_before = gpu_used_bytes(self.spec.device)
        forget_peak()
        first_s, second_s = (self._timed() for _ in range(2))
        self._gpu_bytes += gpu_used_bytes(self.spec.device) - gpu_before
        return {"first_s": first_s, "second_s": second_s}

    def time_calls(self, calls: int, warm: bool) -> list[float]:
        """Return the seconds of so many calls; warm: one more before them that does not count."""
        if warm:
            self._timed()
        return [self._timed() for _ in range(calls)]

    def memory_mib(self) -> dict[str, float]:
        """Return what it has added to the process at most since the last `prepare`, and to the GPU so far."""
        told = {"memory_mib": round(memory_mib("VmHWM") - self._resident_before_mib, 1)}
        return {**told, "gpu_mib": round(self._gpu_bytes / MIB, 1)} if self.spec.device == CUDA else told

    def _timed(self) -> float:
        started = time.perf_counter()
        self._call(self._feed)
        return time.perf_counter() - started


def feed(model: str, frames: int) -> NDArray[Any]:
    """Return random input: (N, 224, 224, 3) uint8 for the encoder, (1, T, 512) float32 for the head."""
    rng = np.random.default_rng(0)
    if model == CLIP_ENCODER.name:
        return rng.integers(0, 256, (frames, *FRAMES.shape), dtype=np.uint8)
    return rng.standard_normal((1, frames, FEATURE_WIDTH)).astype(np.float32)


def _import_for(kind: str) -> None:
    """Load the libraries, which all engines of a kind share, before memory is counted."""
    if kind in (EAGER, COMPILED, TENSORRT):
        import affserve.export.graphs.head
        import affserve.train.models.encoder  # with open_clip, 230 MiB that are not the engine's
    if kind in (ONNX_RUNTIME, OPENVINO):
        import affserve.export.artefacts.sessions
    if kind == TENSORRT:
        import affserve.export.engine.loaded  # noqa: F401


def _open_pytorch(spec: EngineSpec) -> Call:
    import torch

    torch.set_num_threads(spec.threads)
    module = _module(spec.model, spec.architecture).eval().to(spec.device)
    if spec.kind == COMPILED:
        # The first size is compiled as such, the second with a free batch axis that serves the others too; on a GPU
        # each is recorded as a CUDA graph.
        mode = "reduce-overhead" if spec.device == CUDA else None
        module = cast("torch.nn.Module", torch.compile(module, mode=mode))
    half = spec.device == CUDA and spec.precision == FP16

    def call(values: NDArray[Any]) -> object:
        with torch.inference_mode(), torch.autocast(spec.device, torch.float16, enabled=half):
            answer = module(torch.from_numpy(values).to(spec.device))
            return [one.cpu().numpy() for one in (answer if isinstance(answer, tuple) else (answer,))]

    return call


def _module(model: str, architecture: Mapping[str, Any]) -> Any:
    """Rebuild a module as a manifest describes it, with random weights: speed does not depend on them."""
    import torch

    from affserve.export.graphs.head import HeadGraph
    from affserve.train.models.encoder import ClipEncoder, EncoderConfig
    from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead, TemporalHeadConfig

    torch.manual_seed(0)
    if model == CLIP_ENCODER.name:
        return ClipEncoder(EncoderConfig(**architecture))
    heads: list[TemporalHead | HeadEnsemble] = []
    for one in architecture["heads"]:
        members = [TemporalHead(TemporalHeadConfig(**config)) for config in one.get("members", [one])]
        heads.append(HeadEnsemble(members) if "members" in one else members[0])
    return HeadGraph(heads)


def _open_onnx(spec: EngineSpec) -> Call:
    from affserve.export.artefacts.sessions import open_graph

    session = open_graph(spec.path, spec.threads, spec.device)
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def _open_openvino(spec: EngineSpec) -> Call:
    from affserve.export.artefacts.sessions import Candidate, open_session
    from affserve.export.precision.tolerances import Precision

    session = open_session(spec.path, Candidate(Precision(spec.precision), OPENVINO), spec.threads)
    name = (FRAMES if spec.model == CLIP_ENCODER.name else FEATURES).name
    return lambda values: session({name: values})


def _open_plan(spec: EngineSpec) -> Call:
    from affserve.export.engine.loaded import PlanRunner, open_engine
    from affserve.export.engine.profile import ENCODER_PROFILE, HEAD_PROFILE
    from affserve.export.machine.gpus import find_gpus

    loaded = open_engine(spec.path.read_bytes(), find_gpus()[0])
    profile = ENCODER_PROFILE if spec.model == CLIP_ENCODER.name else HEAD_PROFILE
    names = [loaded.engine.get_tensor_name(index) for index in range(loaded.engine.num_io_tensors)]
    return PlanRunner(loaded, profile, [name for name in names if name not in profile.shapes])


_OPENERS: Mapping[str, Callable[[EngineSpec], Call]] = {
    EAGER: _open_pytorch,
    COMPILED: _open_pytorch,
    ONNX_RUNTIME: _open_onnx,
    OPENVINO: _open_openvino,
    TENSORRT: _open_plan,
}


def gpu_used_bytes(device: str) -> int:
    """Return what is in use on the first GPU, by whomever; engines are opened one after the other."""
    library = gpu_library() if device != CPU else None
    if library is None:
        return 0
    return int(library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(0)).used)


_engine: OpenEngine | None = None  # of this process


def open_here(spec: EngineSpec) -> float:
    """Open the one engine of this process; return the seconds it took."""
    global _engine
    _engine = OpenEngine(spec)
    return _engine.open_s


def do_here(method: Callable[..., T], *arguments: Any) -> T:
    """Call a method of this process's engine."""
    if _engine is None:
        raise ExportError("this process has opened no engine")
    return method(_engine, *arguments)
