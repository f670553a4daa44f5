"""The formats that rows are written in, behind one small interface: CSV, Parquet and JSON lines.

A writer takes blocks of rows as they come and writes to an OutputFile; it holds no more than a block (Parquet: a row
group), so that memory does not grow with the length of the video.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from affserve.client.results.edits import NO_EDITS, Edits
from affserve.client.results.metadata import Description, ResultTable, metadata_path, read_metadata
from affserve.client.results.output_file import OutputFile
from affserve.client.results.parquet import (
    COMPRESSION,
    GROUP_ROWS,
    field_of,
    load_arrow,
    parquet_is_intact,
    read_parquet,
    read_parquet_description,
)
from affserve.client.results.rows import Rows, columns_of, rows_of
from affserve.client.results.table import Columns, table_of
from affserve.client.results.text import RowFormatter, json_columns, json_lines_of, read_csv, read_json_lines
from affserve.train.errors import OutputError
from affserve.train.files import file_sha256

if TYPE_CHECKING:
    import pyarrow

Labels = Mapping[str, tuple[str, ...]]


class RowWriter(Protocol):
    """Writes rows to one file."""

    def write(self, rows: Rows) -> None:
        """Append a block."""
        ...

    def finish(self, closing: Mapping[str, str]) -> None:
        """Write what is left; `closing` is provenance that is known only at the end."""
        ...


def _described_beside(path: Path) -> Description:
    return read_metadata(metadata_path(path))


def _has_digest(path: Path, digest: str | None) -> bool:
    return file_sha256(path) == digest


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """One format of rows. It goes to other processes, so its functions are those of modules."""

    name: str
    suffixes: tuple[str, ...]  # of file names; the first is the usual one
    open: Callable[[OutputFile, ResultTable], RowWriter]
    columns: Callable[[Path], Iterator[Columns]]  # reads a finished file, a block of rows at a time
    describes_itself: bool = False  # schema and provenance are in the file, not in one beside it
    description: Callable[[Path], Description] = _described_beside  # of a finished file
    is_intact: Callable[[Path, str | None], bool] = _has_digest  # is it as it was written; the SHA-256 told beside it

    def read(self, path: Path, labels: Labels, edits: Edits = NO_EDITS) -> Iterator[Rows]:
        """Yield the rows of a finished file in blocks, as edited."""
        return (rows_of(columns, labels) for columns in edits.applied(self.columns(path)))


class TextWriter:
    """Rows as lines of text, after a header if there is one."""

    def __init__(self, file: OutputFile, text: Callable[[Rows], str], header: str = "") -> None:
        self._file = file
        self._text = text
        file.write(header.encode())

    def write(self, rows: Rows) -> None:
        self._file.write(self._text(rows).encode())

    def finish(self, closing: Mapping[str, str]) -> None:
        """Do nothing: every row is written, and what is known at the end stands beside the file."""


class ParquetRowWriter:
    """Writes row groups as rows come; `finish` makes the file complete."""

    def __init__(self, file: OutputFile, table: ResultTable) -> None:
        arrow, parquet = load_arrow()
        self._arrow = arrow
        self._labels = table.labels
        schema = arrow.schema(
            [field_of(arrow, column) for column in columns_of(table.labels)],
            metadata={"title": table.title, "source": table.source, **table.provenance},
        )
        self._writer = parquet.ParquetWriter(_Sink(file), schema, compression=COMPRESSION, write_page_checksum=True)
        self._waiting: list[pyarrow.Table] = []

    def write(self, rows: Rows) -> None:
        self._waiting.append(table_of([rows], self._labels).to_arrow())
        if sum(table.num_rows for table in self._waiting) >= GROUP_ROWS:
            self._write_group()

    def finish(self, closing: Mapping[str, str]) -> None:
        self._write_group()
        self._writer.add_key_value_metadata(dict(closing))
        self._writer.close()

    def _write_group(self) -> None:
        if self._waiting:
            table = self._arrow.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting.clear()


class _Sink(io.RawIOBase):
    """What pyarrow writes to: it closes its file, which is not its to complete."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._bytes = 0

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, content: Any) -> int:
        """Append bytes."""
        self._file.write(bytes(content))
        self._bytes += len(content)
        return len(content)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._bytes


def _csv_writer(file: OutputFile, table: ResultTable) -> TextWriter:
    formatter = RowFormatter(table.labels)
    return TextWriter(file, formatter.text, formatter.header)


def _json_lines_writer(file: OutputFile, table: ResultTable) -> TextWriter:
    return TextWriter(file, lambda rows: json_lines_of(json_columns(rows, table.labels)))


CSV = RowFormat(name="csv", suffixes=(".csv",), open=_csv_writer, columns=read_csv)
PARQUET = RowFormat(
    name="parquet",
    suffixes=(".parquet", ".pq"),
    open=ParquetRowWriter,
    columns=read_parquet,
    describes_itself=True,
    description=read_parquet_description,
    is_intact=parquet_is_intact,
)
JSON_LINES = RowFormat(name="jsonl", suffixes=(".jsonl", ".ndjson"), open=_json_lines_writer, columns=read_json_lines)
FORMATS = {row_format.name: row_format for row_format in (CSV, PARQUET, JSON_LINES)}


def format_of(path: Path) -> RowFormat | None:
    """Return the format that a file name's suffix stands for, if any."""
    suffix = path.suffix.lower()
    return next((row_format for row_format in FORMATS.values() if suffix in row_format.suffixes), None)


def choose_format(name: str | None, out: Path | None, others: Collection[str] = ()) -> RowFormat:
    """Return the format asked for by name, else by the file's suffix, else CSV; OutputError where they disagree.

    out: the one file of rows, where there is one; without a suffix it is a device or a pipe. others: names of formats
    that are made of rows, whatever the format of these.
    """
    by_suffix = format_of(out) if out is not None else None
    if name is not None and name not in (*FORMATS, *others):
        raise OutputError(f"format is {name!r}, expected one of {', '.join([*FORMATS, *others])}")
    name = None if name in others else name
    if name is not None and by_suffix is not None and by_suffix.name != name:
        raise OutputError(f"{out} is named like {by_suffix.name}, but --format says {name}: change one of them")
    if name is None and by_suffix is None and out is not None and out.suffix:
        suffixes = ", ".join(FORMATS[one].suffixes[0] for one in FORMATS)
        raise OutputError(
            f"{out} is named like no format of rows; expected a name in {suffixes} (spreadsheets open .csv), --format, "
            "or the name of a folder"
        )
    chosen = FORMATS[name] if name is not None else by_suffix or CSV
    if chosen is PARQUET:
        load_arrow()  # what is missing is told before any work is done
    return chosen
