"""Ending a training from outside: SIGINT and SIGTERM become a request that the loop answers between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from affserve.train.errors import TrainingStopped
from affserve.train.signals import handled


class StopRequest:
    """Whether somebody asked the process to end: the first SIGTERM or SIGINT asks, a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def stop_here(self, saved: Path) -> None:
        """Raise TrainingStopped if somebody has asked; call it where nothing is lost."""
        if self.asked:
            raise TrainingStopped(f"stopped as asked, state saved in {saved}: the same command goes on from there")

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals while the block runs; only a process's main thread can."""
        with handled(signal.SIGTERM, signal.SIGINT, by=self._note):
            yield self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def ignore_signals(_: int) -> None:
    """Let a data loader's worker live on when its whole process group is told to end: the trainer ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
