"""A TensorRT plan on a GPU: opened, warmed up and run. Nothing else of ours touches a device, and this knows nothing
of Triton: arrays in, arrays out.

TensorRT and TensorRT for RTX have the same classes; what differs is in the two functions `_ready_...`. Runs inside
Triton's stub process, where affserve is not importable: the standard library, NumPy, cuda.bindings and the library of
the plan, `trt` below.

One stream does everything, in order. An input is copied once, into memory that the GPU reads by itself (Triton's own is
not), and outputs are copied out of such memory: their addresses never change, so that CUDA graphs stay valid.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from affserve_backend import GraphTensors, LoadError, Tensors, without_paths
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tensorrt as trt

cudart: Any = None
with contextlib.suppress(ImportError):  # the message comes when a plan is opened
    cudart = importlib.import_module("cuda.bindings.runtime")

MINIMUM_DRIVER = "580, of CUDA 13"
CUDA_MAJOR = 13
# TensorRT for RTX compiles a shape's kernels at its first run, captures its graph at the second, uses it at the third.
WARM_UP_RUNS = 3
LOG_LINES_SHOWN = 10
TYPES = {"UINT8": "uint8", "FLOAT": "float32"}  # of the contract's tensors, in the library's words and in NumPy's
LIBRARIES = {  # is it for RTX -> what it is called, its module, how to get it
    True: ("TensorRT for RTX", "tensorrt_rtx_bindings", "pip install 'affserve[rtx]'"),
    False: ("TensorRT", "tensorrt", "pip install tensorrt-cu13 in the version of the plan"),
}


class PlanError(Exception):
    """CUDA or TensorRT failed while it ran."""


PLAN_ERRORS = (PlanError,)


def open_plan(
    model: str,
    path: Path,
    by_capability: Mapping[str, Path],
    device: int | None,
    lengths: Sequence[int],
    other: bool,
    for_rtx: bool,
) -> Plan:
    """Open a plan on GPU `device` and make it ready for `lengths`, and for any other length when `other`.

    path: the plan, unless `by_capability` names one for the GPU's compute capability. lengths: of the free axis, each
    with its own CUDA graph. LoadError, without paths, says why it cannot be and what to do.
    """
    library, module = _library(model, for_rtx)
    if device is None:
        raise LoadError(f"{model}: a plan runs on a GPU, and the configuration asks for another kind of instance")
    card = _card(model, device)
    path = by_capability.get(f"{card.major}.{card.minor}", path)
    _check_version(model, path, library, module.__version__)
    log = _Log()
    logger = _logger_into(module, log)
    plan = _load(module, model, path, for_rtx, card, logger, log)
    name = card.name.decode()
    opened = Plan(module, plan[-1], device, None if other else max(lengths), log)
    opened.words = f"{library} {module.__version__} on {name}"
    opened.kept += [logger, *plan]
    if for_rtx:
        _ready_rtx(module, opened, lengths, other, _cache_file(model, module.__version__, name))
    else:
        _ready_tensorrt(opened, lengths, other)
    return opened


def _load(
    trt: ModuleType, model: str, path: Path, for_rtx: bool, card: Any, logger: trt.ILogger, log: _Log
) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Return the plan as an engine, and the runtime that it needs as long as it lives."""
    runtime = trt.Runtime(logger)
    plan = _read(model, path)
    if for_rtx:
        _check_validity(trt, model, path, runtime, plan, card)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise LoadError(f"{model}: TensorRT {trt.__version__} cannot load {path.name}; it said:{log.tail()}")
    return runtime, engine


