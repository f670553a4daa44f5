"""What people changed of a result: who is who, who is left out, and which parts of the video have a name.

The result itself stays as it was made. The edits stand beside it in `<name of the result>.edits.json`, and everything
that is made from a result applies them:

    {"people": {"0": {"name": "Anna"}, "2": {"merged_into": 0}, "3": {"split_from": 0, "at_frame": 240},
                "1": {"excluded": true}},
     "parts": [{"name": "interview", "from_s": 12.0, "to_s": 61.5}]}

First the splits, in the order of their numbers: from a frame on, person 0 is person 3. Then the merges: where two rows
of a frame become one person's, the row of the person merged into stays. Then the rows of those excluded are left out.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import NO_TRACK
from affserve.client.results.table import EMPTY, Columns, Table
from affserve.train.errors import OutputError

SUFFIX = ".edits.json"
LONGEST_NAME = 100  # characters
NUMBER = re.compile("[0-9]{1,9}")  # of a person
Whole = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PersonEdit:
    """What was changed of one person, by the number that the result or a split gave it."""

    name: str = ""
    hidden: bool = False  # from the page only
    excluded: bool = False  # from everything
    merged_into: int | None = None
    split_from: int | None = None
    at_frame: int | None = None  # of a split: its first frame

    def __post_init__(self) -> None:
        _check_name(self.name)
        for one in ("hidden", "excluded"):
            _check(isinstance(getattr(self, one), bool), one, getattr(self, one), "true or false")
        for one in ("merged_into", "split_from", "at_frame"):
            value = getattr(self, one)
            _check(value is None or (type(value) is int and 0 <= value < 10**9), one, value, "a number, 0 or more")
        if (self.split_from is None) != (self.at_frame is None):
            raise ValueError("split_from and at_frame belong together")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A named part of the video, in seconds."""

    name: str
    from_s: float
    to_s: float

    def __post_init__(self) -> None:
        _check_name(self.name)
        for one in ("from_s", "to_s"):
            value = getattr(self, one)
            _check(type(value) in (int, float) and math.isfinite(value), one, value, "a number of seconds")
        if self.to_s < self.from_s:
            raise ValueError(f"part {self.name!r} ends at {self.to_s:g} s, before it begins at {self.from_s:g} s")


@dataclass(frozen=True, kw_only=True)
class Edits:
    """All edits of a result."""

    people: Mapping[int, PersonEdit] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        for attribute in ("merged_into", "split_from"):
            for track in self.people:
                _followed(self.people, track, attribute)

    def name(self, track_id: int) -> str:
        """Return what a person is called."""
        edit = self.people.get(track_id)
        return (edit.name if edit is not None else "") or f"person {track_id}"

    @property
    def names(self) -> dict[int, str]:
        """The names that people were given, by track_id."""
        return {track: edit.name for track, edit in self.people.items() if edit.name}

    def person(self, track_id: int) -> int:
        """Return the person that a track belongs to after the merges."""
        return _followed(self.people, track_id, "merged_into")

    def applied(self, blocks: Iterable[Columns]) -> Iterator[Columns]:
        """Yield the rows as edited, in blocks; a frame whose people are all excluded keeps a row without a face."""
        if not self._change_rows:
            yield from blocks
            return
        waiting: Columns | None = None  # the last frame's rows: more may follow in the next block
        for block in blocks:
            if waiting is not None:
                block = {name: np.concatenate([waiting[name], values]) for name, values in block.items()}
            end = int(np.searchsorted(block["frame"], block["frame"][-1]))
            if end:
                yield self._edited({name: values[:end] for name, values in block.items()})
            waiting = {name: values[end:] for name, values in block.items()}
        if waiting is not None:
            yield self._edited(waiting)

    def table(self, table: Table) -> Table:
        """Return a table as edited; the other is left as it is."""
        if not self._change_rows:
            return table
        edited = copy.copy(table)
        edited.update(self._edited(table))
        return edited

    def document(self) -> dict[str, Any]:
        """Return the JSON of the file; what is as it was is left out."""
        people = {str(track): _told(edit) for track, edit in sorted(self.people.items())}
        return {
            "people": {track: told for track, told in people.items() if told},
            "parts": [asdict(part) for part in self.parts],
        }

    @property
    def _change_rows(self) -> bool:
        return any(one.excluded or (one.merged_into, one.split_from) != (None, None) for one in self.people.values())

    @cached_property
    def _excluded(self) -> list[int]:
        return [track for track, edit in self.people.items() if edit.excluded]

    def _edited(self, columns: Columns) -> Columns:
        places, track_id = self._changed(columns["frame"], columns["track_id"])
        edited = {name: values[places] for name, values in columns.items()}
        faceless = track_id == NO_TRACK
        for name in edited.keys() - {"frame", "timestamp_s", "track_id"}:
            edited[name][faceless] = EMPTY[edited[name].dtype.kind]
        return {**edited, "track_id": track_id}

    def _changed(self, frame: Whole, track_id: Whole) -> tuple[Whole, Whole]:
        """Return which rows stay (m,), and whose they are (m,); of whole frames."""
        own = track_id.copy()
        for new, edit in sorted(self.people.items()):
            if edit.split_from is not None and edit.at_frame is not None:
                own[(own == edit.split_from) & (frame >= edit.at_frame)] = new
        tracks, inverse = np.unique(own, return_inverse=True)
        person = np.array([self.person(int(track)) for track in tracks], dtype=np.int64)[inverse]
        person[np.isin(person, self._excluded)] = NO_TRACK
        order = np.lexsort((own, own != person, person, frame))
        frame, person = frame[order], person[order]
        first = np.r_[True, (frame[1:] != frame[:-1]) | (person[1:] != person[:-1])]
        order, person, frame = order[first], person[first], frame[first]
        last_of_frame = np.r_[frame[1:] != frame[:-1], True]  # NO_TRACK sorts first: here it is all there is
        stays = (person != NO_TRACK) | last_of_frame
        return order[stays], person[stays]


