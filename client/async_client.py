"""The same client for an event loop: `AsyncAffectClient` has the calls of `AffectClient`, to be awaited.

Each call runs in a thread of the loop's default executor, which limits how many are under way together. A thread cannot
be stopped: who cancels a call gets the CancelledError when the call under way has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.wire.frames import Frames

if TYPE_CHECKING:
    from typing_extensions import Self


T = TypeVar("T")
Chunks = Iterable[Frames] | AsyncIterable[Frames]


class AsyncAffectClient:
    """An asynchronous context manager; url and keywords as AffectClient has them.

    So are its attributes and calls, `await client.encode(frames)`; only a stream is another one here.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self._client = AffectClient(url, **settings)

    async def __aenter__(self) -> Self:
        """Connect; ServerError at once when nobody listens."""
        await _in_thread(self._client.__enter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        await _in_thread(self._client.close)

    def __getattr__(self, name: str) -> Any:
        """Return what AffectClient has under this name; a call is to be awaited."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        found = getattr(self._client, name)
        return partial(_in_thread, found) if callable(found) else found

    async def encode_stream(self, chunks: Chunks) -> AsyncIterator[NDArray[np.float32]]:
        """As AffectClient.encode_stream, `chunks_in_flight` chunks at a time; they may come from an async iterator."""
        under_way: deque[asyncio.Task[NDArray[np.float32]]] = deque()
        try:
            async for chunk in _each(chunks):
                under_way.append(asyncio.create_task(self.encode(chunk)))
                if len(under_way) >= self._client.chunks_in_flight:
                    yield await under_way.popleft()
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


async def _in_thread(call: Callable[..., T], *arguments: object) -> T:
    """Return what a blocking call returns; when cancelled, wait until it has ended."""
    running = asyncio.create_task(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait([running])


async def _each(chunks: Chunks) -> AsyncIterator[Frames]:
    """Yield the items of either kind of iterable."""
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
