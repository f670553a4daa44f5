"""A result as the page needs it: a summary for the list, and all numbers of every person as one block of bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.formats import format_of
from affserve.client.results.reading import read
from affserve.client.results.rows import NO_TRACK, prediction_columns
from affserve.client.results.table import Table, labels_in

ALIGN = 8  # bytes: where numbers begin, so that a browser looks at them in place
FACE_COLUMNS = ("box_x_px", "box_y_px", "box_w_px", "box_h_px", "face_score")


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultData:
    """A result in memory.

    table: as it was written. labels: of the tasks whose columns it has. provenance: what made the numbers.
    """

    table: Table
    labels: Mapping[str, tuple[str, ...]]
    provenance: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """Return what the list says of it."""
        frames, first = np.unique(self.table["frame"], return_index=True)
        times = self.table["timestamp_s"][first]
        with_face = np.unique(self.table["frame"][self.table["track_id"] != NO_TRACK])
        return {
            "frames": len(frames),
            "frames_with_face": len(with_face),
            "duration_s": float(times[-1] - times[0]) if len(times) else 0.0,
            "people": [{"track": int(track), "frames": int(count)} for track, count in self.people()],
            "trained_on": self.provenance.get("trained_on", "unknown"),
            "error": self.provenance.get("error"),
        }

    def people(self) -> list[tuple[int, int]]:
        """Return track ids and their numbers of frames, in order of appearance."""
        tracks, counts = np.unique(self.table["track_id"], return_counts=True)
        return [(int(track), int(count)) for track, count in zip(tracks, counts, strict=True) if track != NO_TRACK]

    @property
    def columns(self) -> list[str]:
        """The columns of numbers of a face, in the order of the payload."""
        names = [name for task, labels in self.labels.items() for name in prediction_columns(task, labels)]
        return [*(name for name in FACE_COLUMNS if name in self.table), *names]

    def described(self) -> list[dict[str, Any]]:
        """Return name, meaning, unit and range of every column."""
        return [
            {"name": one.name, "description": one.description, "unit": one.unit, "range": one.range}
            for one in self.table.columns.values()
        ]

    def payload(self, table: Table | None = None) -> bytes:
        """Return the numbers as bytes: little-endian, a length, a JSON header, then arrays, each aligned to 8 bytes.

        float64 (F,) times in seconds; int32 (F,) frame numbers; then of each person int32 (n,) the ordinals of the
        frames and of each column float32 (n,).
        """
        table = self.table if table is None else table
        frames, ordinal = np.unique(table["frame"], return_inverse=True)
        times = np.zeros(len(frames))
        times[ordinal] = table["timestamp_s"]
        arrays: list[NDArray[Any]] = [times.astype("<f8"), frames.astype("<i4")]
        people = []
        for track in np.unique(table["track_id"]):
            if track != NO_TRACK:
                mine = np.flatnonzero(table["track_id"] == track)
                people.append({"track": int(track), "rows": len(mine)})
                arrays.append(ordinal[mine].astype("<i4"))
                arrays += [table[name][mine].astype("<f4") for name in self.columns]
        header = json.dumps({"frames": len(frames), "people": people, "columns": self.columns}).encode()
        parts = [len(header).to_bytes(4, "little") + header, *(array.tobytes() for array in arrays)]
        return b"".join(part + bytes(-len(part) % ALIGN) for part in parts)


def read_result(path: Path) -> ResultData:
    """Read a file of rows; OutputError where it is none."""
    table = read(path, edited=False)
    return ResultData(table=table, labels=labels_in(table), provenance=table.provenance)


def source_name(result: Path) -> str | None:
    """Return the name of the video that a result says it was made from; None where it does not say."""
    row_format = format_of(result)
    return Path(row_format.description(result).source).name or None if row_format is not None else None
