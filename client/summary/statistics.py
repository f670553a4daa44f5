"""One result to a row of numbers for each person and part of the video, weighted by time.

Each frame counts for as long as it is on the screen, so that a variable rate changes nothing. A frame belongs to the
part in which it begins. Frames that are not reliable are left out and end episodes, as frames without the person do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.edits import read_edits
from affserve.client.results.people import ACTIVE_FROM, Frames, Person, frames_of, people_of, states_of
from affserve.client.results.reading import read
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, Column
from affserve.client.results.table import Table, labels_in
from affserve.client.summary.windows import WHOLE, Window, is_of
from affserve.train.labels import VALENCE_AROUSAL

Row = dict[str, Any]
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
WHO = {
    "file": "the result",
    "video": "what it was made of",
    "person": "whose face: the name given on the page, else the number",
    "track_id": "number of the person in the result",
    "event": "part of the video",
    "trained_on": "what the model learnt from",
}
COUNTS = {
    "from_s": ("begin of the part", "s"),
    "to_s": ("end of the part", "s"),
    "frames": ("frames of the part", ""),
    "frames_with_face": ("frames of the part that show the person", ""),
    "frames_used": ("frames with the face that are reliable: all numbers after this one are of them", ""),
    "seen_percent": ("share of the part's time in which the person is seen", "%"),
    "time_used_s": ("time that the used frames last", "s"),
}

# Of the other columns: what they mean, unit, least and most, by how their names end.
ENDINGS: dict[str, tuple[str, str, int | None, int | None]] = {
    "_percent": ("share of the used time with {}", "%", 0, 100),
    "_episodes": ("episodes of {}: runs of used frames without a break", "", 0, None),
    "_episode_mean_s": ("mean length of the episodes of {}", "s", 0, None),
    "_episode_longest_s": ("longest episode of {}", "s", 0, None),
    "_mean": ("mean of {} over time", "", -1, 1),
    "_sd": ("standard deviation of {} over time", "", 0, 1),
    **{f"_{one}": (f"{share:.0%} quantile of {{}} over time", "", -1, 1) for one, share in QUANTILES.items()},
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of each result is summarised. baseline: windows that are subtracted, and are no part of the rest."""

    events: Sequence[Window] = ()
    baseline: Sequence[Window] = ()
    unreliable: bool = False  # use frames that are not reliable, too
    parts: bool = False  # those that were named on the page, besides the events


def summarise_file(path: Path, choice: Choice) -> list[Row]:
    """Return a row for each person and part of one result; OutputError where it cannot be read."""
    table = read(path)
    frames = frames_of(table)
    states = states_of(table)
    parts = read_edits(path).parts if choice.parts else ()
    events = [*choice.events, *(Window(name=one.name, from_s=one.from_s, to_s=one.to_s) for one in parts)]
    baseline = [one for one in choice.baseline if not one.file or is_of(one.file, path, table.source)]
    kept = [one for one in events if one not in baseline and (not one.file or is_of(one.file, path, table.source))]
    whole = Window(name=WHOLE, from_s=float(frames.from_s[0]), to_s=float(frames.to_s[-1]))
    trained_on = table.provenance.get("trained_on", "unknown")
    rows = []
    for person in people_of(table, frames):
        view = _View(table, states, frames, person, choice.unreliable)
        calm = view.numbers(_in_any(person.frames, baseline)) if baseline else {}
        for window in kept if choice.events or choice.parts else [whole]:
            facts = (str(path), table.source, person.name, person.track_id, window.name, trained_on)
            who = dict(zip(WHO, facts, strict=True))
            outside = baseline if window is whole else ()
            row = {**who, **view.counts(window, outside), **view.numbers(view.inside(person.frames, window, outside))}
            rows.append({**row, **_changes(row, calm)} if choice.baseline else row)
    return rows


