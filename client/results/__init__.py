"""Rows in, files out and rows back: the columns, their formats and what describes them.

Read rows, table, text, formats, output_file, metadata, edits, people, reading. For notebooks: `read(path)` returns a
finished file as a table.
"""

from __future__ import annotations

from typing import Any

__all__ = ["read"]


def __getattr__(name: str) -> Any:
    if name == "read":  # on demand: commands that print no rows need no NumPy
        from affserve.client.results.reading import read

        return read
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
