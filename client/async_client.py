"""The same client for an event loop: `AsyncAffectClient` has the calls of `AffectClient`, to be awaited.

What is sent, checked and repeated is in exchange.py for both; here is only how to wait without holding up the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.client import AffectClient
from affserve.client.wire.calls import Pause, Step, Steps, Work
from affserve.client.wire.exchange import no_features
from affserve.client.wire.messages import Joiner, Message, messages
from affserve.client.wire.settings import ClientKeywords, ClientSettings, ClientState
from affserve.export.contract import HeadDescription
from affserve.train.windows import Outputs

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from affserve.client.faces.face import Cropper
    from affserve.client.results.rows import Rows
    from affserve.client.video.source import FrameSource


T = TypeVar("T")
Chunks = Iterable[NDArray[np.uint8]] | AsyncIterable[NDArray[np.uint8]]
UnderWay = deque[tuple[Message, "asyncio.Task[NDArray[np.float32]]"]]


class AsyncAffectClient(ClientState):
    """An asynchronous context manager of one event loop; url and keywords as AffectClient has them."""

    def __init__(self, url: str, **settings: Unpack[ClientKeywords]) -> None:
        super().__init__(url, ClientSettings(**settings))
        self._triton: Any = None  # made in the loop that uses it

    async def __aenter__(self) -> Self:
        """Connect; ServerError at once when nobody listens."""
        self._triton = triton.InferenceServerClient(**self._endpoint.client_options())
        connected = False
        try:
            await self._run(self._exchange.connect())
            connected = True
        finally:
            if not connected:
                await self.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way are given up."""
        await self._run(self._exchange.disconnect())
        await self._triton.close()

    async def describe(self) -> HeadDescription:
        """As AffectClient.describe."""
        return await self._run(self._exchange.describe())

    async def engine(self) -> str:
        """As AffectClient.engine."""
        return await self._run(self._exchange.engine())

    async def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As AffectClient.encode."""
        return np.concatenate([no_features(), *[features async for features in self.encode_stream([frames])]])

    async def encode_stream(self, chunks: Chunks) -> AsyncIterator[NDArray[np.float32]]:
        """As AffectClient.encode_stream; the chunks may come from an asynchronous iterator."""
        under_way: UnderWay = deque()
        joiner = Joiner()
        try:
            async for chunk in _each(chunks):
                for message in messages(chunk):
                    task = asyncio.create_task(self._run(self._exchange.encode(message.frames)))
                    under_way.append((message, task))
                    if len(under_way) >= self._allowed_in_flight:
                        for features in await _next(under_way, joiner):
                            yield features
            while under_way:
                for features in await _next(under_way, joiner):
                    yield features
        finally:
            for _, task in under_way:
                task.cancel()

    async def predict(self, features: NDArray[np.float32]) -> Outputs:
        """As AffectClient.predict."""
        return await self._run(self._exchange.predict(features))

    async def affect(self, frames: NDArray[np.uint8]) -> Outputs:
        """As AffectClient.affect."""
        return await self._run(self._exchange.affect(frames))

    @overload
    def analyze(self, source: NDArray[np.uint8], cropper: None = None) -> Coroutine[Any, Any, Outputs]: ...

    @overload
    def analyze(self, source: str | Path | FrameSource, cropper: Cropper | None = None) -> AsyncIterator[Rows]: ...

    def analyze(
        self, source: NDArray[np.uint8] | str | Path | FrameSource, cropper: Cropper | None = None
    ) -> Coroutine[Any, Any, Outputs] | AsyncIterator[Rows]:
        """As AffectClient.analyze: await it for crops, `async for` rows of a video."""
        if isinstance(source, np.ndarray):
            return self._analyze_crops(source)
        return self._analyze_source(source, cropper)

    async def _analyze_crops(self, crops: NDArray[np.uint8]) -> Outputs:
        return await self._run(self._exchange.merge(await self.encode(crops)))

    async def _analyze_source(self, source: str | Path | FrameSource, cropper: Cropper | None) -> AsyncIterator[Rows]:
        """Have a thread decode, detect and wait: most of this is work for the processor, not waiting."""
        with await asyncio.to_thread(self._connected_copy) as client:
            rows: Iterator[Rows] = await asyncio.to_thread(client.analyze, source, cropper)
            while (block := await asyncio.to_thread(next, rows, None)) is not None:
                yield block

    def _connected_copy(self) -> AffectClient:
        """Return a blocking client with the same settings."""
        client = AffectClient(self.url, **self._settings.keywords())
        client.connect()
        return client

    async def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps of a call."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._carry_out(step)
                except InferenceServerException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Work):
            return await asyncio.to_thread(step.run)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await getattr(self._triton, step.method)(**step.arguments, client_timeout=step.timeout_s)


async def _next(under_way: UnderWay, joiner: Joiner) -> list[NDArray[np.float32]]:
    message, features = under_way.popleft()
    return joiner.join(message, await features)


async def _each(chunks: Chunks) -> AsyncIterator[NDArray[np.uint8]]:
    """Yield the items of either kind of iterable."""
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