class Plan:
    """An engine on one GPU, with its buffers and one execution context for each length that has a CUDA graph.

    A context whose shape never changes keeps its graph valid; the one for other lengths has none.
    """

    words = ""  # the library and the card, for people

    def __init__(self, trt: ModuleType, engine: trt.ICudaEngine, device: int, longest: int | None, log: _Log) -> None:
        self.engine = engine
        self._device, self._log = device, log
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._types = {name: np.dtype(TYPES[engine.get_tensor_dtype(name).name]) for name in names}
        self._shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self.inputs: GraphTensors = {name: (self._types[name].name, self._shapes[name]) for name in given}
        self.outputs: GraphTensors = {
            name: (self._types[name].name, self._shapes[name]) for name in names if name not in given
        }
        (self._input,) = given
        self._free_axis = self._shapes[self._input].index(-1)
        self._stream = _cuda(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        _, _, largest = engine.get_tensor_profile_shape(self._input, 0)
        longest = longest or int(largest[self._free_axis])
        self._buffers = {name: _Buffer(self._bytes(name, longest)) for name in names}
        self.launches: dict[int, Callable[[], None]] = {}  # what starts a length that it was made ready for
        self.other: Any = None  # the context for every other length, where there may be any: its shape changes
        self.kept: list[Any] = []  # what the engine and its contexts need as long as they live

    def run(self, values: NDArray[Any], length: int) -> Tensors:
        """Compute the outputs of an input whose free axis holds at most `length`, as a shape of that length.

        What the input leaves of the shape holds rows of earlier runs, and its outputs are left out.
        """
        _cuda(cudart.cudaSetDevice(self._device))
        rows = values.shape[self._free_axis]
        given = self._buffers[self._input]
        np.copyto(given.host(values.dtype, values.shape), values)
        given.to_gpu(values.nbytes, self._stream)
        self._launch(length)
        for name in self.outputs:
            self._buffers[name].to_host(self._bytes(name, rows), self._stream)
        self.wait()
        return {
            name: self._buffers[name].host(self._types[name], self._shape(name, rows)).copy() for name in self.outputs
        }

    def _launch(self, length: int) -> None:
        if length in self.launches:
            self.launches[length]()
        elif self.other is not None:
            self.bind(self.other, length)
            self.start(self.other)
        else:
            raise PlanError(f"the plan is not ready for a length of {length}")

    def bind(self, context: trt.IExecutionContext, length: int) -> None:
        """Tell a context its shape and where its tensors are."""
        self._accept(context.set_input_shape(self._input, self._shape(self._input, length)), f"a length of {length}")
        for name, buffer in self._buffers.items():
            self._accept(context.set_tensor_address(name, buffer.gpu), f"the buffer of {name}")

    def start(self, context: trt.IExecutionContext) -> None:
        """Have the GPU run a context; it is done when the stream has come so far."""
        self._accept(context.execute_async_v3(int(self._stream)), "to run")

    def captured(self, context: trt.IExecutionContext) -> Callable[[], None]:
        """Return what starts, as one CUDA graph, all that a context starts when it runs."""
        _cuda(
            cudart.cudaStreamBeginCapture(self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        self.start(context)
        graph = _cuda(cudart.cudaStreamEndCapture(self._stream))
        executable = _cuda(cudart.cudaGraphInstantiate(graph, 0))

        def launch() -> None:
            _cuda(cudart.cudaGraphLaunch(executable, self._stream))

        return launch

    def wait(self) -> None:
        """Wait until the GPU has done what it was told."""
        _cuda(cudart.cudaStreamSynchronize(self._stream))

    def new_context(self, *arguments: Any, **named: Any) -> trt.IExecutionContext:
        """Return a context of the engine; LoadError when there is none to be had, for want of memory as a rule."""
        context = self.engine.create_execution_context(*arguments, **named)
        if context is None:
            raise LoadError(f"{self.words} gives no execution context; it said:{self._log.tail()}")
        return context

    def close(self) -> None:
        """Let go of contexts and engine, in this order; the process that ends frees what the GPU holds."""
        self.launches, self.other = {}, None
        del self.engine
        self.kept.clear()

    def _shape(self, name: str, length: int) -> tuple[int, ...]:
        return tuple(length if axis == -1 else axis for axis in self._shapes[name])

    def _bytes(self, name: str, length: int) -> int:
        return int(np.prod(self._shape(name, length))) * self._types[name].itemsize

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise PlanError(f"{self.words} refuses {what}; it said:{self._log.tail()}")


class _Buffer:
    """Memory on the GPU and page-locked memory beside it, which copies go through."""

    def __init__(self, size: int) -> None:
        self.gpu = int(_cuda(cudart.cudaMalloc(size)))
        self._address = int(_cuda(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        self._host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._address))

    def host(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the beginning of the page-locked memory as an array."""
        count = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = self._host[:count].view(dtype).reshape(shape)
        return array

    def to_gpu(self, count: int, stream: Any) -> None:
        """Copy the first bytes, when the stream comes to it."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _cuda(cudart.cudaMemcpyAsync(self.gpu, self._address, count, kind, stream))

    def to_host(self, count: int, stream: Any) -> None:
        """Copy the first bytes back, when the stream comes to it."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _cuda(cudart.cudaMemcpyAsync(self._address, self.gpu, count, kind, stream))


# --- making a plan ready: what the two libraries do each in its way ---


def _ready_tensorrt(plan: Plan, lengths: Sequence[int], other: bool) -> None:
    """Run each length once, then record its CUDA graph; TensorRT leaves that to its caller."""
    for length in lengths:
        context = plan.new_context()
        plan.bind(context, length)
        plan.start(context)
        plan.wait()
        plan.launches[length] = plan.captured(context)
    if other:
        plan.other = plan.new_context()


def _ready_rtx(trt: ModuleType, plan: Plan, lengths: Sequence[int], other: bool, file: Path) -> None:
    """Have kernels compiled for each length, at once and for good, and a graph captured by the library itself.

    Other lengths run on kernels for any: compiling for each of 300 lengths would take the CPU for minutes.
    """
    specialised = plan.engine.create_runtime_config()
    specialised.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    specialised.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    general = plan.engine.create_runtime_config()
    general.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.NONE
    cache = specialised.create_runtime_cache()
    stored = _stored(file)
    if stored:
        cache.deserialize(stored)  # False where it is of another library, card or driver: then it is made anew
    for config in (specialised, general):
        config.set_runtime_cache(cache)
    plan.kept += [specialised, general, cache]
    for length in lengths:
        context = plan.new_context(runtime_config=specialised)
        plan.bind(context, length)
        for _ in range(WARM_UP_RUNS):
            plan.start(context)
            plan.wait()
        plan.launches[length] = partial(plan.start, context)
        stored = _store(file, stored, bytes(cache.serialize()))  # each time: a start that is ended goes on from here
    if other:
        plan.other = plan.new_context(runtime_config=general)


def _cache_file(model: str, version: str, card: str) -> Path:
    """Return where kernels compiled on this machine are kept: a file for each library, kind of card and driver."""
    driver = _cuda(cudart.cudaDriverGetVersion())
    key = re.sub(r"[^\w.-]+", "-", f"{model}-{version}-{card}-cuda{driver}")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "affserve", "rtx-kernels", f"{key}.cache")


def _stored(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _store(file: Path, before: bytes, now: bytes) -> bytes:
    """Write what was compiled, whole or not at all; return it. Where that fails, the next start only takes longer."""
    if now == before:
        return now
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder, file.name)
            part.write_bytes(now)
            part.replace(file)
    return now


# --- what stands in the way ---


def _library(model: str, for_rtx: bool) -> tuple[str, ModuleType]:
    words, module, remedy = LIBRARIES[for_rtx]
    if cudart is None:
        raise LoadError(f"{model}: cuda.bindings is not installed: pip install 'affserve[rtx]'")
    try:
        trt = importlib.import_module(module)
        trt.__version__  # noqa: B018 - a folder of this name on the path is no module of the library
    except (ImportError, OSError, AttributeError) as error:
        told = without_paths(str(error))
        raise LoadError(
            f"{model}: {words} for Python is not installed or cannot be loaded ({remedy}): {told}"
        ) from error
    return words, trt


def _card(model: str, device: int) -> Any:
    """Make GPU `device` this thread's; return its properties. LoadError when it is not there or its driver too old."""
    driver = _cuda(cudart.cudaDriverGetVersion())  # CUDA's number, such as 13000; 0 without a driver
    status, count = cudart.cudaGetDeviceCount()
    if driver and driver // 1000 < CUDA_MAJOR:
        raise LoadError(
            f"{model}: the NVIDIA driver here is too old, of CUDA {driver // 1000}.{driver % 1000 // 10}; expected "
            f"{MINIMUM_DRIVER}, or later"
        )
    if status != cudart.cudaError_t.cudaSuccess or device >= count:
        raise LoadError(f"{model}: this machine shows no NVIDIA GPU {device} to run a plan on: serve with --engine cpu")
    _cuda(cudart.cudaSetDevice(device))
    return _cuda(cudart.cudaGetDeviceProperties(device))


def _read(model: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoadError(f"{model}: {path.name} cannot be read: {error.strerror}") from error


def _check_version(model: str, path: Path, library: str, version: str) -> None:
    """LoadError when the plan's sidecar names another version than is here: a plan belongs to one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        built = json.loads(path.with_name(f"{path.name}.json").read_bytes())["tensorrt"]
        if built != version:
            raise LoadError(
                f"{model}: {path.name} was built with {library} {built} and this machine has {version}, which "
                "loads only its own plans: export again here, or install that version"
            )


def _check_validity(trt: ModuleType, model: str, path: Path, runtime: trt.Runtime, plan: bytes, card: Any) -> None:
    """LoadError with the library's reason when it says that it cannot run a plan on this card."""
    validity, found = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return
    reasons = trt.EngineInvalidityDiagnostics
    words = {
        reasons.VERSION_MISMATCH: "it was built with another version of TensorRT for RTX: export again here",
        reasons.UNSUPPORTED_CC: f"it was not built for compute capability {card.major}.{card.minor}: use --engine cuda",
        reasons.OLD_CUDA_DRIVER: f"the NVIDIA driver is too old: expected {MINIMUM_DRIVER}, or later",
        reasons.OLD_CUDA_RUNTIME: "the CUDA runtime is too old",
        reasons.INSUFFICIENT_GPU_MEMORY: "the GPU has too little memory for it",
        reasons.MALFORMED_ENGINE: "it is damaged: export again",
        reasons.CUDA_ERROR: "CUDA does not work on this machine",
    }
    told = [text for reason, text in words.items() if found & reason.value]
    raise LoadError(
        f"{model}: {path.name} cannot run on {card.name.decode()}: {'; '.join(told) or 'no reason was given'}"
    )


class _Log:
    """Keeps the last errors and warnings of a library."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def take(self, severity: str, text: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            self._lines = [*self._lines, f"{severity}: {without_paths(text)}"][-LOG_LINES_SHOWN:]

    def tail(self) -> str:
        return "".join(f"\n  {line}" for line in self._lines) or " nothing"


def _logger_into(trt: ModuleType, log: _Log) -> trt.ILogger:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.take(severity.name, msg)

    return Logger()


def _cuda(answer: tuple[Any, ...]) -> Any:
    """Return what a function of CUDA gives beside its status; PlanError when that is no success."""
    status, *values = answer
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise PlanError(f"CUDA failed: {text.decode()}")
    return values[0] if values else None
