"""A BIDS data set: each person's numbers as a physiological recording at a fixed rate, and the spans as events.

A recording of BIDS has one rate and no time column, so that frames are put on a grid: the nearest frame stands for each
sample, and `n/a` for samples that show no face. At the rate of the video each frame is a sample.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.output_file import write_whole
from affserve.client.results.people import Frames, frames_of, people_of, states_of, unseen_spans
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, Column
from affserve.client.results.table import Table
from affserve.client.results.text import lines_of, printed
from affserve.train.errors import OutputError

BIDS_VERSION = "1.9.0"
EVENTS = "_task-video_events.tsv"
NO_FACE = "no face"
README = """Affect per frame of videos, by affserve. sub-*/beh/*_physio.tsv.gz: a recording per person of the video;
*_events.tsv: when which expression prevails, which action units are active, and when no face is seen.
The numbers say how people who labelled the training data would describe a face, not what a person feels.
"""


def events_path(folder: Path, stem: str) -> Path:
    """Return where the events of a result stand in a data set; its name becomes the subject's label."""
    subject = re.sub(r"[^a-zA-Z0-9]", "", stem.removesuffix(".affect"))
    if not subject:
        raise OutputError(f"{stem} holds no letter or digit for a label of BIDS: rename the result")
    return folder / f"sub-{subject}" / "beh" / f"sub-{subject}{EVENTS}"


def write_bids(table: Table, path: Path, rate_hz: float | None) -> list[str]:
    """Write recordings and events of one result, and what a data set needs once; return what was done to fit."""
    frames = frames_of(table)
    people = people_of(table, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_dataset(path.parents[2], table)
    rate_hz = rate_hz or mean_rate_hz(frames)
    place, seen = _grid(frames, rate_hz)
    for person in people:
        stem = str(path).removesuffix("_events.tsv") + f"_recording-person{person.track_id}_physio"
        row_of = np.full(len(frames.number), -1)
        row_of[np.searchsorted(frames.number, person.frames.number)] = person.rows
        rows = np.where(seen, row_of[place], -1)
        columns = [_sampled(table, name, rows) for name in table.measures]
        # No time of writing inside: the same result gives the same bytes.
        write_whole(Path(f"{stem}.tsv.gz"), gzip.compress(lines_of(columns, "\t").encode(), mtime=0))
        facts = {
            "SamplingFrequency": rate_hz,
            "StartTime": float(frames.from_s[0]),
            "Columns": table.measures,
            "Source": table.source,
            "Person": person.name,
            **{name: _described(table.columns[name]) for name in table.measures},
        }
        _write_json(Path(f"{stem}.json"), facts)
    _write_events(table, frames, people, path)
    notes = [f"sampled at {rate_hz:.6g} Hz, " + _fit(frames, place, seen)]
    return notes + ([f"a recording for each of {len(people)} people"] if len(people) > 1 else [])


def mean_rate_hz(frames: Frames) -> float:
    """Return the frames per second of a result, as round as fits: by the last frame it is a tenth of a frame off."""
    lasting_s = float(frames.from_s[-1] - frames.from_s[0])
    count = int(frames.number[-1] - frames.number[0])  # with those that are missing in a folder of images
    if not lasting_s:
        return 1.0
    exact = count / lasting_s
    return next((rate for digits in (2, 3) if abs((rate := round(exact, digits)) - exact) * lasting_s < 0.1), exact)


def _grid(frames: Frames, rate_hz: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each sample the place of the nearest frame, and whether that stands for the sample's time."""
    start = frames.from_s[0]
    count = max(1, round(float(frames.to_s[-1] - start) * rate_hz))
    time_s = start + np.arange(count) / rate_hz
    middles = (frames.from_s[1:] + frames.from_s[:-1]) / 2
    place = np.searchsorted(middles, time_s, side="right")
    reach_s = 0.5 / rate_hz + 1e-6
    return place, (time_s >= frames.from_s[place] - reach_s) & (time_s < frames.to_s[place] + reach_s)


def _fit(frames: Frames, place: NDArray[np.int64], seen: NDArray[np.bool_]) -> str:
    used, times = np.unique(place[seen], return_counts=True)
    repeated, left_out = int((times - 1).sum()), len(frames.number) - len(used)
    if not repeated and not left_out:
        return "where every frame is one sample"
    return f"where BIDS wants a fixed rate: {left_out} frames fell between samples, {repeated} samples repeat a frame"


def _sampled(table: Table, name: str, rows: NDArray[np.int64]) -> list[str]:
    cells = printed(table, name, np.maximum(rows, 0), empty="n/a")
    return [cell if row >= 0 else "n/a" for cell, row in zip(cells, rows.tolist(), strict=True)]


def _described(column: Column) -> dict[str, Any]:
    limits = {"Minimum": column.minimum, "Maximum": column.maximum}
    return {"Description": column.description, "Units": column.unit or "arbitrary", **limits}


def _write_events(table: Table, frames: Frames, people: Iterable[Any], path: Path) -> None:
    states = states_of(table)
    events = [
        (start, end - start, name, person.name)
        for person in people
        for name, spans in [
            *((name, person.frames.spans(holds[person.rows])) for name, holds in states.items()),
            (NO_FACE, unseen_spans(frames, person)),
        ]
        for start, end in spans
    ]
    lines = [f"{start:.6f}\t{lasting:.6f}\t{name}\t{person}\n" for start, lasting, name, person in sorted(events)]
    meanings = {name: ACTION_UNIT_MEANINGS.get(name, f"the most probable expression is {name}") for name in states}
    kinds = {"Description": "what holds in this span", "Levels": {**meanings, NO_FACE: "the person is not seen"}}
    _write_json(path.with_suffix(".json"), {"trial_type": kinds, "person": {"Description": "whose face"}})
    write_whole(path, ("onset\tduration\ttrial_type\tperson\n" + "".join(lines)).encode())


def _write_dataset(folder: Path, table: Table) -> None:
    if not (folder / "README").exists():
        write_whole(folder / "README", README.encode())
    if not (folder / "dataset_description.json").exists():
        made_by = {
            "Name": "affserve",
            "Description": f"model trained on {table.provenance.get('trained_on', 'unknown')}",
        }
        facts = {"Name": "Affect", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw", "GeneratedBy": [made_by]}
        _write_json(folder / "dataset_description.json", facts)


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
