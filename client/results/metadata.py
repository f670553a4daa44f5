"""What stands beside the rows: their schema and where the numbers come from, as W3C's "CSV on the Web" writes it.

The same facts go into the file itself where the format has a place for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.client.results.rows import Column, columns_of

SUFFIX = "-metadata.json"


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


def metadata_text(table: ResultTable) -> str:
    """Return the text of the metadata file."""
    document = {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": table.name,
        "dc:title": table.title,
        "dc:source": table.source,
        "schema:additionalProperty": [
            {"@type": "schema:PropertyValue", "schema:name": name, "schema:value": value}
            for name, value in table.provenance.items()
        ],
        "tableSchema": {"primaryKey": ["frame", "track_id"], "columns": schema_of(table.labels)},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def read_provenance(path: Path) -> dict[str, str]:
    """Return the provenance in a metadata file; none where there is no such file or it is not ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {entry["schema:name"]: entry["schema:value"] for entry in document["schema:additionalProperty"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def schema_of(labels: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return name, description, type, unit and range of every column."""
    return [_schema(column) for column in columns_of(labels)]


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
