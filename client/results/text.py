"""Tables as text and back: CSV, and JSON lines with the same printed numbers, null where there is no face."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import BLOCK_ROWS, NO_TRACK, Rows, columns_in, columns_of
from affserve.client.results.table import Columns, Table, table_of


def printed(
    table: Table, name: str, rows: NDArray[np.int64] | slice = slice(None), *, empty: str = "", as_made: bool = False
) -> list[str]:
    """Return a column's cells in some rows, or all; as_made: of numbers that no file has held, the model's are rounded.

    The others are printed as they are.
    """
    column, values = table.columns[name], table[name][rows]
    if values.dtype == object:
        return [empty if value is None else value for value in values]
    hollow = values == NO_TRACK if name == "track_id" else np.isnan(values)
    if values.dtype == np.float32 or not as_made:
        # Adding 0 turns the -0 that rounding leaves into 0.
        values = np.round(values, column.digits) + 0.0
    cells = list(map(column.template.__mod__, np.where(hollow, 0, values).tolist()))
    for place in np.flatnonzero(hollow):
        cells[place] = empty
    return cells


def json_cells(table: Table, name: str, *, as_made: bool = False) -> list[str]:
    """Return a column's cells as JSON, null where a cell is empty."""
    if table[name].dtype == object:
        return [json.dumps(value).replace(">", "\\u003e") for value in table[name]]  # no end of a cue of WebVTT
    return printed(table, name, empty="null", as_made=as_made)


def lines_of(columns: Iterable[Sequence[str]], separator: str = ",") -> str:
    """Return rows of cells as lines of text, in quotes where a column that somebody added needs them."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def json_lines_of(columns: Mapping[str, Sequence[str]]) -> str:
    """Return rows of cells, which are JSON, as an object a line."""
    cells = [[f"{json.dumps(name)}: {cell}" for cell in column] for name, column in columns.items()]
    return "".join("{" + ", ".join(row) + "}\n" for row in zip(*cells, strict=True))


class RowFormatter:
    """Turns blocks of rows into CSV text; always the same text for the same numbers."""

    def __init__(self, labels: Mapping[str, Sequence[str]]) -> None:
        self._labels = labels
        self.header = ",".join(column.name for column in columns_of(labels)) + "\n"  # the first line

    def text(self, rows: Rows) -> str:
        """Render one block."""
        table = table_of([rows], self._labels)
        return lines_of([printed(table, name, as_made=True) for name in table])


def json_columns(rows: Rows, labels: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the cells of a block of rows as JSON."""
    table = table_of([rows], labels)
    return {name: json_cells(table, name, as_made=True) for name in table}


def read_csv(path: Path) -> Iterator[Columns]:
    """Yield the columns of a finished CSV file, a block of rows at a time."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        names = next(lines)
        while block := list(islice(lines, BLOCK_ROWS)):
            cells = ([cell or None for cell in column] for column in zip(*block, strict=True))
            yield columns_in(dict(zip(names, cells, strict=True)))


def read_json_lines(path: Path) -> Iterator[Columns]:
    """Yield the columns of a finished file of JSON lines, a block of rows at a time."""
    with open(path, encoding="utf-8") as file:
        while rows := [json.loads(line) for line in islice(file, BLOCK_ROWS)]:
            yield columns_in({name: [row[name] for row in rows] for name in rows[0]})
