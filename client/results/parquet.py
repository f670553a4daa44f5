"""Rows as a Parquet file: typed columns with description, unit and range, and what made the numbers in the schema.

Rows are gathered into row groups of `GROUP_ROWS`, about a megabyte, so that memory stays flat and the file compact.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.metadata import Description, ResultTable
from affserve.client.results.output_file import OutputFile
from affserve.client.results.rows import BLOCK_ROWS, NO_TRACK, Cells, Column, Rows, column_values, columns_of
from affserve.train.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


GROUP_ROWS = 8192
COMPRESSION = "zstd"


class ParquetRowWriter:
    """Writes row groups as rows come; `finish` makes the file complete."""

    def __init__(self, file: OutputFile, table: ResultTable) -> None:
        arrow, parquet = load_arrow()
        self._arrow = arrow
        self._labels = table.labels
        self._columns = columns_of(table.labels)
        self._schema = arrow.schema(
            [field_of(arrow, column) for column in self._columns],
            metadata={"title": table.title, "source": table.source, **table.provenance},
        )
        self._writer = parquet.ParquetWriter(
            _Sink(file), self._schema, compression=COMPRESSION, write_page_checksum=True
        )
        self._waiting: list[pyarrow.RecordBatch] = []

    def write(self, rows: Rows) -> None:
        self._waiting.append(self._batch(rows))
        if sum(batch.num_rows for batch in self._waiting) >= GROUP_ROWS:
            self._write_group()

    def finish(self, closing: Mapping[str, str]) -> None:
        self._write_group()
        self._writer.add_key_value_metadata(dict(closing))
        self._writer.close()

    def _write_group(self) -> None:
        if self._waiting:
            table = self._arrow.Table.from_batches(self._waiting, self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._waiting.clear()

    def _batch(self, rows: Rows) -> pyarrow.RecordBatch:
        faceless = rows.track_id == NO_TRACK
        values = zip(self._columns, self._schema.types, column_values(rows, self._labels), strict=True)
        arrays = [self._array(cells, kind, None if column.always else faceless) for column, kind, cells in values]
        return self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _array(self, cells: NDArray[Any], kind: pyarrow.DataType, empty: NDArray[np.bool_] | None) -> pyarrow.Array:
        if self._arrow.types.is_dictionary(kind):
            return self._arrow.array(cells, type=kind.value_type, mask=empty).dictionary_encode()
        return self._arrow.array(cells, type=kind, mask=empty, from_pandas=True)  # NaN is no value, either


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


def read_parquet(path: Path) -> Iterator[Cells]:
    """Yield the cells of a finished file, a block at a time."""
    _, parquet = load_arrow()
    # Opened here: pyarrow takes names in UTF-8 only.
    with open(path, "rb") as content, parquet.ParquetFile(content) as file:
        for batch in file.iter_batches(batch_size=BLOCK_ROWS):
            yield Cells(columns=batch.to_pydict())


def parquet_is_intact(path: Path) -> bool:
    """Say whether the pages of a finished file are as they were written: each has a checksum."""
    arrow, parquet = load_arrow()
    try:
        with open(path, "rb") as content, parquet.ParquetFile(content, page_checksum_verification=True) as file:
            return all(batch is not None for batch in file.iter_batches(batch_size=GROUP_ROWS))
    except (OSError, arrow.ArrowException):
        return False


def read_parquet_description(path: Path) -> Description:
    """Return what a finished file says of itself."""
    arrow, parquet = load_arrow()
    try:
        with open(path, "rb") as content, parquet.ParquetFile(content) as file:
            facts = _texts(file.metadata.metadata)
            columns = {one.name: _column(arrow, one) for one in file.schema_arrow if one.metadata}
    except (OSError, arrow.ArrowInvalid):
        return Description()
    provenance = {name: fact for name, fact in facts.items() if name != "title" and not name.startswith("ARROW:")}
    return Description(source=provenance.pop("source", ""), columns=columns, provenance=provenance)


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (metadata or {}).items()}


def _column(arrow: Any, field: pyarrow.Field) -> Column:
    notes = _texts(field.metadata)
    minimum, maximum = (json.loads(notes.get(name, "null")) for name in ("minimum", "maximum"))
    storage = (
        "string"
        if arrow.types.is_dictionary(field.type)
        else {"double": "float64", "float": "float32"}.get(str(field.type), str(field.type))
    )
    return Column(
        name=field.name,
        description=notes.get("description", ""),
        storage=storage,
        unit=notes.get("unit", ""),
        always=not field.nullable,
        minimum=minimum,
        maximum=maximum,
    )


def field_of(arrow: Any, column: Column) -> pyarrow.Field:
    """Return the field of a column: its type, and meaning, unit and range as metadata."""
    string = arrow.dictionary(arrow.int32(), arrow.string())
    kind = string if column.storage == "string" else arrow.type_for_alias(column.storage)
    facts = {"unit": column.unit, "minimum": column.minimum, "maximum": column.maximum}
    notes = {name: f"{fact:g}" if isinstance(fact, float | int) else fact for name, fact in facts.items()}
    known = {name: note for name, note in notes.items() if note}
    return arrow.field(
        column.name, kind, nullable=not column.always, metadata={"description": column.description, **known}
    )


def load_arrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module: they take a while to load and are an optional dependency."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    except ImportError as error:  # a release for another NumPy
        raise OutputError(f"Parquet cannot be written ({error}); expected what affserve[parquet] installs") from error
    return pyarrow, pyarrow.parquet
