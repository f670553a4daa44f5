"""Files of columns with what these mean beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from affserve.client.results.metadata import described_text, metadata_path
from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import Column
from affserve.client.results.table import Table
from affserve.client.results.text import lines_of


def write_columns(
    path: Path, columns: Mapping[str, Sequence[str]], meanings: Iterable[Column], table: Table, *, key: Sequence[str]
) -> None:
    """Write a CSV file, and beside it what each of its columns means; table: what it was made of."""
    write_meanings(path, meanings, table, key=key)
    write_whole(path, lines_of([name, *cells] for name, cells in columns.items()).encode())


def write_meanings(path: Path, meanings: Iterable[Column], table: Table, *, key: Sequence[str]) -> None:
    """Write beside a file of columns what each of them means."""
    title = f"Affect per frame of {table.source}"
    text = described_text(meanings, table.provenance, name=path.name, title=title, source=table.source, key=key)
    write_whole(metadata_path(path), text.encode())
