"""Who of the people in a frame is analysed: everybody, the largest face, or the left or right one of two people.

A subject stays the subject: it changes when another face is much larger, when the subject has been out of sight for a
moment, or at a cut, and not because two faces of about the same size take turns at being the larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from affserve.client.faces.settings import ALL, LARGEST, LEFT
from affserve.client.faces.tracks import Track

SIMILAR_SIZE = 0.5  # a face of at least this part of the largest one's area may stay the subject
MAIN_SIZE = 0.1  # the second of two people has at least this part of the first one's area
ABSENCE_FRAMES = 10  # for so long nobody takes the place of a subject out of sight


class Chooser(Protocol):
    """Chooses the subjects of each frame of one video."""

    def choose(self, people: Sequence[Track], *, cut: bool, width_px: int) -> list[Track]:
        """Return those of the people in the next frame who are asked for, ordered by track_id.

        cut: another shot begins with this frame. width_px: of the frame.
        """
        ...


def chooser(faces: str) -> Chooser:
    """Return the chooser for a value of `FaceSettings.faces`."""
    if faces == ALL:
        return Everybody()
    return Largest() if faces == LARGEST else OneOfTwo(left=faces == LEFT)


class Everybody:
    """All people."""

    def choose(self, people: Sequence[Track], *, cut: bool, width_px: int) -> list[Track]:
        return list(people)


class Largest:
    """The person with the largest face."""

    def __init__(self) -> None:
        self._subject: int | None = None
        self._absent = 0  # frames

    def choose(self, people: Sequence[Track], *, cut: bool, width_px: int) -> list[Track]:
        largest = max(people, key=lambda track: track.face.area_px, default=None)
        subject = next((track for track in people if track.track_id == self._subject), None)
        self._absent = 0 if subject else self._absent + 1
        if subject and largest and subject.face.area_px >= SIMILAR_SIZE * largest.face.area_px:
            return [subject]
        if subject is None and self._subject is not None and not cut and self._absent <= ABSENCE_FRAMES:
            return []
        if largest is None:
            return []
        self._subject, self._absent = largest.track_id, 0
        return [largest]


class OneOfTwo:
    """The left or the right one of the two main people, as Aff-Wild2's videos named `_left` and `_right` mean it.

    The two are the largest faces. Who sits where is decided when both are first seen together and stays with the
    person; a person alone is taken for the one in whose half of the frame they are, until the other one appears.
    """

    def __init__(self, *, left: bool) -> None:
        self._left = left
        self._sides: dict[int, bool] = {}  # track_id to whether left, of people seen together
        self._absent = 0  # frames since a person of the wanted side was last seen

    def choose(self, people: Sequence[Track], *, cut: bool, width_px: int) -> list[Track]:
        pair = self._main_two(people)
        if cut:
            self._absent = ABSENCE_FRAMES
        if len(pair) == 2 and not any(track.track_id in self._sides for track in pair):
            self._sides |= {pair[0].track_id: True, pair[1].track_id: False}
        elif len(pair) == 2:
            self._seat_newcomer(pair)
        known = [track for track in people if self._sides.get(track.track_id) == self._left]
        self._absent = 0 if known else self._absent + 1
        if known:
            return [max(known, key=lambda track: track.face.area_px)]
        alone = [track for track in pair if track.track_id not in self._sides]
        waiting = bool(self._sides) and self._absent <= ABSENCE_FRAMES
        if len(alone) != 1 or len(pair) != 1 or waiting:
            return []
        return alone if (alone[0].face.centre_px[0] < width_px / 2) == self._left else []

    def _main_two(self, people: Sequence[Track]) -> list[Track]:
        """Return the one or two main people, from left to right."""
        seated = sorted(people, key=lambda track: (track.track_id not in self._sides, -track.face.area_px))
        by_size = sorted(people, key=lambda track: -track.face.area_px)
        largest = by_size[0].face.area_px if by_size else 0.0
        pair = [track for track in seated if track.face.area_px >= MAIN_SIZE * largest][:2]
        return sorted(pair, key=lambda track: track.face.centre_px[0])

    def _seat_newcomer(self, pair: list[Track]) -> None:
        """Give a person who takes another's place beside somebody known the side that is free."""
        for newcomer, other in (pair, pair[::-1]):
            if newcomer.track_id not in self._sides and other.track_id in self._sides:
                self._sides[newcomer.track_id] = not self._sides[other.track_id]
