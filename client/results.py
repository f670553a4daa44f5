"""Rows to a CSV file that explains itself: one column table makes the header, the help text and the metadata file.

In come blocks of rows as they are ready, out comes the text of `<name>.csv` and of `<name>.csv-metadata.json` (W3C "CSV
on the Web") with description, unit and range of every column and where the numbers come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.windows import Outputs

PROBABILITY_DIGITS = 4  # after the point
NO_TRACK = -1  # track_id of a row without a face
PROBABILITY_PREFIX = "p_"
ACTION_UNIT_MEANINGS = {
    "AU1": "inner brow raiser",
    "AU2": "outer brow raiser",
    "AU4": "brow lowerer",
    "AU6": "cheek raiser",
    "AU7": "lid tightener",
    "AU10": "upper lip raiser",
    "AU12": "lip corner puller",
    "AU15": "lip corner depressor",
    "AU23": "lip tightener",
    "AU24": "lip pressor",
    "AU25": "lips part",
    "AU26": "jaw drop",
}
VALENCE_AROUSAL_MEANINGS = {
    "valence": "how pleasant the expressed emotion is: -1 very unpleasant, 0 neutral, 1 very pleasant",
    "arousal": "how activated the person appears: -1 very passive, 0 neutral, 1 very active",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the result: what it holds and how it is printed."""

    name: str
    description: str
    datatype: str = "number"  # of CSV on the Web
    unit: str = ""  # "" for names and numbers without a unit
    minimum: float | None = None
    maximum: float | None = None
    digits: int = PROBABILITY_DIGITS  # after the point
    always: bool = False  # filled in every row, also where there is no face

    @property
    def template(self) -> str:
        """The printf conversion of one cell."""
        return {"integer": "%d", "string": "%s"}.get(self.datatype, f"%.{self.digits}f")

    @property
    def range(self) -> str:
        """The range as text, "" where there is none."""
        if self.minimum is None:
            return ""
        return f"{self.minimum:g} to {self.maximum:g}" if self.maximum is not None else f"{self.minimum:g} or more"


FRAME_COLUMNS = (
    Column(
        name="frame",
        description="frame number: 0, 1, 2, ... in decoding order; in a folder of images the number in the file name",
        datatype="integer",
        minimum=0,
        always=True,
    ),
    Column(
        name="timestamp_s",
        description="time since the start of the video stream, as the container gives it",
        unit="s",
        digits=6,
        always=True,
    ),
    Column(
        name="track_id",
        description="number of the person, 0, 1, 2, ... in order of appearance, the same through the whole file; empty "
        "where no face was found, and then all columns after it are empty too",
        datatype="integer",
        minimum=0,
    ),
    Column(name="box_x_px", description="left edge of the face box", unit="px", digits=1),
    Column(name="box_y_px", description="upper edge of the face box", unit="px", digits=1),
    Column(name="box_w_px", description="width of the face box", unit="px", digits=1, minimum=0),
    Column(name="box_h_px", description="height of the face box", unit="px", digits=1, minimum=0),
    Column(
        name="face_score",
        description="the face detector's confidence that this is a face",
        minimum=0,
        maximum=1,
    ),
)


def columns_of(labels: Mapping[str, Sequence[str]]) -> list[Column]:
    """Return the columns of a result whose head gives these labels per task (`HeadDescription.labels`), in order."""
    return [*FRAME_COLUMNS, *(column for task, names in labels.items() for column in _task_columns(task, names))]


