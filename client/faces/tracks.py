"""People followed through a video: who is in this frame, and is it somebody who was there before?

The whole frame is searched for faces every few frames; in between, optical flow carries the faces that are known, which
costs a tenth of a search and moves them less from frame to frame than a new search each time would. The frame is
searched at once when flow loses a face, when a face is new, when two touch, when somebody vanished a moment ago, when
nobody is there, and after a cut.

A face that was found belongs to the person whose box it overlaps, or, where that one has been out of sight, to the one
who was near and looks alike; after a cut only looks count. Nothing looks ahead. A person's number is given when they
appear, and not given again once they have been away for longer than `patience_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Face, FaceDetector, overlap
from affserve.client.faces.flow import GreyFrame, follow, grey_frame, is_cut
from affserve.client.faces.looks import Looks, alike, blended, describe, patch
from affserve.client.faces.settings import FaceSettings

NEW_FACE_SCORE = 0.7  # a new face is believed from here on; one that is known may score less
CONFIRM_HITS = 3  # searches in a row that must find a new face before flow may carry it
BRIDGE_FRAMES = 5  # a confirmed face that searches miss is carried on for so long while it looks the same
RETRY_FRAMES = 15  # after somebody vanished every frame is searched
CLOSE_LOOK_EVERY = 10  # searches in a row without a face, from one close look to the next
PATCH_ALIKE = 0.6  # below, flow follows something else than the face it started with
TOUCHING_IOU = 0.05  # faces this close are searched every frame: flow may take one for the other
STILL_LARGE = 0.8  # of min_size_px: a face that is known is left out below that
NEW_LOOKS = 0.2  # share of the latest face in what is remembered of a person
STEADY = 0.5  # share of the speed so far in a person's speed


@dataclass(kw_only=True, eq=False)
class Track:
    """One person: where their face is now, or was last."""

    track_id: int
    face: Face
    looks: Looks
    patch: Looks  # of the last search that found them
    hits: int = 1  # searches that found them
    carried: bool = False  # by flow, into this frame
    missed: int = 0  # searches in a row that did not find them while flow carried them
    away: int = 0  # frames since they were last seen
    cut_since: bool = False  # another shot began since they were last seen
    velocity_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # of the centre, per frame

    @property
    def confirmed(self) -> bool:
        """Whether this is surely a face."""
        return self.hits >= CONFIRM_HITS

    def move(self, face: Face) -> None:
        """Be seen at a new place in the next frame."""
        step = (np.array(face.centre_px) - self.face.centre_px) / (self.away + 1)
        self.velocity_px = STEADY * self.velocity_px + (1 - STEADY) * step
        self.face = face

    def found(self, face: Face, looks: Looks, now: Looks, *, crowded: bool) -> None:
        """Be found by a search; in a crowd looks are not learnt, because they are partly somebody else's."""
        if not self.carried and not self.cut_since:
            self.move(face)
        self.face, self.patch = face, now
        if not crowded:
            self.looks = blended(self.looks, looks, NEW_LOOKS)
        self.hits += 1
        self.missed, self.away, self.cut_since = 0, 0, False


