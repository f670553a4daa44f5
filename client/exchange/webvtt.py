"""WebVTT for a browser's `<track>`: every row as JSON in metadata cues, and captions that a person can read.

A cue lasts as long as its frame; WebVTT counts time in milliseconds, the JSON holds the time as it is in the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from affserve.client.results.output_file import write_whole
from affserve.client.results.people import Frames, Person, Span, frames_of, people_of, states_of
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, NO_TRACK
from affserve.client.results.table import Table, labels_in
from affserve.client.results.text import json_cells

CAPTION_S = 2.0  # of a caption: less cannot be read
MOST_UNITS = 3  # named in a caption


def write_webvtt(table: Table, path: Path) -> list[str]:
    """Write `path`, the metadata, and beside it the captions; return what became of the time."""
    frames = frames_of(table)
    captions = path.with_suffix(f".captions{path.suffix}")
    heading = f"Affect of {table.source or path.stem}, "
    said = _captions(table, frames, people_of(table, frames))
    write_whole(captions, _file(heading + f"what prevails in {CAPTION_S:g} s", said).encode())
    meanings = "\n".join(f"{name}: {column.description} {_limits(column)}" for name, column in table.columns.items())
    write_whole(path, _file(heading + f"a cue of JSON per frame\n{meanings}", _metadata(table, frames)).encode())
    return [
        "times of cues are in whole milliseconds; the JSON of each holds the exact one",
        f"captions: {captions.name}",
    ]


def _limits(column: Any) -> str:
    return f"[{', '.join(filter(None, (column.unit, column.range)))}]".replace("[]", "")


def _file(heading: str, cues: list[tuple[Span, str]]) -> str:
    # An arrow or an empty line would end the note.
    note = "\n".join(filter(None, heading.replace("-->", "->").splitlines()))
    blocks = [
        f"{_clock(start)} --> {_clock(end)}\n{text}\n" for (start, end), text in cues if _clock(start) < _clock(end)
    ]
    return "\n".join([f"WEBVTT\n\nNOTE {note}\n", *blocks])


def _clock(time_s: float) -> str:
    minutes, milliseconds = divmod(round(time_s * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _metadata(table: Table, frames: Frames) -> list[tuple[Span, str]]:
    cells = {name: json_cells(table, name) for name in table}
    keys = [name for name in table if name not in ("frame", "timestamp_s")]
    people = [
        "{" + ", ".join(f'"{key}": {cell}' for key, cell in zip(keys, row, strict=True)) + "}"
        for row in zip(*(cells[key] for key in keys), strict=True)
    ]
    seen = (table["track_id"] != NO_TRACK).tolist()
    firsts = np.searchsorted(table["frame"], frames.number).tolist()
    cues = []
    for k, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(seen)], strict=True)):
        faces = ", ".join(person for person, face in zip(people[first:end], seen[first:end], strict=True) if face)
        text = (
            f'{{"frame": {cells["frame"][first]}, "timestamp_s": {cells["timestamp_s"][first]}, "people": [{faces}]}}'
        )
        cues.append(((float(frames.from_s[k]), float(frames.to_s[k])), text))
    return cues


def _captions(table: Table, frames: Frames, people: list[Person]) -> list[tuple[Span, str]]:
    """Say of each stretch of CAPTION_S what prevails; stretches that say the same become one."""
    start, end = float(frames.from_s[0]), float(frames.to_s[-1])
    edges = np.append(np.arange(start, end, CAPTION_S), end)
    states = states_of(table)
    cues: list[tuple[Span, str]] = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        lines = [line for person in people if (line := _line(table, states, person, low, high, len(people) > 1))]
        text = "\n".join(lines) or "no face"
        if cues and cues[-1][1] == text:
            cues[-1] = ((cues[-1][0][0], high), text)
        else:
            cues.append(((low, high), text))
    return cues


def _line(table: Table, states: dict[str, Any], person: Person, low: float, high: float, named: bool) -> str:
    """Say what prevails of a person between two times; nothing where the person is not seen."""
    inside = person.rows[(person.frames.from_s >= low) & (person.frames.from_s < high)]
    if not len(inside):
        return ""
    labels = labels_in(table)
    share = {name: float(holds[inside].mean()) for name, holds in states.items()}
    expressions = labels.get("expression", ())
    units = [name for name in labels.get("action_units", ()) if share[name] > 0.5]
    units = sorted(units, key=lambda name: -share[name])[:MOST_UNITS]
    said = [
        *([max(expressions, key=lambda name: share[name])] if expressions else []),
        *(f"{name} {np.nanmean(table[name][inside]):+.1f}" for name in labels.get("valence_arousal", ())),
        *(ACTION_UNIT_MEANINGS.get(name, name) for name in units),
    ]
    text = (f"{person.name}: " if named else "") + ", ".join(said)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