NO_EDITS = Edits()


def edits_path(rows: Path) -> Path:
    """Return where the edits of a file of rows stand."""
    return rows.with_name(rows.name + SUFFIX)


def read_edits(rows: Path) -> Edits:
    """Read the edits of a file of rows, none where there is no such file; OutputError where it is not one of ours."""
    path = edits_path(rows)
    try:
        return parse_edits(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return NO_EDITS
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read as edits: {error}; correct it or move it away") from error


def write_edits(rows: Path, edits: Edits) -> None:
    """Write the edits of a file of rows, at once or not at all."""
    write_whole(edits_path(rows), (json.dumps(edits.document(), indent=2, ensure_ascii=False) + "\n").encode())


def parse_edits(document: object) -> Edits:
    """Make edits of what a JSON file or a browser says; ValueError says what is wrong with it."""
    found = _object(document, ("people", "parts"), "edits")
    people, parts = found.get("people", {}), found.get("parts", [])
    _check(isinstance(people, dict), "people", people, "an object by track_id")
    _check(isinstance(parts, list), "parts", parts, "a list")
    if wrong := [track for track in people if not NUMBER.fullmatch(track)]:
        raise ValueError(f"people has {wrong[0]!r}, expected the number of a person")
    return Edits(
        people={
            int(track): PersonEdit(**_fields_of(PersonEdit, one, f"person {track}")) for track, one in people.items()
        },
        parts=tuple(Part(**_fields_of(Part, one, "a part")) for one in parts),
    )


def _fields_of(kind: type[PersonEdit | Part], found: object, what: str) -> dict[str, Any]:
    names = [one.name for one in fields(kind)]
    given = _object(found, names, what)
    if kind is Part and (missing := [name for name in names if name not in given]):
        raise ValueError(f"{what} has no {missing[0]}")
    return given


def _object(found: object, names: Iterable[str], what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{what} is {str(found)[:40]!r}, expected an object")
    if unknown := set(found) - set(names):
        raise ValueError(f"{what} has {min(unknown)!r}, expected {', '.join(names)}")
    return found


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise ValueError(f"{name} is {str(value)[:40]!r}, expected {expected}")


def _check_name(name: object) -> None:
    good = isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()
    _check(good, "name", name, f"printable text of at most {LONGEST_NAME} characters")


def _followed(people: Mapping[int, PersonEdit], track: int, attribute: str) -> int:
    """Follow merges or splits to their end; ValueError where they go in a circle."""
    seen = {track}
    while (edit := people.get(track)) is not None and (following := getattr(edit, attribute)) is not None:
        if following in seen:
            raise ValueError(f"{attribute} of person {track} leads back to itself")
        seen.add(following)
        track = following
    return track


def _told(edit: PersonEdit) -> dict[str, Any]:
    return {one.name: value for one in fields(edit) if (value := getattr(edit, one.name)) != one.default}
