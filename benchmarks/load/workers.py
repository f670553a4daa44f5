"""The load generator in processes of its own, and one measured point: what was sent, what came back, what it cost.

Processes of their own, because a load generator must not share its interpreter with what watches it, and because one
interpreter can be too slow for a fast server; a point says how much of its cores the generator used.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from affserve.benchmarks.load.loops import Load, Samples, merge, run_load
from affserve.benchmarks.load.request import Target
from affserve.benchmarks.measuring.samples import percentiles, summary_ms
from affserve.benchmarks.measuring.server_side import (
    CpuClock,
    GpuWatch,
    server_processes,
    server_split,
    settled_statistics,
)
from affserve.train.errors import ServerError

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier


READY_TIMEOUT_S = 120.0  # for a process to start, make its request and warm up
KEPT_SAMPLES = 2000  # of a point in its JSON, at even distances in time
BUSY = 0.8  # of a core: beyond it a generator process may send late

_barrier: Barrier | None = None  # of a generator process, set when it starts


def _take_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _generate(target: Target, load: Load | None) -> Samples | None:
    """Run one process's share; every process meets the parent twice, idle ones too."""
    try:
        if load is None:
            _meet()
            return None
        return run_load(target, load, ready=_meet)
    except BaseException:
        # The others and the parent must not wait for this one.
        if _barrier is not None:
            _barrier.abort()
        raise


def _meet() -> None:
    """Say that this process is warm, then wait until the parent has read the server's clocks."""
    if _barrier is None:
        raise RuntimeError("this process was not started by Generators")
    _barrier.wait(READY_TIMEOUT_S)
    _barrier.wait(READY_TIMEOUT_S)


class Generators:
    """Some processes that send together; a context manager that ends them. Processes start once for many points."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(processes + 1)
        self._pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=_take_barrier, initargs=(self._barrier,)
        )

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def measure(self, target: Target, load: Load) -> dict[str, Any]:
        """Send one load from all processes; return as JSON what happened and what server and machine did meanwhile."""
        work = [self._pool.submit(_generate, target, load.share(k, self.processes)) for k in range(self.processes)]
        try:
            self._barrier.wait(READY_TIMEOUT_S)
            with _metered(target.url) as told:
                self._barrier.wait(READY_TIMEOUT_S)
                parts = [part for one in work if (part := one.result()) is not None]
        except threading.BrokenBarrierError as error:
            raise _failure(work, target) from error
        finally:
            self._barrier.abort()  # harmless when all went well: nobody waits
            wait(work)
            self._barrier.reset()
        return {**describe(target, load, merge(parts), self.processes), **told}


def _failure(work: list[Future[Samples | None]], target: Target) -> BaseException:
    """Return why the generator did not start: the first process's own reason, or that it took too long."""
    own = [error for one in work if (error := one.exception()) is not None]
    first = next((error for error in own if not isinstance(error, threading.BrokenBarrierError)), None)
    return first or ServerError(
        f"the load generator was not ready within {READY_TIMEOUT_S:g} s: {target.url} answers too slowly; ask for "
        "fewer frames in a request"
    )


@contextmanager
def _metered(url: str) -> Iterator[dict[str, Any]]:
    """Read the server's and the machine's counters around a run; what is yielded tells them afterwards."""
    told: dict[str, Any] = {}
    processes, before = server_processes(url), settled_statistics(url)
    with GpuWatch() as gpus:
        clock = CpuClock(processes)
        yield told
        told["cpu"] = clock.cores()
    told["server"] = server_split(before, settled_statistics(url))
    if figures := gpus.figures():
        told["gpus"] = figures


def describe(target: Target, load: Load, samples: Samples, processes: int = 1) -> dict[str, Any]:
    """Return what a run's samples say; latencies are of answered requests only, errors are beside them."""
    latencies_s = samples.latencies_s
    cores = samples.cpu_s / load.duration_s
    return {
        "model": target.model,
        "frames": target.frames,
        "transport": target.transport,
        "request_bytes": samples.request_bytes,
        "loop": "closed" if load.concurrency is not None else "open",
        **({"concurrency": load.concurrency} if load.concurrency is not None else _offered(load, samples)),
        "seconds": load.duration_s,
        "requests": len(samples.kinds),
        "errors": samples.errors,
        **({"error_examples": samples.examples} if samples.examples else {}),
        "requests_per_second": round(samples.per_second, 2),
        "frames_per_second": round(samples.per_second * target.frames, 1),
        "latency": summary_ms(latencies_s.tolist()) if len(latencies_s) else None,
        "generator": {"processes": processes, "cores": round(cores, 3), "limiting": bool(cores > BUSY * processes)},
        "samples_ms": _thinned(1000 * latencies_s),
    }


def _offered(load: Load, samples: Samples) -> dict[str, Any]:
    late_ms = (1000 * (samples.sent_s - samples.intended_s)).tolist()
    return {
        "rate_per_second": load.rate_per_s,
        "sent_late_ms": {name: round(value, 3) for name, value in percentiles(late_ms, (50, 99)).items()},
    }


def _thinned(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    step = max(1, -(-len(values) // KEPT_SAMPLES))
    return [round(float(value), 3) for value in values[::step]]
