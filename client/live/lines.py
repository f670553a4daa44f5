"""Live rows as JSON lines: one object a row, written at once, with how long it waited and what was counted so far.

The names are those of the JSON lines of `affserve infer`, and after them: delay_s, seconds from the arrival of the
frame to its answer; decoded and dropped, frames of the source so far.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from affserve.client.live.analysis import LiveAnswer
from affserve.client.live.frames import LiveCounters
from affserve.client.results.text import json_columns, json_lines_of
from affserve.export.contract import HeadDescription
from affserve.train.errors import OutputError

STANDARD_OUTPUT = Path("-")


class LiveLines:
    """Writes to a file, which is there from the first row on, or to standard output; path None: nowhere."""

    def __init__(self, path: Path | None, description: HeadDescription, counters: LiveCounters) -> None:
        self._path = path
        self._counters = counters
        self._labels = description.labels
        self._file = self._opened() if path is not None else None

    def _opened(self) -> TextIO:
        if self._path is None or self._path == STANDARD_OUTPUT:
            return sys.stdout
        try:
            return open(self._path, "w", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error

    def write(self, answer: LiveAnswer) -> bool:
        """Append the rows of an answer; False when the reader of standard output has seen enough."""
        if self._file is None:
            return True
        try:
            cells = json_columns(answer.rows, self._labels)
            cells["delay_s"] = [f"{delay_s:.4f}" for delay_s in answer.delay_s]
            cells |= {name: [str(getattr(self._counters, name))] * len(answer.rows) for name in ("decoded", "dropped")}
            self._file.write(json_lines_of(cells))
            self._file.flush()
        except BrokenPipeError:
            # The interpreter flushes standard output once more at its end; let that succeed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
            return False
        except OSError as error:
            raise self._error(error) from error
        return True

    def __enter__(self) -> LiveLines:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()

    def _error(self, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(f"{self._path} cannot be written: {reason}; choose another place with --jsonl")
