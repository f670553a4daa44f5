"""TensorRT's builder: an ONNX file in, the bytes of a plan out.

TensorRT 11 builds what the graph says, type by type: half precision is made in the ONNX file, and no flag here could
change it. Everything TensorRT says is collected, so that a failure tells all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tensorrt as trt  # noqa: TID253 - this file is about it

from affserve.export.engine.device import on_gpu
from affserve.export.engine.profile import EngineOptions, Profile
from affserve.export.machine.gpus import Gpu
from affserve.train.errors import ExportError
from affserve.train.files import write_file

POLL_S = 0.1  # how long Ctrl-C may wait
LOG_LINES_SHOWN = 20  # in an error
LOG_LINES_KEPT = 50  # in the record of a plan

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the builder made."""

    plan: bytes
    outputs: tuple[str, ...]  # names, in the order of the graph
    flags: dict[str, Any]  # settings of the build, for the record
    notices: list[str]


class CollectingLogger(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT says; several of its threads may speak."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.problems: list[str] = []  # errors and warnings, in order

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take one message."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
            self.problems.append(f"{severity.name}: {msg}")

    def tail(self) -> str:
        """Return the last messages as an indented block."""
        lines = self.problems[-LOG_LINES_SHOWN:]
        return "".join(f"\n  {line}" for line in lines) or "\n  (TensorRT said nothing)"


class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Turns TensorRT's nested phases into one figure that only grows, and stops the build when asked to.

    TensorRT calls it from several threads. `report` must not raise: an exception would end in TensorRT's own code.
    """

    def __init__(self, report: Callable[[str, float], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self.cancelled = threading.Event()
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._done = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Take note of a phase that begins."""
        with self._lock:
            parent = self._phases.get(parent_phase) if parent_phase is not None else None
            self._phases[phase_name] = _Phase(parent=parent, steps=max(1, num_steps))
        self._tell(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Take note of a step (0 is the first); say whether the build is to go on."""
        with self._lock:
            if (phase := self._phases.get(phase_name)) is not None:
                phase.done = step + 1
        self._tell(phase_name)
        return not self.cancelled.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """Take note of a phase that ends, all its steps done or not."""
        with self._lock:
            phase = self._phases.pop(phase_name, None)
            if phase is not None and phase.parent is None:
                self._done = max(self._done, 1.0)
        self._tell(phase_name)

    def _tell(self, phase_name: str) -> None:
        with self._lock:
            phase = self._phases.get(phase_name)
            if phase is not None:
                self._done = max(self._done, phase.overall())
            done = self._done
        self._report(phase_name, done)


@dataclass(kw_only=True)
class _Phase:
    parent: _Phase | None
    steps: int
    done: int = 0  # steps

    def overall(self, inner: float = 0.0) -> float:
        """Return the part of the outermost phase that is done; inner: the part of the current step that is."""
        part = min(1.0, (self.done + inner) / self.steps)
        return part if self.parent is None else self.parent.overall(part)


def build(
    onnx: Path, profile: Profile, options: EngineOptions, gpu: Gpu, report: Callable[[str, float], None]
) -> Built:
    """Build a plan for `gpu`; ExportError with everything that TensorRT said when it cannot."""
    monitor = ProgressMonitor(report)
    return interruptible(lambda: on_gpu(gpu, lambda: _build(onnx, profile, options, gpu, monitor)), monitor.cancelled)


def interruptible(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Do `work` in another thread; at Ctrl-C set `cancelled`, wait until it has ended and raise KeyboardInterrupt.

    The build is one long call into TensorRT, during which a signal would not reach Python in the thread that made it.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt") as pool:
        try:
            return _wait(pool.submit(work))
        except KeyboardInterrupt:
            cancelled.set()
            raise


def _wait(future: Future[T]) -> T:
    while True:
        try:
            return future.result(timeout=POLL_S)
        except NotYet:
            if future.done():  # the work itself ran into a timeout
                return future.result()


def _build(onnx: Path, profile: Profile, options: EngineOptions, gpu: Gpu, monitor: ProgressMonitor) -> Built:
    logger = CollectingLogger()
    builder = start_builder(logger)
    network = builder.create_network()
    parse(onnx, network, logger)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimisation_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector tells types only then; costs no time
    config.progress_monitor = monitor
    add_profile(builder, config, profile, logger)
    cache_file = options.timing_cache_file(gpu)
    cache, notices = load_timing_cache(config, cache_file)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        if monitor.cancelled.is_set():
            raise ExportError(f"building a plan from {onnx.name} was cancelled")
        raise ExportError(f"TensorRT could not build a plan from {onnx.name}; it said:{logger.tail()}")
    if cache_file is not None:
        save_timing_cache(config, cache, cache_file)
    return Built(
        plan=bytes(memory),
        outputs=tuple(network.get_output(index).name for index in range(network.num_outputs)),
        flags=describe_config(config, options),
        notices=[*notices, *logger.problems[:LOG_LINES_KEPT]],
    )


def start_builder(logger: CollectingLogger) -> trt.Builder:
    """Start TensorRT's builder; ExportError when it finds no GPU or no libraries."""
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise ExportError(
            "TensorRT's builder did not start; it needs a GPU, its driver and all of TensorRT's libraries. It said:"
            f"{logger.tail()}"
        ) from error


def parse(onnx: Path, network: trt.INetworkDefinition, logger: CollectingLogger) -> None:
    """Read the ONNX file into the network; ExportError with every error of the parser."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)):
        return
    errors = "".join(f"\n  {describe_error(parser.get_error(index))}" for index in range(parser.num_errors))
    raise ExportError(
        f"TensorRT {trt.__version__} cannot read {onnx}: {parser.num_errors} errors{errors or logger.tail()}\n"
        "expected only operators and types of its ONNX support table; export the graph again, or report these errors"
    )


def describe_error(error: trt.ParserError) -> str:
    """Return one line: which node, what is wrong, and where in the parser that was found."""
    where = f"{error.file()}:{error.line()} in {error.func()}"
    return (
        f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.code()}: {error.desc()} [{where}]"
    )


def add_profile(builder: trt.Builder, config: trt.IBuilderConfig, profile: Profile, logger: CollectingLogger) -> None:
    """Tell the builder the shapes to build for."""
    shapes = builder.create_optimization_profile()
    for name, (smallest, optimum, largest) in profile.shapes.items():
        shapes.set_shape(name, min=smallest, opt=optimum, max=largest)
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(f"TensorRT refuses the shapes {dict(profile.shapes)}; it said:{logger.tail()}")


def load_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> tuple[trt.ITimingCache, list[str]]:
    """Attach the timing cache of earlier builds, or an empty one with a notice when it is another machine's."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, []
    empty = config.create_timing_cache(b"")
    config.set_timing_cache(empty, ignore_mismatch=False)
    return empty, [f"timing cache {path} is of another GPU or TensorRT version: not used, and replaced by this build's"]


def save_timing_cache(config: trt.IBuilderConfig, cache: trt.ITimingCache, path: Path) -> None:
    """Write the measurements of this build, with those another build has written meanwhile."""
    if path.is_file():
        meanwhile = config.create_timing_cache(path.read_bytes())
        if meanwhile is not None:
            cache.combine(meanwhile, ignore_mismatch=False)  # does nothing with another machine's
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, bytes(cache.serialize()))


def describe_config(config: trt.IBuilderConfig, options: EngineOptions) -> dict[str, Any]:
    """Return the settings of a build as plain values."""
    return {
        "builder_optimization_level": config.builder_optimization_level,
        "workspace_bytes": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "hardware_compatibility": config.hardware_compatibility_level.name,
        "tf32": config.get_flag(trt.BuilderFlag.TF32),
        "timing_cache": options.timing_cache is not None,
    }
