"""The asyncio client says what the blocking one says, in threads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest
from conftest import blurred_noise
from numpy.typing import NDArray

from affserve.client.async_client import AsyncAffectClient
from affserve.client.client import AffectClient
from affserve.client.wire.shared_memory import SHARED_MEMORY
from affserve.train.errors import InferenceError, ServerError

T = TypeVar("T")
TOLERANCE = 2e-5  # float32 sums in another order: batches differ


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return blurred_noise(70)


def run(call: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(call)


@pytest.mark.parametrize("transport", ["shm", "raw", "jpeg"])
def test_answers_are_those_of_the_blocking_client(server_url: str, frames: NDArray[np.uint8], transport: str) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncAffectClient(server_url, transport=transport) as client:
            assert client.transport == transport
            features = await client.encode(frames)
            parts = await asyncio.gather(*(client.encode(frames[k : k + 7]) for k in range(0, 70, 7)))
            return (
                np.concatenate(parts),
                features,
                await client.predict(features),
                await client.affect(frames[:32]),
                await client.analyze(frames),
                await client.describe(),
                await client.engine(),
            )

    together, features, predicted, affected, analyzed, described, engine = run(ask())
    assert np.abs(together - features).max() < TOLERANCE * np.abs(features).max()

    with AffectClient(server_url, transport=transport) as client:
        np.testing.assert_array_equal(features, client.encode(frames))
        for found, expected in (
            (predicted, client.predict(features)),
            (affected, client.affect(frames[:32])),
            (analyzed, client.analyze(frames)),
        ):
            assert found.keys() == expected.keys()
            for task, values in expected.items():
                np.testing.assert_array_equal(found[task], values)
        assert (described, engine) == (client.describe(), client.engine())


def test_a_stream_holds_two_chunks_and_keeps_order(server_url: str, frames: NDArray[np.uint8]) -> None:
    taken: list[int] = []

    async def chunks() -> AsyncIterator[NDArray[np.uint8]]:
        for k, size in enumerate((3, 0, 40, 4, 2)):
            taken.append(k)
            yield frames[k : k + size]

    async def ask() -> list[int]:
        async with AsyncAffectClient(server_url) as client:
            stream = client.encode_stream(chunks())
            first = await anext(stream)
            assert taken == [0, 1]
            return [len(first), *[len(features) async for features in stream]]

    assert run(ask()) == [3, 0, 40, 4, 2]


def test_cancelling_waits_for_the_call_under_way() -> None:
    async def ask() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = AsyncAffectClient(f"127.0.0.1:{silent.getsockname()[1]}")
            task = asyncio.create_task(client.__aenter__())
            caller, _ = await asyncio.to_thread(silent.accept)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
        caller.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(ask())


def test_cancelling_leaves_nothing(server_url: str, frames: NDArray[np.uint8]) -> None:
    async def ask() -> None:
        async with AsyncAffectClient(server_url) as client:
            assert client.transport == "shm"
            task = asyncio.create_task(client.encode(np.concatenate([frames] * 10)))
            for _ in range(3):
                await asyncio.sleep(0)  # the call is handed to its thread; its end, however soon, is not noticed yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.encode(frames[:1])).shape == (1, 512)

    run(ask())
    assert not list(SHARED_MEMORY.glob("affserve-client-*"))


def test_errors_are_the_same(server_url: str) -> None:
    async def ask() -> None:
        with pytest.raises(ServerError, match="no server at"):
            async with AsyncAffectClient("127.0.0.1:1"):
                pass
        async with AsyncAffectClient(server_url) as client:
            with pytest.raises(InferenceError, match="expects features"):
                await client.predict(np.zeros((32, 768), np.float32))
            with pytest.raises(InferenceError, match="not numbers"):
                await client.predict(np.full((32, 512), np.nan, np.float32))

    run(ask())
