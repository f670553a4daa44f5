"""Signals that are to end a process, handled by somebody else for as long as a block runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT  # exit code of a process that Ctrl-C has ended, as shells expect it
_handled: set[int] = set()


def was_interrupted() -> bool:
    """Say whether a SIGINT was taken by a handler of this module: the work was ended early, however cleanly."""
    return signal.SIGINT in _handled


@contextmanager
def handled(*numbers: signal.Signals, by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have `by` handle the signals while the block runs, and whoever did so before afterwards.

    Only a process's main thread can: in another one everything stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def noted(number: int, frame: FrameType | None) -> object:
        _handled.add(number)
        return by(number, frame)

    before = {number: signal.signal(number, noted) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
