"""Columns of a table as text, as CSV prints them, and files of columns with what these mean beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.metadata import described_text, metadata_path
from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import Column
from affserve.client.results.table import Table


def printed(table: Table, name: str, rows: NDArray[np.int64], *, empty: str = "") -> list[str]:
    """Return a column's cells in some rows, with the digits of CSV."""
    column = table.columns[name]
    # Adding 0 turns the -0 that rounding leaves into 0.
    values = (np.round(table[name][rows], column.digits) + 0.0).tolist()
    return [empty if value != value else column.template % value for value in values]


def lines_of(columns: Iterable[Sequence[str]], separator: str = ",") -> str:
    """Return rows of cells as lines of text."""
    return "".join(separator.join(cells) + "\n" for cells in zip(*columns, strict=True))


def write_columns(
    path: Path, columns: Mapping[str, Sequence[str]], meanings: Iterable[Column], table: Table, *, key: Sequence[str]
) -> None:
    """Write a CSV file, and beside it what each of its columns means; table: what it was made of."""
    title = f"Affect per frame of {table.source}"
    text = described_text(meanings, table.provenance, name=path.name, title=title, source=table.source, key=key)
    write_whole(metadata_path(path), text.encode())
    write_whole(path, (",".join(columns) + "\n" + lines_of(columns.values())).encode())
