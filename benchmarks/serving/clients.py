"""Many clients of one server, all on this machine."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from affserve.benchmarks.measuring.samples import fitted
from affserve.client.client import AffectClient
from affserve.export.contract import CHUNK_FRAMES, FRAMES
from affserve.export.machine.cores import usable_cores
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import ServerError

START_TIMEOUT_S = 120.0  # for every client to be connected
RUN_TIMEOUT_S = 600.0
DECIMALS = 4


def measure_clients(repository: Path, counts: Sequence[int], frames: int, rounds: int) -> dict[str, Any]:
    """Let 1, 2, ... clients encode `frames` frames each at the same time, and fit the time until all are done."""
    times_s: dict[int, list[float]] = {count: [] for count in counts}
    slowest_s: dict[int, list[float]] = {count: [] for count in counts}
    config = ServerConfig(repository=repository, threads=usable_cores(), drain_timeout_s=0.0)
    with TritonServer(config) as server:
        for _ in range(rounds):
            for count in counts:
                each_s = _run_clients(server.grpc_url, count, frames)
                times_s[count].append(max(each_s))
                slowest_s[count].append(max(each_s) / statistics.median(each_s))
    medians_s = {count: statistics.median(values) for count, values in times_s.items()}
    rows = [
        {
            "clients": count,
            "times_s": [round(value, DECIMALS) for value in times_s[count]],
            "frames_per_s": round(count * frames / medians_s[count], 1),
            "slowest_to_median_client": round(statistics.median(slowest_s[count]), 3),
        }
        for count in counts
    ]
    return {"frames_each": frames, "rows": rows, **fitted(counts, [medians_s[count] for count in counts])}


def _run_clients(url: str, count: int, frames: int) -> list[float]:
    """Return the seconds that each of the clients took, counted from their common start."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(count + 1), context.Queue()
    clients = [
        context.Process(target=_one_client, args=(url, frames, seed, together, results), daemon=True)
        for seed in range(count)
    ]
    for client in clients:
        client.start()
    try:
        together.wait(START_TIMEOUT_S)
        return [results.get(timeout=RUN_TIMEOUT_S) for _ in clients]
    except (BrokenBarrierError, Empty) as error:
        raise ServerError(f"one of {count} clients of {url} broke off; its own message stands above") from error
    finally:
        for client in clients:
            client.join(START_TIMEOUT_S)


def _one_client(url: str, frames: int, seed: int, together: Barrier, results: Queue[float]) -> None:
    crops = np.random.default_rng(seed).integers(0, 256, (frames, *FRAMES.shape), dtype=np.uint8)
    with AffectClient(url) as client:
        client.encode(crops[:CHUNK_FRAMES])
        together.wait(START_TIMEOUT_S)
        started = time.perf_counter()
        client.encode(crops)
        results.put(time.perf_counter() - started)
