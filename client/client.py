"""The affect service as three Python calls: frames to features, features to predictions, and both in one.

`AffectClient` speaks gRPC to a Triton server. It sends chunks, keeps a few in flight and their order, and repeats what
a restarting server dropped: every call is a pure function of its inputs, so repeating one never changes a result.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.export.contract import (
    AFFECT,
    CHUNK_FRAMES,
    CLIP_ENCODER,
    FEATURE_WIDTH,
    FEATURES,
    TEMPORAL_HEAD,
    HeadDescription,
    ModelSpec,
    TensorSpec,
)
from affserve.train.errors import InferenceError, ServerError
from affserve.train.labels import TASKS
from affserve.train.windows import Outputs

if TYPE_CHECKING:
    from typing_extensions import Self

CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
UNLIMITED_BYTES = 2**31 - 1
CHANNEL_ARGUMENTS: list[tuple[str, int]] = [
    # tritonclient sets the two sizes itself only when it is given no channel arguments at all.
    ("grpc.max_send_message_length", UNLIMITED_BYTES),
    ("grpc.max_receive_message_length", UNLIMITED_BYTES),
    # gRPC would wait up to two minutes between attempts; a restarted server is back within seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", round(LONGEST_PAUSE_S * 1000)),
]
LOOPBACK_HOSTS = ("localhost", "[::1]")
TRANSIENT_STATUS = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
TRANSIENT_MESSAGES = (
    "Stub process",
    "is not healthy",  # with the line above: a model whose Python process has died
    "no available versions",  # a model that is being unloaded or not loaded yet
)

T = TypeVar("T")
Array = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One inference, kept until it is answered so that it can be sent again."""

    model: ModelSpec
    inputs: list[triton.InferInput]
    length: int  # N or T, the first axis of input and outputs
    asked: str  # who is asked what, for messages


