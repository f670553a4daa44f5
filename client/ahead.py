"""An iterator that runs in a thread of its own, a bounded number of items ahead of who takes them.

Stages of a pipeline are iterators over one another; what lies between two of them decides what overlaps.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

STOP_POLL_S = 0.1


class Ahead(Generic[Item]):
    """Yields the items of an iterable, made in a thread; what that raises is raised after the items before it.

    Use it as a context manager. most: items that may wait. Of two that feed one another the feeding one is entered
    first, so that it still runs while the other one stops.
    """

    def __init__(self, items: Iterable[Item], most: int, name: str) -> None:
        self._items = items
        self._queue: queue.Queue[Item | _End] = queue.Queue(maxsize=most)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"affserve-{name}")

    def __enter__(self) -> Ahead[Item]:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for the thread."""
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        """Yield what was made."""
        while not isinstance(item := self._queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def _run(self) -> None:
        # Taken along: an iterator that is left in the middle is closed in the thread that ran it.
        items, self._items = self._items, ()
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # noqa: BLE001 raised again by who takes the items
            self._put(_End(error))
        else:
            self._put(_End(None))

    def _put(self, item: Item | _End) -> bool:
        """Queue an item; False when nobody is going to take it."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=STOP_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class _End:
    """No item follows."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
