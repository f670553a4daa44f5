"""The affect service as Python calls: frames to features, features to predictions, a person's whole video to both.

`AffectClient` speaks gRPC to a Triton server. It sends chunks, keeps a few in flight and their order, and repeats what
a restarting server dropped.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.answers import check_finite, checked_input, engines_of, head_of, output
from affserve.client.wire.calls import Calls, RetryPolicy
from affserve.client.wire.endpoint import Resolver, addresses_of, parse_endpoint
from affserve.client.wire.frame_carrier import FrameCarrier
from affserve.client.wire.frames import Frames, frames_array
from affserve.client.wire.messages import raw_tensor
from affserve.client.wire.servers import Servers
from affserve.client.wire.stream import HeadStream
from affserve.client.wire.transport import JPEG_QUALITY, Transport
from affserve.client.wire.unreachable import way_out
from affserve.export.contract import (
    AFFECT,
    CHUNK_FRAMES,
    CLIP_ENCODER,
    FEATURE_WIDTH,
    FEATURES,
    TEMPORAL_HEAD,
    HeadDescription,
    ModelSpec,
)
from affserve.export.server.security import CallerTls
from affserve.train.errors import ServerError
from affserve.train.windows import FrameAnswers, Outputs, OverlapMerger

if TYPE_CHECKING:
    from typing_extensions import Self


CONNECT_TIMEOUT_S = 5.0
MOST_SENDERS = 32  # threads that send messages, started when needed


class AffectClient:
    """A connection to one or several servers of an affserve model repository: a context manager, for several threads.

    url: HOST:PORT of the gRPC endpoint (8001 by default), or several with commas between. All addresses of a name are
    servers, followed as they change. Servers take turns, slow ones less often; when one is away the others go on.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: Transport | str = Transport.AUTO,  # how frames travel: auto, raw, shm or jpeg
        tls: CallerTls | None = None,  # None: plain text
        timeout_s: float = RetryPolicy.timeout_s,  # of one attempt
        retry_for_s: float = RetryPolicy.retry_for_s,  # how long a call is repeated that may succeed later
        chunks_in_flight: int = 2,  # messages of one `encode` that are under way at the same time
        jpeg_quality: int = JPEG_QUALITY,  # 1 to 100, for transport jpeg
        resolve: Resolver = addresses_of,  # host name -> all its addresses
    ) -> None:
        known = [one.value for one in Transport]
        if transport not in known:
            raise ServerError(f"transport is {transport!r}; expected one of {', '.join(known)}")
        if chunks_in_flight < 1 or not 1 <= jpeg_quality <= 100:
            raise ServerError(
                f"chunks_in_flight is {chunks_in_flight}, jpeg_quality is {jpeg_quality}; expected at least 1, and 1 "
                "to 100"
            )
        endpoint, policy = parse_endpoint(url, tls), RetryPolicy(timeout_s=timeout_s, retry_for_s=retry_for_s)
        self.url = url
        self._endpoint = endpoint
        self.chunks_in_flight = chunks_in_flight
        self._description: HeadDescription | None = None
        self._servers = Servers(endpoint, resolve)
        self._calls = Calls(url, self._servers, policy)
        self._carrier = FrameCarrier(
            self._calls, wanted=Transport(transport), jpeg_quality=jpeg_quality, is_one_server=endpoint.is_one_server
        )
        # Chunks are sent by blocking calls in threads. gRPC's own asynchronous calls break when a signal's exception
        # (Ctrl-C) arrives while the main thread is starting one: the channel can then never be closed.
        self._senders = ThreadPoolExecutor(max(chunks_in_flight, MOST_SENDERS), thread_name_prefix="affserve-encode")
        self._connecting = threading.Lock()
        self._connected = False

    def __enter__(self) -> Self:
        """Connect; ServerError at once when nobody listens."""
        with ExitStack() as unless_connected:
            unless_connected.callback(self.close)
            self.connect()
            unless_connected.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def connect(self) -> None:
        """Check that a server answers and choose how frames travel; who was never there is not waited for.

        The first call does so by itself. ServerError: nobody listens, or this client is closed.
        """
        if self._calls.closing.is_set():
            raise ServerError(f"this client of {self.url} is closed: make a new AffectClient({self.url!r})")
        with self._connecting:
            if not self._connected:
                self._check_live()
                self._carrier.choose()
                self._connected = True

    def _check_live(self) -> None:
        try:
            live = self._calls.triton.is_server_live(client_timeout=CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            raise ServerError(f"no server at {self.url} ({error.message()}): {way_out(self._endpoint)}") from error
        if not live:
            raise ServerError(f"the server at {self.url} says that it is not live: look at its log, then restart it")

    def close(self) -> None:
        """Close the connection; calls that are under way are given up."""
        self._senders.shutdown(wait=False, cancel_futures=True)
        if not self._calls.closing.is_set():
            self._calls.closing.set()
            self._carrier.release()
            self._servers.close()
        self._senders.shutdown(wait=True)

    @property
    def transport(self) -> str:
        """How frames travel now: raw, shm or jpeg."""
        return self._carrier.transport.value

    def fidelity(self) -> str:
        """Say what travelling does to frames: `as they are`, or `JPEG of quality 95`."""
        return self._carrier.fidelity

    def describe(self) -> HeadDescription:
        """Return what the served head says about itself: tasks, labels, window, training data (asked once)."""
        if self._description is None:
            self.connect()
            self._description = head_of(self._config(TEMPORAL_HEAD), self.url)
        return self._description

    def engine(self) -> str:
        """Say what computes: `Triton 2.51.0, clip_encoder openvino int8 on CPU, temporal_head onnxruntime ...`."""
        self.connect()
        server = self._calls.repeated(f"the server at {self.url}", self._calls.triton.get_server_metadata)
        return f"Triton {server.version}, {engines_of([self._config(CLIP_ENCODER), self._config(TEMPORAL_HEAD)])}"

    def encode(self, frames: Frames) -> NDArray[np.float32]:
        """Turn face crops (N, 224, 224, 3) uint8 RGB into features (N, 512) float32, any N, in chunks.

        frames: an array, or a list of arrays or PIL images.
        """
        return next(self.encode_stream([frames]))

    def encode_stream(self, chunks: Iterable[Frames]) -> Iterator[NDArray[np.float32]]:
        """Turn a stream of chunks (n, 224, 224, 3) uint8 into their features (n, 512), one array per chunk, in order.

        Chunks of more than 32 frames travel in several messages; at most `chunks_in_flight` messages are under way, and
        no more chunks are held than they come from. A chunk of no frames asks nothing of the server.
        """
        self.connect()
        under_way: deque[tuple[Future[NDArray[np.float32]], bool]] = deque()  # with: whether it ends its chunk
        parts: list[NDArray[np.float32]] = []

        def answered() -> Iterator[NDArray[np.float32]]:
            features, ends_chunk = under_way.popleft()
            parts.append(features.result())
            if ends_chunk:
                yield np.concatenate(parts)
                parts.clear()

        for chunk in map(frames_array, chunks):
            for end in range(CHUNK_FRAMES, max(len(chunk), 1) + CHUNK_FRAMES, CHUNK_FRAMES):
                message = chunk[end - CHUNK_FRAMES : end]
                under_way.append((self._sent(message), end >= len(chunk)))
                if len(under_way) >= self.chunks_in_flight:
                    yield from answered()
        while under_way:
            yield from answered()

    def _sent(self, message: NDArray[np.uint8]) -> Future[NDArray[np.float32]]:
        try:
            return self._senders.submit(self._encode_message, message)
        except RuntimeError as error:
            raise ServerError(f"the client of {self.url} was closed while frames were being sent") from error

    def predict(self, features: NDArray[np.float32]) -> Outputs:
        """Turn the features of one window (T, 512) float32 into (T, K) float32 per task, 1 <= T <= 300."""
        asked = checked_input(TEMPORAL_HEAD, self.url, features)
        check_finite(features, asked)
        self.connect()
        result = self._calls.infer(TEMPORAL_HEAD, raw_tensor(FEATURES, features), asked)
        return self._outputs(result, len(features), asked)

    def sequence(self) -> FrameAnswers:
        """Return what answers the features of one person frame after frame, any number of them at a time.

        A stream where the head streams; else overlapping windows, whose answers are averaged.
        """
        described = self.describe()
        if described.stream is not None:
            return HeadStream(self._calls, self._servers.for_stream, described)
        return OverlapMerger(self.predict, described.window_frames, described.stride_frames)

    def affect(self, frames: Frames) -> Outputs:
        """Turn the face crops of one window (T, 224, 224, 3) uint8 into (T, K) float32 per task, in one request."""
        frames = frames_array(frames)
        self.connect()
        asked = checked_input(AFFECT, self.url, frames)
        return self._outputs(self._carrier.carry(AFFECT, frames, asked), len(frames), asked)

    def analyze(self, frames: Frames) -> Outputs:
        """Turn all face crops of one person's video into predictions, averaged where the head's windows overlap.

        frames: (N, 224, 224, 3) uint8 RGB, or a list of arrays or PIL images, any N; returns (N, K) float32 per task.
        Video files, and videos in which faces are still to be found, are for `affserve.client.analyze`.
        """
        features, described, answers = self.encode(frames), self.describe(), self.sequence()
        parts = [*answers.push(features), *answers.finish()]
        return {
            task: np.concatenate([np.empty((0, len(names)), np.float32), *(part[task] for part in parts)])
            for task, names in described.labels.items()
        }

    def _encode_message(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked = checked_input(CLIP_ENCODER, self.url, frames)
        if len(frames) == 0:
            return np.empty((0, FEATURE_WIDTH), dtype=np.float32)
        result = self._carrier.carry(CLIP_ENCODER, frames, asked)
        return output(result, asked, FEATURES.name, (len(frames), FEATURE_WIDTH))

    def _outputs(self, result: triton.InferResult, length: int, asked: str) -> Outputs:
        labels = self.describe().labels
        return {task: output(result, asked, task, (length, len(names))) for task, names in labels.items()}

    def _config(self, model: ModelSpec) -> Any:
        asked = f"{model.name} on {self.url}, asked for its configuration"
        return self._calls.repeated(asked, self._calls.triton.get_model_config, model_name=model.name).config
