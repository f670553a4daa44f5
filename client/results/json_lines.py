"""Rows as JSON lines: an object a row, names and printed numbers as in the CSV, null where there is no face."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from affserve.client.results.rows import BLOCK_ROWS, Column, Lines, Rows, columns_in, columns_of


class JsonLines(Lines):
    """Rows as text, one JSON object a line; more: names and printf templates of what follows the columns."""

    def __init__(self, labels: Mapping[str, Sequence[str]], more: Mapping[str, str] | None = None) -> None:
        columns = columns_of(labels)
        cells = {column.name: _cell(column) for column in columns}
        faceless = {column.name: cells[column.name] if column.always else "null" for column in columns}
        super().__init__(
            labels, with_face=_object({**cells, **(more or {})}), without_face=_object({**faceless, **(more or {})})
        )

    def text(self, rows: Rows, more: Iterable[tuple[Any, ...]] = repeat(())) -> str:
        """Render one block; more: of each row, what follows its columns."""
        text = super().text(rows, more)
        # JSON has no word for a number that is none, should a model give one.
        return text.replace(f": {math.nan}", ": null") if f": {math.nan}" in text else text


def _object(cells: Mapping[str, str]) -> str:
    """Return the printf template of one line from those of its cells."""
    return "{" + ", ".join(f"{json.dumps(name).replace('%', '%%')}: {cell}" for name, cell in cells.items()) + "}\n"


def _cell(column: Column) -> str:
    return f'"{column.template}"' if column.storage == "string" else column.template


def read_json_lines(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Yield the columns of a finished file, a block of rows at a time."""
    with open(path, encoding="utf-8") as file:
        while rows := [json.loads(line) for line in islice(file, BLOCK_ROWS)]:
            yield columns_in({name: [row[name] for row in rows] for name in rows[0]})
