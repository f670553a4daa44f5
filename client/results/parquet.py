"""Parquet files: typed columns with description, unit and range, and what made the numbers in the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from affserve.client.results.metadata import Description
from affserve.client.results.rows import BLOCK_ROWS, Column, columns_in
from affserve.train.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


GROUP_ROWS = 8192  # about a megabyte: memory stays flat and a file compact
COMPRESSION = "zstd"


def read_parquet(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Yield the columns of a finished file, a block of rows at a time."""
    _, parquet = load_arrow()
    # Opened here: pyarrow takes names in UTF-8 only.
    with open(path, "rb") as content, parquet.ParquetFile(content) as file:
        for batch in file.iter_batches(batch_size=BLOCK_ROWS):
            yield columns_in(batch.to_pydict())


def parquet_is_intact(path: Path, _digest: str | None) -> bool:
    """Say whether the pages of a finished file are as they were written: each has a checksum, and needs no digest."""
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