def _task_columns(task: str, names: Sequence[str]) -> Iterator[Column]:
    if task == VALENCE_AROUSAL.key:
        for name in names:
            yield Column(name=name, description=VALENCE_AROUSAL_MEANINGS.get(name, name), minimum=-1, maximum=1)
    elif task == EXPRESSION.key:
        yield Column(name="expression", description="the most probable expression", datatype="string")
        for name in names:
            yield _probability(PROBABILITY_PREFIX + name, f"probability of the expression {name}; they sum to 1")
    elif task == ACTION_UNITS.key:
        for name in names:
            yield _probability(name, f"probability that {name} ({ACTION_UNIT_MEANINGS.get(name, name)}) is active")
    else:
        # A head may be newer than this client: its numbers are passed on under the names that it gives.
        yield from (Column(name=f"{task}_{name}", description=f"output {name} of task {task}") for name in names)


def _probability(name: str, description: str) -> Column:
    return Column(name=name, description=description, minimum=0, maximum=1)


def described_columns(labels: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return name and description, with unit and range, of every column: for help texts and documents."""
    lines = []
    for column in columns_of(labels):
        notes = ", ".join(note for note in (column.unit, column.range) if note)
        lines.append((column.name, f"{column.description} [{notes}]" if notes else column.description))
    return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A block of n consecutive rows of the result; NaN where a frame has no face.

    frame: (n,) int64. timestamp_s: (n,) float64. track_id: (n,) int64, NO_TRACK where a frame has no face.
    box_px: (n, 4) float64: x, y, width, height. face_score: (n,) float64. predictions: (n, K) float32 per task.
    Ordered by frame, then track_id. A frame has a row for each of its faces, or one row without a face.
    """

    frame: NDArray[np.int64]
    timestamp_s: NDArray[np.float64]
    track_id: NDArray[np.int64]
    box_px: NDArray[np.float64]
    face_score: NDArray[np.float64]
    predictions: Outputs

    def __len__(self) -> int:
        return len(self.frame)


class RowFormatter:
    """Turns blocks of rows into CSV text; always the same text for the same numbers."""

    def __init__(self, labels: Mapping[str, Sequence[str]]) -> None:
        self._labels = labels
        self._columns = columns_of(labels)
        with_face = [column.template for column in self._columns]
        without = [column.template if column.always else "" for column in self._columns]
        self._with_face = ",".join(with_face) + "\n"
        self._without_face = ",".join(without) + "\n"
        self._always = sum(column.always for column in self._columns)

    @property
    def header(self) -> str:
        """The first line."""
        return ",".join(column.name for column in self._columns) + "\n"

    def text(self, rows: Rows) -> str:
        """Render one block."""
        seen = (rows.track_id != NO_TRACK).tolist()
        return "".join(
            self._with_face % row if face else self._without_face % row[: self._always]
            for face, row in zip(seen, zip(*self._cells(rows), strict=True), strict=True)
        )

    def _cells(self, rows: Rows) -> Iterator[list[Any]]:
        """Yield the columns of a block, each a list of n cells."""
        yield rows.frame.tolist()
        yield rows.timestamp_s.tolist()
        yield rows.track_id.tolist()
        yield from rows.box_px.T.tolist()
        yield rows.face_score.tolist()
        for task, names in self._labels.items():
            values = rows.predictions[task]
            if task == EXPRESSION.key:
                yield [names[k] for k in values.argmax(axis=1)]
            # Adding 0 turns the -0 that rounding leaves into 0.
            yield from (np.round(values, PROBABILITY_DIGITS) + 0.0).T.tolist()


def csv_metadata(
    csv_name: str, labels: Mapping[str, Sequence[str]], *, source: str, provenance: Mapping[str, str]
) -> str:
    """Return the text of `<csv_name>-metadata.json`: the table's schema and where its numbers come from.

    source: name of the video. provenance: names and values that tell which model made the numbers.
    """
    document = {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": csv_name,
        "dc:title": f"Affect per frame of {source}",
        "dc:source": source,
        "schema:additionalProperty": [
            {"@type": "schema:PropertyValue", "schema:name": name, "schema:value": value}
            for name, value in provenance.items()
        ],
        "tableSchema": {"primaryKey": "frame", "columns": [_schema(column) for column in columns_of(labels)]},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


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
