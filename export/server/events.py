"""The log of a server's life: one JSON object a line, for machines to read.

Events: starting, ready, restarting, waiting (for a full disk, say), errors (that Triton logged, such as refused
requests), not changed over (to a version that may not be served), gave up, stopping, stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from affserve.train.errors import OutputError

LIMIT_BYTES = 8 << 20  # then the file starts over, and one of that size before it is kept
READER_TIMEOUT_S = 1.0  # for who reads stderr to make room in its pipe

Event = Mapping[str, object]


def print_event(event: Event) -> None:
    """Write an event as one JSON line to stderr, if anybody takes it."""
    write_to_stderr(_line(event))


def write_to_stderr(line: str) -> None:
    """Write a line to stderr; where nobody takes it, it is lost, and the caller goes on.

    Past Python's own buffer: that keeps what could not be written, tries again when the process ends, and spoils its
    exit code.
    """
    # AttributeError: there is no stderr. ValueError: it was closed. OSError: its reader is gone, or the disk is full.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        file = sys.stderr.fileno()
        rest = f"{line}\n".encode(sys.stderr.encoding, errors="backslashreplace")
        while rest and select.select([], [file], [], READER_TIMEOUT_S)[1]:
            rest = rest[os.write(file, rest[: select.PIPE_BUF]) :]


def _line(event: Event) -> str:
    return json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **event})


class EventLog:
    """Writes events to a file, if there is one, and to stderr those that need somebody's attention."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()  # the supervisor's thread reports, too
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.open("a").close()
            except OSError as error:
                raise OutputError(
                    f"the log {file} cannot be written: {error.strerror}; choose another --log"
                ) from error

    def __call__(self, event: Event) -> None:
        """Record an event that needs attention."""
        print_event(event)
        self.record(event)

    def record(self, event: Event) -> None:
        """Write an event to the file only."""
        if self._file is None:
            return
        with self._lock:
            try:
                if self._file.exists() and self._file.stat().st_size > LIMIT_BYTES:
                    self._file.replace(f"{self._file}.1")
                with self._file.open("a", encoding="utf-8") as output:
                    output.write(f"{_line(event)}\n")
            except OSError as error:  # a full disk must not end the server
                print_event({"event": "log not written", "reason": str(error), "file": str(self._file)})
