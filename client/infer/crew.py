"""Several sources at once: processes that share one server, one source each at a time.

A process that dies costs the source that it had, which another one tries once more; one that shows no new frame for too
long is ended. Ctrl-C reaches the parent only, which ends the others.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

from affserve.client.connection import Connection, connected
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import Outcome, WorkSettings
from affserve.train.errors import AffserveError

TRIES = 2  # of a source whose worker died
PATIENCE_S = 600.0  # without a new frame
END_TIMEOUT_S = 10.0  # for a worker to remove what it has not finished
PROGRESS_EVERY_S = 0.2
FRAMES_PER_WORKER = 600  # that pay for starting one
TERMINATED = 128 + signal.SIGTERM
Told = Callable[[Path | str, int, int | None], None]
"""Called with a source, the number of its frames done and the number announced."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A source and where its results go."""

    path: Path | str
    outputs: OutputPaths


def default_jobs(engine: str, hints: Sequence[int | None]) -> int:
    """Return how many sources to work on at once: as many as the cores carry, fewer where there is little work.

    engine: as the server tells it. hints: the frames that each source announces.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    frames = sum(hint or FRAMES_PER_WORKER for hint in hints)
    return max(1, min(len(hints), jobs_of_machine(cores, gpu="GPU" in engine), frames // FRAMES_PER_WORKER))


def jobs_of_machine(cores: int, *, gpu: bool) -> int:
    """Return how many sources at once keep a machine busy.

    Where a GPU computes, the cores are there for decoding and faces; where they compute themselves, half of them are.
    On two cores one source keeps them .86 busy by itself, and two at once are no faster.
    """
    return max(1, cores - 1 if gpu else cores // 2)


class Crew:
    """Some workers; a context manager that ends them."""

    def __init__(
        self,
        jobs: int,
        settings: WorkSettings,
        connection: Connection,
        model: ModelRecord,
        *,
        patience_s: float = PATIENCE_S,
        name: str = "worker",
    ) -> None:
        self.jobs = jobs
        self._name = name
        self._given = (settings, connection, model)
        self._patience_s = patience_s
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: set[_Worker] = set()
        self._hiring = threading.Lock()  # of two threads that hire at once each takes a number of its own
        self._closing = False

    def __enter__(self) -> Crew:
        """Return it; workers start when there is work."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the workers, with the files removed that are not complete."""
        self._closing = True
        for worker in list(self._workers):
            worker.process.terminate()
        for worker in list(self._workers):
            worker.end()

    def outcome(self, task: Task, told: Told = lambda *_: None) -> Outcome:
        """Have a source analysed; for up to `jobs` threads. ServerError where the server is gone."""
        reason = "it was stopped"
        for _ in range(TRIES):
            if self._closing:
                break
            worker = self._worker()
            outcome = worker.outcome(task, self._patience_s, lambda *seen: told(task.path, *seen))
            if outcome is not None:
                self._idle.put(worker)
                return replace(outcome, worker=f"{self._name} {worker.number}")
            worker.end()
            self._workers.discard(worker)
            if worker.stuck:
                reason = f"it was given up, without a new frame for {self._patience_s:g} s"
                break
            reason = f"the process that worked on it died (exit code {worker.process.exitcode}), {TRIES} times"
        return Outcome(path=task.path, outputs=task.outputs, error=f"{task.path}: {reason}")

    def _worker(self) -> _Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            with self._hiring:
                taken = {worker.number for worker in self._workers}
                number = next(number for number in itertools.count(1) if number not in taken)
                worker = _Worker(number, *self._given)
                self._workers.add(worker)
            return worker

    def outcomes(self, tasks: Iterable[Task], told: Told = lambda *_: None) -> Iterator[Outcome]:
        """Yield what became of the tasks as they finish; no more tasks are taken than are worked on."""
        under_way: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(self.jobs, thread_name_prefix="affserve-crew") as threads:
            try:
                for task in tasks:
                    under_way.add(threads.submit(self.outcome, task, told))
                    if len(under_way) >= self.jobs:
                        done, under_way = futures.wait(under_way, return_when=futures.FIRST_COMPLETED)
                        yield from (one.result() for one in done)
                for one in futures.as_completed(under_way):
                    yield one.result()
            finally:
                # Stopped in the middle: the threads wait for workers, which end now.
                if sys.exc_info()[0] is not None:
                    self.__exit__(None, None, None)


def in_order(outcomes: Iterable[Outcome], paths: Sequence[Path | str]) -> Iterator[Outcome]:
    """Yield outcomes in the order of their sources."""
    finished: dict[Path | str, Outcome] = {}
    waiting = deque(paths)
    for outcome in outcomes:
        finished[outcome.path] = outcome
        while waiting and waiting[0] in finished:
            yield finished.pop(waiting.popleft())


class _Worker:
    """A process and what it is working on."""

    def __init__(self, number: int, settings: WorkSettings, connection: Connection, model: ModelRecord) -> None:
        self.number = number
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, settings, connection, model), daemon=True)
        self.process.start()
        theirs.close()
        self.stuck = False

    def outcome(self, task: Task, patience_s: float, told: Callable[[int, int | None], None]) -> Outcome | None:
        """Have a source analysed; None where the process died, or was ended because nothing came for too long."""
        try:
            self.pipe.send(task)
            while self.pipe.poll(patience_s):
                message = self.pipe.recv()
                if isinstance(message, AffserveError):
                    raise message
                if isinstance(message, Outcome):
                    return message
                told(*message)
        except (EOFError, OSError):
            return None
        self.stuck = True
        self.process.kill()
        return None

    def end(self) -> None:
        """Wait for the process; two threads may do so at once, so the pipe is left to whoever lets go of it last."""
        self.process.join(END_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(pipe: Pipe, settings: WorkSettings, connection: Connection, model: ModelRecord) -> None:
    """Analyse what comes through the pipe until nothing comes any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings.prepare_process()
    try:
        with connected(connection) as client:
            analyst = settings.analyst(client, model)
            while True:
                task = pipe.recv()
                pipe.send(analyst.analyse(task.path, task.outputs, _sender(pipe)))
    except EOFError:
        return
    except AffserveError as error:
        pipe.send(error)


def _sender(pipe: Pipe) -> Callable[[int, int | None], None]:
    """Return what tells the parent about progress, now and then."""
    last = 0.0

    def send(done: int, hint: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            pipe.send((done, hint))

    return send


def _end_with_parent() -> None:
    """End this process, cleanly, when its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