@dataclass(frozen=True, eq=False)
class _View:
    """One person of a result. states: of the rows of the table."""

    table: Table
    states: Mapping[str, NDArray[np.bool_]]
    frames: Frames
    person: Person
    unreliable: bool

    @staticmethod
    def inside(frames: Frames, window: Window, outside: Sequence[Window]) -> NDArray[np.bool_]:
        return _in_any(frames, [window]) & ~_in_any(frames, outside)

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """Which of the person's rows count, (n,)."""
        if self.unreliable or "reliable" not in self.table:
            return np.ones(len(self.person.rows), dtype=bool)
        return np.asarray(self.table["reliable"][self.person.rows] != 0)

    def counts(self, window: Window, outside: Sequence[Window]) -> Row:
        """Return how much of a part there is."""
        part = self.inside(self.frames, window, outside)
        seen = self.inside(self.person.frames, window, outside)
        lasting_s, seen_s = _lasting_s(self.frames)[part].sum(), _lasting_s(self.person.frames)[seen].sum()
        used = seen & self.reliable
        share = 100 * seen_s / lasting_s if lasting_s else 0.0
        used_s = _lasting_s(self.person.frames)[used].sum()
        values = (window.from_s, window.to_s, part.sum(), seen.sum(), used.sum(), share, used_s)
        return {
            name: float(value) if COUNTS[name][1] else int(value) for name, value in zip(COUNTS, values, strict=True)
        }

    def numbers(self, part: NDArray[np.bool_]) -> Row:
        """Return the statistics of the rows (n,) of a part; None where no frame of it can be used."""
        used = part & self.reliable
        weights = _lasting_s(self.person.frames)[used]
        if not weights.sum():
            weights = np.ones(len(weights))
        numbers: Row = {}
        for name in labels_in(self.table).get("valence_arousal", ()):
            numbers |= _spread(name, self.table[name][self.person.rows][used], weights)
        for name, holds in self.states.items():
            mine = holds[self.person.rows] & used
            spans = self.person.frames.spans(mine)
            lengths = [end - start for start, end in spans]
            share = float(weights[mine[used]].sum() / weights.sum() * 100) if len(weights) else None
            numbers |= {
                f"{name}_percent": share,
                f"{name}_episodes": len(spans) if len(weights) else None,
                f"{name}_episode_mean_s": sum(lengths) / len(lengths) if lengths else None,
                f"{name}_episode_longest_s": max(lengths, default=None),
            }
        return numbers


def _in_any(frames: Frames, windows: Sequence[Window]) -> NDArray[np.bool_]:
    inside = np.zeros(len(frames.number), dtype=bool)
    for window in windows:
        inside |= (frames.from_s >= window.from_s) & (frames.from_s < window.to_s)
    return inside


def _lasting_s(frames: Frames) -> NDArray[np.float64]:
    return frames.to_s - frames.from_s


def _spread(name: str, values: NDArray[np.float64], weights: NDArray[np.float64]) -> Row:
    good = ~np.isnan(values)
    values, weights = values[good], weights[good]
    names = [f"{name}_mean", f"{name}_sd", *(f"{name}_{one}" for one in QUANTILES)]
    if not len(values):
        return dict.fromkeys(names)
    mean = float(np.average(values, weights=weights))
    spread = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.array(list(QUANTILES.values())) * reached[-1])
    return dict(zip(names, [mean, spread, *values[order][places].tolist()], strict=True))


def _changes(row: Row, calm: Row) -> Row:
    """Return what is subtracted, for the numbers that people compare."""
    changes = {}
    for name in compared(row):
        now, before = row[name], calm.get(name)
        changes[f"{name}_change"] = None if now is None or before is None else now - before
    return changes


def compared(row: Row) -> list[str]:
    """Return the numbers of a row that are compared between people: changes from a baseline where there is one."""
    names = [name for name in row if name.endswith(("_mean", "_percent")) and name != "seen_percent"]
    return [f"{name}_change" for name in names] if any(name.endswith("_change") for name in row) else names


def columns_of_rows(rows: Sequence[Row]) -> list[Column]:
    """Return the meaning of each column of a summary."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [_meaning(name) for name in names]


def _meaning(name: str) -> Column:
    if name in WHO:
        storage = "int64" if name == "track_id" else "string"
        return Column(name=name, description=WHO[name], storage=storage, always=True)
    if name in COUNTS:
        description, unit = COUNTS[name]
        return Column(name=name, description=description, unit=unit, storage="float64" if unit else "int64", minimum=0)
    if name.endswith("_change"):
        inner = _meaning(name.removesuffix("_change"))
        return Column(name=name, description=f"{inner.description}, less the same in the baseline", unit=inner.unit)
    ending = next(one for one in ENDINGS if name.endswith(one))
    words, unit, minimum, maximum = ENDINGS[ending]
    described = words.format(_subject(name.removesuffix(ending)))
    return Column(name=name, description=described, unit=unit, minimum=minimum, maximum=maximum)


def _subject(name: str) -> str:
    if name in ACTION_UNIT_MEANINGS:
        return f"{name} ({ACTION_UNIT_MEANINGS[name]}) active: as {name}_on says, else from {ACTIVE_FROM:g} on"
    return name if name in VALENCE_AROUSAL.names else f"the expression {name}"
