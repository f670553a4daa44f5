"""A result as the page needs it: a summary for the list, and all numbers of every person as one block of bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import NO_TRACK
from affserve.client.results.table import Table

ALIGN = 8  # bytes: where numbers begin, so that a browser looks at them in place
FACE_COLUMNS = ("box_x_px", "box_y_px", "box_w_px", "box_h_px", "face_score")


def summary_of(table: Table) -> dict[str, Any]:
    """Return what the list says of a result."""
    frames, first = np.unique(table["frame"], return_index=True)
    times = table["timestamp_s"][first]
    tracks, counts = np.unique(table["track_id"], return_counts=True)
    people = [(int(track), int(count)) for track, count in zip(tracks, counts, strict=True) if track != NO_TRACK]
    return {
        "frames": len(frames),
        "frames_with_face": len(np.unique(table["frame"][table["track_id"] != NO_TRACK])),
        "duration_s": float(times[-1] - times[0]) if len(times) else 0.0,
        "people": [{"track": track, "frames": count} for track, count in people],
        "trained_on": table.provenance.get("trained_on", "unknown"),
        "error": table.provenance.get("error"),
    }


def payload(table: Table) -> bytes:
    """Return the numbers as bytes: little-endian, a length, a JSON header, then arrays, each aligned to 8 bytes.

    float64 (F,) times in seconds; int32 (F,) frame numbers; then of each person int32 (n,) the ordinals of the frames
    and of each column float32 (n,).
    """
    columns = [*(name for name in FACE_COLUMNS if name in table), *table.measures]
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
            arrays += [table[name][mine].astype("<f4") for name in columns]
    header = json.dumps({"frames": len(frames), "people": people, "columns": columns}).encode()
    parts = [len(header).to_bytes(4, "little") + header, *(array.tobytes() for array in arrays)]
    return b"".join(part + bytes(-len(part) % ALIGN) for part in parts)
