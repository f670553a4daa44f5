"""Who is seen when: the rows of each person with the time that each stands for, and spans in which something holds.

In comes a table, out come its people; what a summary counts and a format writes as an interval is a span from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import NO_TRACK, ON_SUFFIX
from affserve.client.results.table import Table, labels_in

ACTIVE_FROM = 0.5  # probability from which an action unit counts as active, unless the result says which are
STILL_S = 1.0  # that a single picture stands for
Span = tuple[float, float]
"""From, to in seconds of the video."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Frames in time, each once. number: (m,) int64. from_s, to_s: (m,) while each is on the screen."""

    number: NDArray[np.int64]
    from_s: NDArray[np.float64]
    to_s: NDArray[np.float64]

    def __getitem__(self, places: NDArray[np.int64]) -> Frames:
        return Frames(number=self.number[places], from_s=self.from_s[places], to_s=self.to_s[places])

    def spans(self, holds: NDArray[np.bool_]) -> list[Span]:
        """Return the spans of consecutive frames in which something holds; holds: (m,)."""
        if not len(holds):
            return []
        # A frame that is not among these ends a span: out of sight, or missing in a folder of images.
        breaks = np.flatnonzero((np.diff(self.number) > 1) | (holds[1:] != holds[:-1])) + 1
        firsts = np.r_[0, breaks]
        lasts = np.r_[breaks, len(holds)] - 1
        kept = holds[firsts]
        return list(zip(self.from_s[firsts[kept]].tolist(), self.to_s[lasts[kept]].tolist(), strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """One person of a result. rows: (n,) indices in the table, in time. frames: the n frames that show the person."""

    track_id: int
    name: str
    rows: NDArray[np.int64]
    frames: Frames


def frames_of(table: Table) -> Frames:
    """Return the frames of a table; one stands until the next begins, the last as long as the others on average."""
    number, first = np.unique(table["frame"], return_index=True)
    from_s = np.maximum.accumulate(table["timestamp_s"][first])  # damaged containers step back in time
    jumps = np.diff(number)
    usual_s = (from_s[-1] - from_s[0]) / jumps.sum() if len(jumps) else STILL_S
    return Frames(number=number, from_s=from_s, to_s=from_s + np.r_[np.diff(from_s) / jumps, usual_s])


def people_of(table: Table, frames: Frames) -> list[Person]:
    """Return the people of a table in order of appearance; frames: all of the table."""
    place = np.searchsorted(frames.number, table["frame"])
    people = []
    for track_id in sorted(set(table["track_id"].tolist()) - {NO_TRACK}):
        rows = np.flatnonzero(table["track_id"] == track_id)
        name = table.names.get(track_id, f"person {track_id}")
        people.append(Person(track_id=track_id, name=name, rows=rows, frames=frames[place[rows]]))
    return people


def unseen_spans(frames: Frames, person: Person) -> list[Span]:
    """Return when a person is not seen; frames: all of the table."""
    return frames.spans(~np.isin(frames.number, person.frames.number))


def states_of(table: Table) -> dict[str, NDArray[np.bool_]]:
    """Return for each expression and action unit the rows (n,) in which it is the expression, or active."""
    labels = labels_in(table)
    states = {name: table["expression"] == name for name in labels.get("expression", ())}
    return {**states, **{name: _active(table, name) for name in labels.get("action_units", ())}}


def _active(table: Table, name: str) -> NDArray[np.bool_]:
    """Return where a unit is active: as was declared, else where its probability is high."""
    decided: NDArray[np.bool_] = table.get(name + ON_SUFFIX, table[name]) >= ACTIVE_FROM
    return decided