class AffectClient:
    """A connection to a server that serves an affserve model repository; use it as a context manager, in one thread.

    url: HOST:PORT of the gRPC endpoint (8001 by default). timeout_s: of one attempt. retry_for_s: how long a call that
    fails because the server is restarting or overloaded is repeated. chunks_in_flight: requests of `encode` that are
    under way at the same time.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 30.0, retry_for_s: float = 60.0, chunks_in_flight: int = 2
    ) -> None:
        if "://" in url or ":" not in url:
            raise ServerError(f"server address is {url!r}, expected HOST:PORT of its gRPC endpoint, as 127.0.0.1:8001")
        if chunks_in_flight < 1:
            raise ValueError(f"chunks_in_flight is {chunks_in_flight}, expected at least 1")
        self.url = url
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._chunks_in_flight = chunks_in_flight
        self._description: HeadDescription | None = None
        # Chunks are sent by blocking calls in threads. gRPC's own asynchronous calls break when a signal's exception
        # (Ctrl-C) arrives while the main thread is starting one: the channel can then never be closed.
        self._senders = ThreadPoolExecutor(max_workers=chunks_in_flight, thread_name_prefix="affserve-encode")
        self._closing = threading.Event()
        self._triton = triton.InferenceServerClient(url, channel_args=[*CHANNEL_ARGUMENTS, *_proxy_arguments(url)])

    def __enter__(self) -> Self:
        """Connect; ServerError at once when nobody listens."""
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def connect(self) -> None:
        """Check that a Triton server answers at the address; a server that was never there is not waited for."""
        try:
            live = self._triton.is_server_live(client_timeout=CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            self.close()
            raise ServerError(
                f"no server at {self.url} ({error.message()}): start one with: affserve serve REPOSITORY"
            ) from error
        if not live:
            self.close()
            raise ServerError(f"the server at {self.url} says that it is not live: look at its log, then restart it")

    def close(self) -> None:
        """Close the connection; calls that are under way are given up."""
        self._closing.set()
        self._triton.close()
        self._senders.shutdown(wait=True, cancel_futures=True)

    def describe(self) -> HeadDescription:
        """Return what the served head says about itself: tasks, labels, window, training data (asked once)."""
        if self._description is None:
            parameters = {key: value.string_value for key, value in self._config(TEMPORAL_HEAD).parameters.items()}
            description = HeadDescription.from_parameters(parameters, f"{TEMPORAL_HEAD.name} on {self.url}")
            self._description = replace(description, labels=_in_task_order(description.labels))
        return self._description

    def engine(self) -> str:
        """Say what computes: `Triton 2.51.0, onnxruntime on CPU`."""
        server = self._repeated(
            lambda: self._triton.get_server_metadata(client_timeout=self._timeout_s), f"the server at {self.url}"
        )
        config = self._config(CLIP_ENCODER)
        devices = {group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group}
        return f"Triton {server.version}, {config.backend or config.platform} on {'+'.join(sorted(devices))}"

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn face crops (N, 224, 224, 3) uint8 RGB into features (N, 512) float32, any N, in chunks."""
        _check(CLIP_ENCODER, frames, self.url)
        chunks = (frames[start : start + CHUNK_FRAMES] for start in range(0, len(frames), CHUNK_FRAMES))
        return np.concatenate([_no_features(), *self.encode_stream(chunks)])

    def encode_stream(self, chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Turn a stream of chunks (n, 224, 224, 3) uint8 into their features (n, 512), one array per chunk, in order.

        At most `chunks_in_flight` chunks are held. A chunk of no frames asks nothing of the server.
        """
        under_way: deque[Future[NDArray[np.float32]]] = deque()
        for frames in chunks:
            under_way.append(self._senders.submit(self._encoded, self._request(CLIP_ENCODER, frames)))
            if len(under_way) >= self._chunks_in_flight:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def predict(self, features: NDArray[np.float32]) -> Outputs:
        """Turn the features of one window (T, 512) float32 into (T, K) float32 per task, 1 <= T <= 300."""
        return self._outputs(self._request(TEMPORAL_HEAD, features))

    def affect(self, frames: NDArray[np.uint8]) -> Outputs:
        """Turn the face crops of one window (T, 224, 224, 3) uint8 into (T, K) float32 per task, in one request."""
        return self._outputs(self._request(AFFECT, frames))

    def _outputs(self, request: _Request) -> Outputs:
        labels = self.describe().labels
        result = self._repeated(lambda: self._infer(request), request.asked)
        return {task: self._output(result, request, task, len(names)) for task, names in labels.items()}

    def _encoded(self, request: _Request) -> NDArray[np.float32]:
        if request.length == 0:
            return _no_features()
        result = self._repeated(lambda: self._infer(request), request.asked)
        return self._output(result, request, FEATURES.name, FEATURE_WIDTH)

    def _request(self, model: ModelSpec, array: Array) -> _Request:
        spec = model.inputs[0]
        asked = _check(model, array, self.url)
        tensor = triton.InferInput(spec.name, list(array.shape), spec.datatype)
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        return _Request(model=model, inputs=[tensor], length=len(array), asked=asked)

    def _infer(self, request: _Request) -> triton.InferResult:
        return self._triton.infer(request.model.name, request.inputs, client_timeout=self._timeout_s)

    def _config(self, model: ModelSpec) -> triton.model_config_pb2.ModelConfig:
        asked = f"{model.name} on {self.url}, asked for its configuration"
        return self._repeated(
            lambda: self._triton.get_model_config(model.name, client_timeout=self._timeout_s), asked
        ).config

    def _output(self, result: triton.InferResult, request: _Request, name: str, width: int) -> NDArray[np.float32]:
        """Return output `name` as a writable (length, width) float32 array that owns its memory."""
        array = result.as_numpy(name)
        expected = (request.length, width)
        if array is None or array.shape != expected or array.dtype != np.float32:
            found = "no such output" if array is None else f"{array.dtype} {array.shape}"
            raise InferenceError(
                f"{request.asked}: expected {name} {expected} float32 in the answer, got {found}: the server does not "
                "serve what `affserve export` wrote; export the repository again and restart the server"
            )
        return np.array(array, dtype=np.float32)

    def _repeated(self, call: Callable[[], T], asked: str) -> T:
        """Call until it succeeds; transient errors are repeated with growing, randomised pauses for `retry_for_s`."""
        pause_s = FIRST_PAUSE_S
        deadline_s = time.monotonic() + self._retry_for_s
        while True:
            try:
                return call()
            except InferenceServerException as error:
                if not is_transient(error):
                    raise InferenceError(f"{asked}: {_told(error)}") from error
                if time.monotonic() + pause_s > deadline_s or self._closing.is_set():
                    raise InferenceError(f"{asked}: {_told(error)}; tried for {self._retry_for_s:g} s") from error
            self._closing.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _proxy_arguments(url: str) -> list[tuple[str, int]]:
    """Keep gRPC from asking the environment's proxy for an address of this machine, which it does unlike browsers."""
    host = url.rpartition(":")[0]
    return [("grpc.enable_http_proxy", 0)] if host in LOOPBACK_HOSTS or host.startswith("127.") else []


def _in_task_order(labels: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Order the tasks as the project does; parameters travel in any order, tasks unknown here come last."""
    order = [*TASKS, *sorted(labels.keys() - TASKS.keys())]
    return {task: labels[task] for task in order if task in labels}


def is_transient(error: InferenceServerException) -> bool:
    """Say whether the same call may succeed later: the server is away, too busy, or replacing a dead model."""
    message = error.message() or ""
    return error.status() in TRANSIENT_STATUS or any(sign in message for sign in TRANSIENT_MESSAGES)


def _told(error: InferenceServerException) -> str:
    status = (error.status() or "").removeprefix("StatusCode.")
    return f"the server answered {status}: {error.message()}" if status else str(error.message())


def _check(model: ModelSpec, array: Array, url: str) -> str:
    """Check an array against the model's first input before it travels; return who is asked what, for messages."""
    spec = model.inputs[0]
    shape = (-1, *spec.shape) if model.max_batch_size else spec.shape
    expected = TensorSpec(name=spec.name, datatype=spec.datatype, shape=shape)
    if not expected.matches(array.shape) or array.dtype != expected.numpy_dtype:
        raise InferenceError(
            f"{model.name} on {url} expects {spec.name} {shape} {expected.numpy_dtype}, got {array.shape} {array.dtype}"
        )
    return f"{model.name} on {url}, sent {spec.name} {array.shape} {array.dtype}"


def _no_features() -> NDArray[np.float32]:
    return np.empty((0, FEATURE_WIDTH), dtype=np.float32)
