"""Results as columns, for notebooks: a dict of NumPy arrays, which pandas.DataFrame(...) takes as it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.formats import FORMATS, format_of
from affserve.client.results.rows import NO_TRACK, Cells, Rows, column_values, columns_of, kind_of
from affserve.train.errors import OutputError

Table = dict[str, NDArray[Any]]
"""Of each column its n values. `frame` and `track_id` are int64 (track_id -1: no face), `expression` is text (None: no
face), all others are floating-point numbers (NaN: no face)."""

WHOLE = ("frame", "track_id")
EMPTY: Mapping[str, Any] = {"f": np.nan, "O": None}  # by NumPy's kind of type


def read_results(path: str | os.PathLike[str]) -> Table:
    """Read a file of rows that affserve wrote, CSV, Parquet or JSON lines; OutputError where it is none."""
    path = Path(path)
    row_format = format_of(path)
    if row_format is None:
        suffixes = ", ".join(suffix for one in FORMATS.values() for suffix in one.suffixes)
        raise OutputError(f"{path} is not named like a file of rows; expected a name in {suffixes}")
    try:
        blocks = list(row_format.cells(path))
        names = list(dict.fromkeys(name for block in blocks for name in block.columns))
        return {name: np.concatenate([_column(block, name) for block in blocks]) for name in names}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{path} cannot be read as rows of affserve: {error}") from error


def _column(cells: Cells, name: str) -> NDArray[Any]:
    if name in WHOLE:
        return cells.whole(name, empty=NO_TRACK)
    return np.array(cells.columns[name], dtype=object) if kind_of(name) == "one_of" else cells.numbers(name)


def table_of(blocks: Iterable[Rows], labels: Mapping[str, Sequence[str]]) -> Table:
    """Join blocks of rows to one table."""
    columns = columns_of(labels)
    parts: dict[str, list[NDArray[Any]]] = {column.name: [] for column in columns}
    for rows in blocks:
        for column, values in zip(columns, column_values(rows, labels), strict=True):
            if not column.always and column.name not in WHOLE:
                values = np.where(rows.track_id == NO_TRACK, EMPTY[values.dtype.kind], values).astype(values.dtype)
            parts[column.name].append(values)
    return {name: np.concatenate(values) if values else np.empty(0) for name, values in parts.items()}
