"""OpenFace 2's CSV, for the scripts that read it: presence of action units, a row per face and frame.

OpenFace counts frames from 1 and writes a row with `success` 0 for a frame without a face. Intensities (`AUxx_r`),
gaze, head pose and landmarks are no output of this model and are left out, not invented.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from affserve.client.exchange.columns import write_columns
from affserve.client.results.people import states_of
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, NO_TRACK, Column
from affserve.client.results.table import Table, labels_in
from affserve.client.results.text import printed


def write_openface(table: Table, path: Path) -> list[str]:
    """Write the file; return what it does not hold."""
    face = table["track_id"] != NO_TRACK
    active = states_of(table)
    units = {f"AU{int(name[2:]):02}_c": name for name in labels_in(table).get("action_units", ())}
    columns = {
        "frame": [str(number + 1) for number in table["frame"].tolist()],
        "face_id": [str(track) for track in np.where(face, table["track_id"], 0).tolist()],
        "timestamp": printed(table, "timestamp_s"),
        "confidence": [score if seen else "0" for score, seen in zip(printed(table, "face_score"), face, strict=True)],
        "success": _flags(face),
        **{column: _flags(active[name]) for column, name in units.items()},
    }
    write_columns(path, columns, _meanings(table, units), table, key=("frame", "face_id"))
    notes = ["OpenFace has no place for valence, arousal, expressions and probabilities: left out"]
    if np.isnan(table["face_score"][face]).any():
        notes.append("these faces have no detector score: confidence is empty, and filters by it drop every row")
    return notes


def _flags(holds: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> list[str]:
    return ["1" if one else "0" for one in holds.tolist()]


def _meanings(table: Table, units: dict[str, str]) -> list[Column]:
    whole = {"storage": "int64", "always": True}
    return [
        Column(name="frame", description="frame number, from 1", minimum=1, **whole),  # type: ignore[arg-type]
        Column(name="face_id", description="number of the person; 0 where there is no face", minimum=0, **whole),  # type: ignore[arg-type]
        replace(table.columns["timestamp_s"], name="timestamp"),
        replace(table.columns["face_score"], name="confidence"),
        _flag("success", "1: a face was found"),
        *(
            _flag(column, f"1: {name} ({ACTION_UNIT_MEANINGS.get(name, name)}) is active")
            for column, name in units.items()
        ),
    ]


def _flag(name: str, description: str) -> Column:
    return Column(name=name, description=description, storage="int64", minimum=0, maximum=1, always=True)
