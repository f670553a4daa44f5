"""Columns of a table as text, as CSV prints them, and files of columns with what these mean beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.metadata import described_text, metadata_path
from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import NO_TRACK, Column
from affserve.client.results.table import Table


def printed(table: Table, name: str, rows: NDArray[np.int64] | slice = slice(None), *, empty: str = "") -> list[str]:
    """Return a column's cells in some rows, or all, with the digits of CSV."""
    column, values = table.columns[name], table[name][rows]
    if values.dtype == object:
        return [empty if value is None else value for value in values]
    hollow = values == NO_TRACK if name == "track_id" else np.isnan(values)
    # Adding 0 turns the -0 that rounding leaves into 0.
    numbers = (np.round(values, column.digits) + 0.0).tolist()
    return [empty if one else column.template % value for one, value in zip(hollow, numbers, strict=True)]


def json_cells(table: Table, name: str) -> list[str]:
    """Return a column's cells as JSON, null where a cell is empty."""
    if table[name].dtype == object:
        return [json.dumps(value).replace(">", "\\u003e") for value in table[name]]  # no end of a cue of WebVTT
    return printed(table, name, empty="null")


def lines_of(columns: Iterable[Sequence[str]], separator: str = ",") -> str:
    """Return rows of cells as lines of text."""
    return "".join(separator.join(cells) + "\n" for cells in zip(*columns, strict=True))


def write_columns(
    path: Path, columns: Mapping[str, Sequence[str]], meanings: Iterable[Column], table: Table, *, key: Sequence[str]
) -> None:
    """Write a CSV file, and beside it what each of its columns means; table: what it was made of."""
    write_meanings(path, meanings, table, key=key)
    write_whole(path, (",".join(columns) + "\n" + lines_of(columns.values())).encode())


def write_meanings(path: Path, meanings: Iterable[Column], table: Table, *, key: Sequence[str]) -> None:
    """Write beside a file of columns what each of them means."""
    title = f"Affect per frame of {table.source}"
    text = described_text(meanings, table.provenance, name=path.name, title=title, source=table.source, key=key)
    write_whole(metadata_path(path), text.encode())
