"""The affect service as Python calls: frames to features, features to predictions, a whole video to its rows.

`AffectClient` speaks gRPC to a Triton server. It sends chunks, keeps a few in flight and their order, and repeats what
a restarting server dropped: every call is a pure function of its inputs, so repeating one never changes a result.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.calls import Pause, Step, Steps, Work
from affserve.client.wire.exchange import no_features
from affserve.client.wire.messages import Joiner, Message, messages
from affserve.client.wire.settings import ClientKeywords, ClientSettings, ClientState
from affserve.export.contract import HeadDescription
from affserve.train.errors import InferenceError
from affserve.train.windows import Outputs

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from affserve.client.faces.face import Cropper
    from affserve.client.results.rows import Rows
    from affserve.client.video.source import FrameSource


T = TypeVar("T")
UnderWay = deque[tuple[Message, Future[NDArray[np.float32]]]]


class AffectClient(ClientState):
    """A connection to one or several servers of an affserve model repository; a context manager, used by one thread.

    url: HOST:PORT of the gRPC endpoint (8001 by default); several with commas between are asked in turn, and when one
    is away the others go on. Keywords: see ClientSettings.
    """

    def __init__(self, url: str, **settings: Unpack[ClientKeywords]) -> None:
        super().__init__(url, ClientSettings(**settings))
        # Chunks are sent by blocking calls in threads. gRPC's own asynchronous calls break when a signal's exception
        # (Ctrl-C) arrives while the main thread is starting one: the channel can then never be closed.
        self._senders = ThreadPoolExecutor(self._settings.chunks_in_flight, thread_name_prefix="affserve-encode")
        self._closing = threading.Event()
        self._triton = triton.InferenceServerClient(**self._endpoint.client_options())

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
        """Check that a server answers and choose how frames travel; who was never there is not waited for."""
        connected = False
        try:
            self._run(self._exchange.connect())
            connected = True
        finally:
            if not connected:
                self.close()

    def close(self) -> None:
        """Close the connection; calls that are under way are given up."""
        self._senders.shutdown(wait=False, cancel_futures=True)
        if not self._closing.is_set():
            self._run(self._exchange.disconnect())
        self._closing.set()
        self._triton.close()
        self._senders.shutdown(wait=True)

    def describe(self) -> HeadDescription:
        """Return what the served head says about itself: tasks, labels, window, training data (asked once)."""
        return self._run(self._exchange.describe())

    def fidelity(self) -> str:
        """Say what travelling has done to frames: `as they are`, or `JPEG of quality 95`."""
        return self._exchange.carrier.fidelity

    def demanded_fidelity(self) -> str | None:
        """Return the fidelity that was asked for; None with `transport="auto"`, which goes by the link."""
        return self._exchange.carrier.demanded_fidelity

    def engine(self) -> str:
        """Say what computes: `Triton 2.51.0, onnxruntime on CPU`."""
        return self._run(self._exchange.engine())

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn face crops (N, 224, 224, 3) uint8 RGB into features (N, 512) float32, any N, in chunks."""
        return np.concatenate([no_features(), *self.encode_stream([frames])])

    def encode_stream(self, chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Turn a stream of chunks (n, 224, 224, 3) uint8 into their features (n, 512), one array per chunk, in order.

        Chunks of more than 32 frames travel in several messages; at most `chunks_in_flight` messages are under way, and
        no more chunks are held than they come from. A chunk of no frames asks nothing of the server.
        """
        under_way: UnderWay = deque()
        joiner = Joiner()
        for chunk in chunks:
            for message in messages(chunk):
                under_way.append((message, self._senders.submit(self._encode, message.frames)))
                if len(under_way) >= self._allowed_in_flight:
                    yield from self._next(under_way, joiner)
        while under_way:
            yield from self._next(under_way, joiner)

    def predict(self, features: NDArray[np.float32]) -> Outputs:
        """Turn the features of one window (T, 512) float32 into (T, K) float32 per task, 1 <= T <= 300."""
        return self._run(self._exchange.predict(features))

    def affect(self, frames: NDArray[np.uint8]) -> Outputs:
        """Turn the face crops of one window (T, 224, 224, 3) uint8 into (T, K) float32 per task, in one request."""
        return self._run(self._exchange.affect(frames))

    @overload
    def analyze(self, source: NDArray[np.uint8], cropper: None = None) -> Outputs: ...

    @overload
    def analyze(self, source: str | Path | FrameSource, cropper: Cropper | None = None) -> Iterator[Rows]: ...

    def analyze(
        self, source: NDArray[np.uint8] | str | Path | FrameSource, cropper: Cropper | None = None
    ) -> Outputs | Iterator[Rows]:
        """Turn a whole video into predictions for every frame, averaged where the head's windows overlap.

        source: face crops (N, 224, 224, 3) uint8 RGB of one person, any N; returns (N, K) float32 per task. Or a video,
        an image, a folder of images: yields rows as soon as no later frame can change them; cropper: how faces are
        found and cut out, the default detector's largest face unless given.
        """
        if isinstance(source, np.ndarray):
            return self._run(self._exchange.merge(self.encode(source)))
        from affserve.client.infer.analyze import analyze_source

        return analyze_source(source, self, cropper)

    def _encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(self._exchange.encode(frames))

    def _next(self, under_way: UnderWay, joiner: Joiner) -> list[NDArray[np.float32]]:
        message, features = under_way.popleft()
        return joiner.join(message, features.result())

    def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps of a call."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._carry_out(step)
                except InferenceServerException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Work):
            return step.run()
        if isinstance(step, Pause):
            if self._closing.wait(step.seconds):
                raise InferenceError(f"the connection to {self.url} was closed while a call was being repeated")
            return None
        return getattr(self._triton, step.method)(**step.arguments, client_timeout=step.timeout_s)
