"""Tasks one after the other, in a thread of their own: each tells how far it is, can be paused, and cancelled.

What fails says why and stops no other.
"""

from __future__ import annotations

import secrets
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from affserve.client.video.source import Progress
from affserve.train.errors import AffserveError

OPEN_STATES = ("copying", "waiting", "running")


class Cancelled(Exception):
    """Ends the work of a task that is no longer wanted."""


@dataclass(kw_only=True, eq=False)
class Task:
    """Something to do."""

    name: str  # for people
    work: Callable[[Progress], str]  # returns an address of what came of it; AffserveError: it failed
    undo: Callable[[], None] = lambda: None  # called when it has failed or was cancelled
    id: str = field(default_factory=partial(secrets.token_hex, 8))
    state: str = "waiting"  # or copying, before it is in the queue; running, done, failed or cancelled
    done: int = 0  # frames; bytes while copying
    total: int | None = None
    outcome: str = ""
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what a page shows."""
        return {name: value for name, value in vars(self).items() if name not in ("work", "undo")}


class Queue:
    """The tasks, in the order in which they came."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.paused = False
        self._changed = threading.Condition()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="affserve-queue")

    def add(self, task: Task) -> Task:
        """Put a task at the end."""
        self.tasks[task.id] = task
        self._executor.submit(self._run, task).add_done_callback(_tell_the_unexpected)
        return task

    def pause(self, paused: bool) -> None:
        """Stop after the frames under way, or go on."""
        with self._changed:
            self.paused = paused
            self._changed.notify_all()

    def cancel(self, task: Task) -> None:
        """Give up a task that is not done."""
        with self._changed:
            if task.state in OPEN_STATES:
                task.state = "cancelled"
            self._changed.notify_all()

    def close(self) -> None:
        """Give up all that is not done, and wait until nothing is under way."""
        for task in list(self.tasks.values()):
            self.cancel(task)
        self._executor.shutdown()

    def _run(self, task: Task) -> None:
        try:
            self._step(task, 0, None)
            task.state = "running"
            outcome = task.work(partial(self._step, task))
            with self._changed:
                if task.state == "running":
                    task.state, task.outcome = "done", outcome
        except Cancelled:
            pass
        except AffserveError as error:
            task.state, task.error = "failed", str(error)
        finally:
            if task.state == "running":
                task.state, task.error = "failed", "an error inside affserve; its trace stands in the terminal"
            if task.state != "done":
                task.undo()

    def _step(self, task: Task, done: int, total: int | None) -> None:
        """Note how far a task is; wait here while all are paused."""
        task.done, task.total = done, total
        with self._changed:
            self._changed.wait_for(lambda: not self.paused or task.state == "cancelled")
            if task.state == "cancelled":
                raise Cancelled


def _tell_the_unexpected(future: Future[None]) -> None:
    if (error := future.exception()) is not None:
        traceback.print_exception(error)
