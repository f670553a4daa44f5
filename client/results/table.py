"""Results as columns, for notebooks and for what is made of finished results: arrays by name, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import (
    NO_TRACK,
    PROBABILITY_PREFIX,
    WHOLE,
    Column,
    Rows,
    column_values,
    columns_of,
    prediction_columns,
)
from affserve.train.labels import TASKS

Columns = Mapping[str, NDArray[Any]]
"""n values of each column by name."""

EMPTY: Mapping[str, Any] = {"f": np.nan, "O": None}  # by NumPy's kind of type


class Table(dict[str, NDArray[Any]]):
    """The n values of each column by name, in the order of the file: `pandas.DataFrame(table)` takes it as it is.

    `frame` and `track_id` are int64 (track_id -1: no face), text is object (None: no face), all others are
    floating-point numbers (NaN: no face). columns: meaning, unit and range of each. source: name of the video.
    provenance: what made the numbers, by name; empty where the file of rows has lost its metadata. names: of people, by
    track_id, where somebody gave them one.
    """

    def __init__(
        self,
        values: Mapping[str, NDArray[Any]],
        *,
        columns: Mapping[str, Column],
        source: str = "",
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(values)
        self.columns = {name: columns.get(name) or _unknown(name, column) for name, column in values.items()}
        self.source = source
        self.provenance = dict(provenance or {})
        self.names: dict[int, str] = {}

    @property
    def units(self) -> dict[str, str]:
        """The unit of each column that has one."""
        return {name: column.unit for name, column in self.columns.items() if column.unit}

    @property
    def measures(self) -> list[str]:
        """The columns with the model's numbers."""
        return [name for task, names in labels_in(self).items() for name in prediction_columns(task, names)]

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame, with source, units, descriptions and provenance in its `attrs`."""
        import pandas as pd

        frame = pd.DataFrame(self)
        described = {name: column.description for name, column in self.columns.items()}
        frame.attrs = {
            "source": self.source,
            "units": self.units,
            "descriptions": described,
            "provenance": self.provenance,
        }
        return frame

    def to_arrow(self) -> Any:
        """Return a pyarrow.Table: empty cells are null; descriptions, units and ranges are in the schema."""
        from affserve.client.results.parquet import field_of, load_arrow

        arrow, _ = load_arrow()
        fields = [field_of(arrow, column) for column in self.columns.values()]
        schema = arrow.schema(
            fields, metadata={"title": f"Affect per frame of {self.source}", "source": self.source, **self.provenance}
        )
        faceless = self["track_id"] == NO_TRACK
        arrays = [
            arrow.array(values, mask=faceless if name == "track_id" else None, from_pandas=True).cast(field.type)
            for (name, values), field in zip(self.items(), fields, strict=True)
        ]
        return arrow.Table.from_arrays(arrays, schema=schema)


def _unknown(name: str, values: NDArray[Any]) -> Column:
    """Return what can be said of a column that somebody added."""
    return Column(name=name, description=name, storage="string" if values.dtype.kind == "O" else "float64")


def labels_in(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the labels per task that columns of these names hold, in their order."""
    labels = {
        "valence_arousal": tuple(name for name in names if name in TASKS["valence_arousal"].names),
        "expression": tuple(
            name.removeprefix(PROBABILITY_PREFIX) for name in names if name.startswith(PROBABILITY_PREFIX)
        ),
        "action_units": tuple(name for name in names if name[:2] == "AU" and name[2:].isdecimal()),
    }
    return {task: found for task, found in labels.items() if found}


def table_of(blocks: Iterable[Rows], labels: Mapping[str, Sequence[str]]) -> Table:
    """Join blocks of rows to one table."""
    columns = columns_of(labels)
    parts: dict[str, list[NDArray[Any]]] = {column.name: [] for column in columns}
    for rows in blocks:
        for column, values in zip(columns, column_values(rows, labels), strict=True):
            if not column.always and column.name not in WHOLE:
                values = np.where(rows.track_id == NO_TRACK, EMPTY[values.dtype.kind], values).astype(values.dtype)
            parts[column.name].append(values)
    joined = {name: np.concatenate(values) if values else np.empty(0) for name, values in parts.items()}
    return Table(joined, columns={column.name: column for column in columns})
