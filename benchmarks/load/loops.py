"""A load generator: one process that sends requests in a closed or an open loop and keeps every time and every error.

Closed loop: `concurrency` callers, each sends when it has its answer; what a batch job does. Open loop: requests at
times fixed beforehand, whatever happens to the earlier ones; what many independent users do. There, latency is counted
from the intended time: a generator that waits for an answer before it sends the next request skips the requests that a
stalled server would have delayed, and hides the stall. Errors are counted by kind and never repeated.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

import grpc
import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.load.request import CALLS_PER_CONNECTION, Connection, Prepared, Target, check_answer, prepared
from affserve.train.errors import DataError

OK = ""
UNEXPECTED = "UNEXPECTED_ANSWER"  # another length than the first answer's
# gRPC copies a request that it cannot send yet: beyond this much a request waits in the generator, and its time runs.
IN_FLIGHT_BYTES = 512 << 20
OPEN_CONNECTIONS = 4
WARMUP_REQUESTS = 3


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is asked, by one process or several together."""

    duration_s: float
    concurrency: int | None = None  # closed loop
    rate_per_s: float | None = None  # open loop, requests
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate_per_s is None):
            raise DataError("a load has a concurrency (closed loop) or a rate (open loop): give one of them")
        if min(self.duration_s, self.concurrency or 1, self.rate_per_s or 1) <= 0:
            raise DataError(f"{self}: expected duration, concurrency and rate above 0")

    def share(self, index: int, processes: int) -> Load | None:
        """Return the part of process `index` of several; None when there is nothing for it to do."""
        if self.rate_per_s is not None:
            rate = self.rate_per_s / processes
            return Load(duration_s=self.duration_s, rate_per_s=rate, seed=self.seed * processes + index)
        mine = len(range(index, self.concurrency or 0, processes))
        return Load(duration_s=self.duration_s, concurrency=mine) if mine else None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What happened to every request of a run; times in seconds of the machine's monotonic clock."""

    start_s: float  # of the measured time
    duration_s: float
    intended_s: NDArray[np.float64]  # (R,): in a closed loop, when it was sent
    sent_s: NDArray[np.float64]  # (R,)
    done_s: NDArray[np.float64]  # (R,)
    kinds: list[str]  # (R,): OK or the kind of error
    examples: dict[str, str] = field(default_factory=dict)  # kind of error -> what one of them said
    cpu_s: float = 0.0  # that the generator itself took
    request_bytes: int = 0  # over gRPC, of one request

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests were answered, (R,)."""
        return np.array([kind == OK for kind in self.kinds], dtype=np.bool_)

    @property
    def latencies_s(self) -> NDArray[np.float64]:
        """From the intended time to the answer, of those that were answered."""
        return (self.done_s - self.intended_s)[self.answered]

    @property
    def per_second(self) -> float:
        """Answers within the measured time, per second; of the next one, the share that lies within.

        Without that share, a service of two answers a second would be known to an eighth only after eight seconds.
        """
        done_s = np.sort(self.done_s[self.answered])
        end_s = self.start_s + self.duration_s
        count = int(np.searchsorted(done_s, end_s, side="right"))
        share = 0.0
        if count < len(done_s):
            before_s = done_s[count - 1] if count else self.start_s
            share = float((end_s - before_s) / (done_s[count] - before_s))
        return (count + share) / self.duration_s

    @property
    def errors(self) -> dict[str, int]:
        """Number of errors by kind."""
        return dict(Counter(kind for kind in self.kinds if kind != OK))


def merge(parts: list[Samples]) -> Samples:
    """Put the samples of several processes that ran at the same time together."""
    examples: dict[str, str] = {}
    for part in parts:
        examples = part.examples | examples
    return Samples(
        start_s=min(part.start_s for part in parts),
        duration_s=parts[0].duration_s,
        intended_s=np.concatenate([part.intended_s for part in parts]),
        sent_s=np.concatenate([part.sent_s for part in parts]),
        done_s=np.concatenate([part.done_s for part in parts]),
        kinds=[kind for part in parts for kind in part.kinds],
        examples=examples,
        cpu_s=sum(part.cpu_s for part in parts),
        request_bytes=parts[0].request_bytes,
    )


def run_load(target: Target, load: Load, ready: Callable[[], object] = lambda: None) -> Samples:
    """Send one load from this process; `ready` is called when everything is warm and returns when the clock may run."""
    with ExitStack() as stack:
        request = stack.enter_context(prepared(target, load.seed))
        count = -(-(load.concurrency or 0) // CALLS_PER_CONNECTION) or OPEN_CONNECTIONS
        connections = [stack.enter_context(Connection(target)) for _ in range(count)]
        recorder = _Recorder(request)
        for connection in connections:
            recorder.warm_up(connection)
        ready()
        cpu_s = time.process_time()
        start_s = time.monotonic()
        drive = _drive_closed if load.concurrency is not None else _drive_open
        drive(recorder, connections, load, start_s)
        return recorder.samples(start_s, load.duration_s, time.process_time() - cpu_s)


class _Recorder:
    """Sends one prepared request and notes what comes back; used from many threads."""

    def __init__(self, request: Prepared) -> None:
        self.request = request
        self.timeout_s = request.target.timeout_s
        self._length: int | None = None  # of a right answer
        self._rows: list[tuple[float, float, float, str]] = []  # list.append is atomic
        self._examples: dict[str, str] = {}

    def warm_up(self, connection: Connection) -> None:
        """Open the connection and learn what an answer looks like; errors will be counted later."""
        for _ in range(WARMUP_REQUESTS):
            try:
                answer = connection.infer(self.request.message, timeout=self.timeout_s)
            except grpc.RpcError:
                return
            if self._length is None:
                check_answer(answer, self.request.target)
                self._length = len(answer)

    def ask(self, connection: Connection, intended_s: float | None = None) -> None:
        """Send and wait for the answer; without an intended time it is now."""
        sent_s = time.monotonic()
        try:
            answer, error = connection.infer(self.request.message, timeout=self.timeout_s), None
        except grpc.RpcError as failure:
            answer, error = None, failure
        self.note(sent_s if intended_s is None else intended_s, sent_s, answer, error)

    def note(self, intended_s: float, sent_s: float, answer: bytes | None, error: grpc.RpcError | None) -> None:
        """Keep one result, as of now."""
        done_s = time.monotonic()
        kind = OK
        if error is not None:
            kind = error.code().name
            self._examples.setdefault(kind, str(error.details())[:300])
        elif answer is not None and len(answer) != self._length:
            kind = UNEXPECTED
            self._examples.setdefault(kind, f"an answer of {len(answer)} bytes, the first one had {self._length}")
        self._rows.append((intended_s, sent_s, done_s, kind))

    def samples(self, start_s: float, duration_s: float, cpu_s: float) -> Samples:
        rows = sorted(self._rows)
        intended, sent, done, kinds = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Samples(
            start_s=start_s,
            duration_s=duration_s,
            intended_s=np.array(intended),
            sent_s=np.array(sent),
            done_s=np.array(done),
            kinds=list(kinds),
            examples=self._examples,
            cpu_s=cpu_s,
            request_bytes=self.request.request_bytes,
        )


def _drive_closed(recorder: _Recorder, connections: list[Connection], load: Load, start_s: float) -> None:
    """Run the callers until the time is over; what is under way then is waited for, and counts as a latency only."""
    end_s = start_s + load.duration_s

    def call(connection: Connection) -> None:
        while time.monotonic() < end_s:
            recorder.ask(connection)

    callers = [
        threading.Thread(target=call, args=(connections[k // CALLS_PER_CONNECTION],), name=f"caller-{k}")
        for k in range(load.concurrency or 0)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def _drive_open(recorder: _Recorder, connections: list[Connection], load: Load, start_s: float) -> None:
    """Send at the planned times, whatever happens to the answers, and wait for the last of them."""
    places = threading.BoundedSemaphore(max(16, IN_FLIGHT_BYTES // max(1, recorder.request.request_bytes)))
    landed: SimpleQueue[None] = SimpleQueue()
    arrivals = poisson(load.rate_per_s or 1, load.duration_s, load.seed)

    def land(future: grpc.Future, intended_s: float, sent_s: float) -> None:
        error = future if future.code() is not grpc.StatusCode.OK else None
        recorder.note(intended_s, sent_s, None if error is not None else future.result(), error)
        places.release()
        landed.put(None)

    for number, arrival in enumerate(arrivals):
        intended_s = start_s + float(arrival)
        if (pause_s := intended_s - time.monotonic()) > 0:
            time.sleep(pause_s)
        places.acquire()
        sent_s = time.monotonic()
        infer = connections[number % len(connections)].infer
        future = infer.future(recorder.request.message, timeout=recorder.timeout_s)
        future.add_done_callback(partial(land, intended_s=intended_s, sent_s=sent_s))
    for _ in arrivals:  # each has its deadline
        landed.get()


def poisson(rate_per_s: float, duration_s: float, seed: int = 0) -> NDArray[np.float64]:
    """Return the arrivals of independent callers, in seconds after the start, increasing, below `duration_s`.

    As many as `rate_per_s * duration_s` says, placed uniformly: a Poisson process of which the count is known, so that
    two runs of a rate offer the same load. Several processes with different seeds add up to one of the summed rate.
    """
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError(f"rate is {rate_per_s} per s for {duration_s} s, expected both above 0")
    count = max(1, round(rate_per_s * duration_s))
    return np.sort(np.random.default_rng(seed).uniform(0, duration_s, count))
