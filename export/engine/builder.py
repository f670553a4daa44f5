"""TensorRT's builder: an ONNX file in, the bytes of a plan out.

TensorRT and TensorRT for RTX have the same classes in two modules: `trt`, the first argument, is the one to build with.
Both build what the graph says, type by type: half precision is made in the ONNX file, and no flag here could change it.
Everything the builder says is collected, so that a failure tells all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from affserve.export.engine.profile import Profile
from affserve.train.errors import ExportError

if TYPE_CHECKING:
    import tensorrt as trt

POLL_S = 0.1  # how long Ctrl-C may wait
LOG_LINES_SHOWN = 20  # in an error
LOG_LINES_KEPT = 50  # in the record of a plan
PROBLEMS = ("INTERNAL_ERROR", "ERROR", "WARNING")
ACCOUNT = "I/O Tensors:"  # stands in the one message that lists every compiled layer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one kind of plan sets in the builder, as plain values for the record."""

    flags: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


# Takes the builder's configuration and holds while it builds.
Configure = Callable[[Any], AbstractContextManager[Settings]]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the builder made."""

    plan: bytes
    outputs: tuple[str, ...]  # names, in the order of the graph
    flags: dict[str, Any]  # settings of the build, for the record
    notices: list[str]
    account: str  # the builder's own list of compiled layers; empty where it gives none


class Messages:
    """Keeps what the builder says; several of its threads may speak."""

    def __init__(self) -> None:
        self.problems: list[str] = []  # errors and warnings, in order
        self.account = ""

    def take(self, severity: str, text: str) -> None:
        """Take one message."""
        if severity in PROBLEMS:
            self.problems.append(f"{severity}: {text}")
        elif ACCOUNT in text:
            self.account = text

    def tail(self) -> str:
        """Return the last problems as an indented block."""
        lines = self.problems[-LOG_LINES_SHOWN:]
        return "".join(f"\n  {line}" for line in lines) or "\n  (TensorRT said nothing)"


def logger_into(trt: ModuleType, messages: Messages) -> trt.ILogger:
    """Return the logger that hands everything to `messages`."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.take(severity.name, msg)

    return Logger()


def monitor_into(trt: ModuleType, tell: Callable[[str], None], cancelled: threading.Event) -> trt.IProgressMonitor:
    """Return the monitor that tells the names of the outer phases as they begin, and stops the build when cancelled.

    TensorRT calls it from several threads. `tell` must not raise: an exception would end in TensorRT's own code.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: set[str] = set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost.add(phase_name)
            if parent_phase is None or parent_phase in self._outermost:
                tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None: ...

    return Monitor()


def interruptible(work: Callable[[threading.Event], T]) -> T:
    """Do `work` in another thread; at Ctrl-C set the event it is given, wait for its end and raise KeyboardInterrupt.

    The build is one long call into TensorRT, during which a signal would not reach Python in the thread that made it.
    """
    cancelled = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt") as pool:
        try:
            return _wait(pool.submit(work, cancelled))
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


def build(
    trt: ModuleType,
    onnx: Path,
    profile: Profile,
    tell: Callable[[str], None],
    cancelled: threading.Event,
    configure: Configure,
) -> Built:
    """Build a plan on this thread and tell its phases; ExportError with all that TensorRT said when it cannot."""
    messages = Messages()
    logger = logger_into(trt, messages)  # both must outlive the build
    monitor = monitor_into(trt, tell, cancelled)
    builder = start_builder(trt, logger, messages)
    network = builder.create_network()
    parse(trt, onnx, network, logger, messages)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers and types are told only then; costs no time
    config.progress_monitor = monitor
    add_profile(builder, config, profile, messages)
    with configure(config) as settings:
        memory = builder.build_serialized_network(network, config)
        if memory is None:
            if cancelled.is_set():
                raise ExportError(f"building a plan from {onnx.name} was cancelled")
            raise ExportError(f"TensorRT could not build a plan from {onnx.name}; it said:{messages.tail()}")
    return Built(
        plan=bytes(memory),
        outputs=tuple(network.get_output(index).name for index in range(network.num_outputs)),
        flags=settings.flags,
        notices=[*settings.notices, *messages.problems[:LOG_LINES_KEPT]],
        account=messages.account,
    )


def start_builder(trt: ModuleType, logger: trt.ILogger, messages: Messages) -> trt.Builder:
    """Start TensorRT's builder; ExportError when it finds no GPU or no libraries."""
    try:
        return trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise ExportError(
            "TensorRT's builder did not start; it needs a GPU, its driver and all of TensorRT's libraries. It said:"
            f"{messages.tail()}"
        ) from error


def parse(
    trt: ModuleType, onnx: Path, network: trt.INetworkDefinition, logger: trt.ILogger, messages: Messages
) -> None:
    """Read the ONNX file into the network; ExportError with every error of the parser."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)):
        return
    errors = "".join(f"\n  {describe_error(parser.get_error(index))}" for index in range(parser.num_errors))
    raise ExportError(
        f"TensorRT {trt.__version__} cannot read {onnx}: {parser.num_errors} errors{errors or messages.tail()}\n"
        "expected only operators and types of its ONNX support table; export the graph again, or report these errors"
    )


def describe_error(error: trt.ParserError) -> str:
    """Return one line: which node, what is wrong, and where in the parser that was found."""
    where = f"{error.file()}:{error.line()} in {error.func()}"
    return (
        f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.code()}: {error.desc()} [{where}]"
    )


def add_profile(builder: trt.Builder, config: trt.IBuilderConfig, profile: Profile, messages: Messages) -> None:
    """Tell the builder the shapes to build for."""
    shapes = builder.create_optimization_profile()
    for name, (smallest, optimum, largest) in profile.shapes.items():
        shapes.set_shape(name, min=smallest, opt=optimum, max=largest)
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(f"TensorRT refuses the shapes {dict(profile.shapes)}; it said:{messages.tail()}")