class Tracker:
    """The people of one video; call `step` with its frames in order."""

    def __init__(self, detector: FaceDetector, settings: FaceSettings) -> None:
        self._detector = detector
        self._settings = settings
        self._before: GreyFrame | None = None
        self._visible: list[Track] = []
        self._away: list[Track] = []
        self._next_id = 0
        self._since_search = 0  # frames
        self._empty_searches = 0  # in a row
        self.searches = 0  # so far
        self.left_out_px = 0.0  # side of the largest sure face that was smaller than asked for
        self.cut = False  # the last frame began another shot

    def step(self, image: NDArray[np.uint8], now: GreyFrame | None = None) -> list[Track]:
        """Return the people in the next RGB frame (H, W, 3), ordered by track_id; now: its grey copy, if made."""
        now = now or grey_frame(image)
        self.cut = self._before is not None and is_cut(self._before, now)
        self._since_search += 1
        self._carry(now)
        if self._must_search():
            self._search(image, now)
        self._before = now
        self._visible.sort(key=lambda track: track.track_id)
        return list(self._visible)

    def _carry(self, now: GreyFrame) -> None:
        """Move the people of the frame before to where flow says that they are now."""
        for track in self._away:
            track.away += 1
            track.cut_since |= self.cut
        self._away = [track for track in self._away if track.away <= self._settings.patience_frames]
        flow: Sequence[Face | None] = [None] * len(self._visible)
        if self._before is not None and not self.cut:
            flow = follow(self._before, now, [track.face for track in self._visible])
        for track, face in zip(self._visible, flow, strict=True):
            track.carried = face is not None and alike(track.patch, patch(now, face)) >= PATCH_ALIKE
            track.cut_since = self.cut
            if face is not None and track.carried:
                track.move(face)

    def _must_search(self) -> bool:
        return (
            self._since_search >= self._settings.detect_every
            or not self._visible
            or not all(track.carried and track.confirmed and not track.missed for track in self._visible)
            or any(track.away <= RETRY_FRAMES for track in self._away)
            or touching([track.face for track in self._visible])
        )

    def _search(self, image: NDArray[np.uint8], now: GreyFrame) -> None:
        self._since_search = 0
        faces = self._detected(image)
        looks = [describe(image, face) for face in faces]
        matches = match([*self._visible, *self._away], faces, looks)
        for track, k in matches.items():
            others = [face for j, face in enumerate(faces) if j != k]
            crowded = any(overlap(faces[k], other) > 0 for other in others)
            track.found(faces[k], looks[k], patch(now, faces[k]), crowded=crowded)
        self._part(matches)
        self._welcome([k for k in range(len(faces)) if k not in matches.values()], faces, looks, now)

    def _detected(self, image: NDArray[np.uint8]) -> list[Face]:
        """Search a frame; without a face in sight, a costly close look is taken only now and then."""
        self.searches += 1
        closely = self._empty_searches % CLOSE_LOOK_EVERY == 0
        found = self._detector.detect(image, width_px=self._settings.width_px, closely=closely)
        self._empty_searches = 0 if found else self._empty_searches + 1
        smaller = (min(face.box_px[2:]) for face in found if is_sure(face))
        self.left_out_px = max(self.left_out_px, *(px for px in smaller if px < self._settings.min_size_px), 0.0)
        return [face for face in found if min(face.box_px[2:]) >= STILL_LARGE * self._settings.min_size_px]

    def _part(self, matches: dict[Track, int]) -> None:
        """Decide about the people whom a search did not find."""
        everybody = [*self._visible, *self._away]
        was_visible = set(map(id, self._visible))
        self._visible, self._away = list(matches), []
        bridge = min(BRIDGE_FRAMES, self._settings.detect_every - 1)
        for track in everybody:
            if track in matches:
                continue
            if id(track) in was_visible and self._still_there(track, bridge):
                track.missed += 1
                self._visible.append(track)
            elif track.confirmed or self._settings.detect_every == 1:
                track.missed, track.carried = 0, False
                track.away = max(track.away, 1)
                self._away.append(track)

    def _still_there(self, track: Track, bridge: int) -> bool:
        hidden = any(overlap(track.face, other.face) > TOUCHING_IOU for other in self._visible)
        return track.carried and track.confirmed and track.missed < bridge and not hidden

    def _welcome(self, unknown: list[int], faces: list[Face], looks: list[Looks], now: GreyFrame) -> None:
        """Give numbers to new people, from left to right."""
        good = [
            k
            for k in unknown
            if is_sure(faces[k])
            and min(faces[k].box_px[2:]) >= self._settings.min_size_px
            and not any(overlap(faces[k], track.face) > TOUCHING_IOU for track in self._visible if track.missed)
        ]
        room = max(self._settings.max_faces - len(self._visible), 0)
        largest = sorted(good, key=lambda k: -faces[k].area_px)[:room]
        for k in sorted(largest, key=lambda k: faces[k].box_px[0]):
            track = Track(track_id=self._next_id, face=faces[k], looks=looks[k], patch=patch(now, faces[k]))
            self._visible.append(track)
            self._next_id += 1


def is_sure(face: Face) -> bool:
    """Say whether a new face is believed; a detector without scores always is."""
    return not face.score < NEW_FACE_SCORE


def touching(faces: Sequence[Face]) -> bool:
    """Say whether any two faces overlap."""
    return any(overlap(a, b) > TOUCHING_IOU for k, a in enumerate(faces) for b in faces[:k])


def match(tracks: Sequence[Track], faces: Sequence[Face], looks: Sequence[Looks]) -> dict[Track, int]:
    """Say which of the faces that a search found is whose: the best pair first, then the next best, and so on."""
    pairs = [
        (cost, i, k)
        for i, track in enumerate(tracks)
        for k, face in enumerate(faces)
        if (cost := _cost(track, face, alike(track.looks, looks[k]))) is not None
    ]
    matches: dict[Track, int] = {}
    for _, i, k in sorted(pairs):
        if tracks[i] not in matches and k not in matches.values():
            matches[tracks[i]] = k
    return matches


CARRIED_IOU, CARRIED_ALIKE = 0.2, 0.3  # at least, of a face that flow carried and one that was found
NEAR_ALIKE = 0.5  # at least, at the place where the person should be
FAR_ALIKE = 0.7  # at least, anywhere else
CUT_ALIKE = 0.8  # at least, in another shot
NEAR_FACES = 1.0  # distance that counts as the same place, in faces ...
NEAR_FACES_PER_FRAME = 0.05  # ... and how it grows while somebody is away
COASTING_FRAMES = 8  # a person out of sight is taken to move on for so long
SIZE_RATIO = 2.0  # of two faces of the same person, at most, at the same place


def _cost(track: Track, face: Face, likeness: float) -> float | None:
    """Return how badly a face fits a person, None where it cannot be them; 0 fits exactly."""
    if track.carried:
        shared = overlap(track.face, face)
        return 2 - shared - likeness if shared >= CARRIED_IOU and likeness >= CARRIED_ALIKE else None
    if track.cut_since:
        return 2 * (1 - likeness) + 1 if likeness >= CUT_ALIKE else None
    expected = np.array(track.face.centre_px) + track.velocity_px * min(track.away + 1, COASTING_FRAMES)
    size = (track.face.side_px + face.side_px) / 2
    distance = float(np.linalg.norm(expected - face.centre_px)) / max(size, 1e-6)
    ratio = face.side_px / max(track.face.side_px, 1e-6)
    near = distance <= NEAR_FACES + NEAR_FACES_PER_FRAME * track.away and 1 / SIZE_RATIO <= ratio <= SIZE_RATIO
    if likeness < (NEAR_ALIKE if near else FAR_ALIKE):
        return None
    return min(distance, 2.0) / 2 + 2 * (1 - likeness)
