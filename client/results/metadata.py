"""What stands beside the rows: their schema and where the numbers come from, as W3C's "CSV on the Web" writes it.

The same facts go into the file itself where the format has a place for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import Column, columns_of

SUFFIX = "-metadata.json"
DIGEST = "rows_sha256"  # in the provenance, of the file of rows


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """What every format tells about its rows."""

    name: str  # of the file of rows
    source: str  # name of the video
    labels: Mapping[str, tuple[str, ...]]  # task -> label names, as the head gives them
    provenance: Mapping[str, str]  # what made the numbers, by name

    @property
    def title(self) -> str:
        """One line for people."""
        return f"Affect per frame of {self.source}"


def metadata_path(rows: Path) -> Path:
    """Return where the metadata of a file of rows stands."""
    return rows.with_name(rows.name + SUFFIX)


def write_metadata(rows: Path, table: ResultTable, closing: Mapping[str, str]) -> Path:
    """Write the metadata of a file of rows beside it; closing: provenance that is known only at the end."""
    path = metadata_path(rows)
    text = metadata_text(replace(table, provenance={**table.provenance, **closing}))
    write_whole(path, text.encode())
    return path


def metadata_text(table: ResultTable) -> str:
    """Return the text of the metadata file of a result."""
    columns = columns_of(table.labels)
    return described_text(
        columns, table.provenance, name=table.name, title=table.title, source=table.source, key=("frame", "track_id")
    )


def described_text(
    columns: Iterable[Column], provenance: Mapping[str, str], *, name: str, title: str, source: str, key: Sequence[str]
) -> str:
    """Return the text of a metadata file; name: of the file it describes. key: columns that tell rows apart."""
    document = {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": name,
        "dc:title": title,
        "dc:source": source,
        "schema:additionalProperty": [
            {"@type": "schema:PropertyValue", "schema:name": name, "schema:value": value}
            for name, value in provenance.items()
        ],
        "tableSchema": {"primaryKey": list(key), "columns": [_schema(column) for column in columns]},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a finished file tells about itself; empty where there is no metadata or it is not ours."""

    source: str = ""  # name of the video
    columns: Mapping[str, Column] = field(default_factory=dict)  # by name
    provenance: Mapping[str, str] = field(default_factory=dict)


def read_metadata(path: Path) -> Description:
    """Return what a metadata file says."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        facts = document["schema:additionalProperty"]
        return Description(
            source=str(document["dc:source"]),
            columns={schema["name"]: _column(schema) for schema in document["tableSchema"]["columns"]},
            provenance={entry["schema:name"]: entry["schema:value"] for entry in facts},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Description()


def _column(schema: Mapping[str, Any]) -> Column:
    datatype = schema["datatype"]
    return Column(
        name=schema["name"],
        description=schema["dc:description"],
        storage={"integer": "int64", "string": "string"}.get(datatype["base"], "float64"),
        unit=schema.get("schema:unitText", ""),
        minimum=datatype.get("minimum"),
        maximum=datatype.get("maximum"),
        always=schema["required"],
    )


def _schema(column: Column) -> dict[str, Any]:
    limits = {"minimum": column.minimum, "maximum": column.maximum}
    datatype = {"base": column.datatype, **{name: value for name, value in limits.items() if value is not None}}
    schema: dict[str, Any] = {
        "name": column.name,
        "dc:description": column.description,
        "datatype": datatype,
        "required": column.always,
    }
    return {**schema, "schema:unitText": column.unit} if column.unit else schema
