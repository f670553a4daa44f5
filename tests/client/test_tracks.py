"""People keep their number through turns, occlusion, absence and cuts; the right one of them is analysed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scenes import SIZE_PX, Actor, scene

from affserve.client.faces.cropper import FaceCropper
from affserve.client.faces.detector_file import YUNET_FILE
from affserve.client.faces.detectors import HaarDetector, YuNetDetector
from affserve.client.faces.face import Face, FaceCrop, FaceDetector
from affserve.client.faces.flow import follow, grey_frame, is_cut
from affserve.client.faces.settings import ALL, LARGEST, LEFT, RIGHT, FaceSettings
from affserve.client.faces.subjects import ABSENCE_FRAMES, chooser
from affserve.client.faces.tracks import Track, match
from affserve.client.video.source import open_source
from affserve.train.errors import VideoError

Images = Iterable[NDArray[np.uint8]]
EVERYBODY = FaceSettings(faces=ALL, smoothing=0)
LEFT_X, RIGHT_X, EYES_Y = 150.0, 340.0, 120.0


@pytest.fixture(scope="module")
def yunet(shared_data: Path) -> YuNetDetector:
    return YuNetDetector(shared_data / YUNET_FILE)


class Counting:
    """A detector that counts how often it is asked."""

    def __init__(self, detector: FaceDetector) -> None:
        self.name = detector.name
        self._detector = detector
        self.searches = 0

    def detect(self, image: NDArray[np.uint8], *, width_px: int = 480, closely: bool = True) -> list[Face]:
        self.searches += 1
        return self._detector.detect(image, width_px=width_px, closely=closely)


def images(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.image for frame in open_source(path)]


def followed(detector: FaceDetector, frames: Images, settings: FaceSettings = EVERYBODY) -> list[list[FaceCrop]]:
    cropper = FaceCropper(detector, settings)
    return [cropper.crop(image) for image in frames]


def numbers(found: list[list[FaceCrop]]) -> list[tuple[int, ...]]:
    return [tuple(crop.track_id for crop in crops) for crops in found]


def centres(found: list[list[FaceCrop]], track_id: int) -> dict[int, float]:
    """Frame to the x of the middle of a person's box."""
    return {k: c.face.centre_px[0] for k, crops in enumerate(found) for c in crops if c.track_id == track_id}


def still(x: float) -> Callable[[int], tuple[float, float]]:
    return lambda frame: (x, EYES_Y)


def test_two_people_are_two_tracks_from_first_to_last_frame(shared_data: Path, yunet: YuNetDetector) -> None:
    frames = images(shared_data / "two_people.gif")
    found = followed(yunet, frames)
    assert numbers(found) == [(0, 1)] * len(frames)
    assert max(centres(found, 0).values()) < 240 < min(centres(found, 1).values())


@pytest.mark.parametrize("name", ["single_face.mp4", "again.mkv"])
def test_one_person_is_one_track_and_few_searches(shared_data: Path, yunet: YuNetDetector, name: str) -> None:
    frames, detector = images(shared_data / name), Counting(yunet)
    found = followed(detector, frames)
    assert numbers(found) == [(0,)] * len(frames)
    assert detector.searches <= len(frames) / 5 + 3  # every fifth frame, and the two that confirm


def test_five_people_in_a_picture(shared_data: Path, yunet: YuNetDetector) -> None:
    (found,) = followed(yunet, images(shared_data / "multi_face.jpg"))
    assert [crop.track_id for crop in found] == [0, 1, 2, 3, 4]
    lefts = [crop.face.box_px[0] for crop in found]
    assert lefts == sorted(lefts)


@pytest.mark.parametrize("kind", ["yunet", "haar"])
def test_where_nobody_is_nobody_is_followed(shared_data: Path, yunet: YuNetDetector, kind: str) -> None:
    found = followed(yunet if kind == "yunet" else HaarDetector(), images(shared_data / "no_face.mp4"))
    lengths = np.bincount([crop.track_id for crops in found for crop in crops] or [0])
    assert lengths.max() <= 5


def test_haar_follows_one_person_too(shared_data: Path) -> None:
    found = followed(HaarDetector(), images(shared_data / "single_face.mp4"))
    assert numbers(found) == [(0,)] * len(found)


def test_flow_stays_near_what_a_search_of_every_frame_finds(shared_data: Path, yunet: YuNetDetector) -> None:
    frames = images(shared_data / "single_face.mp4")
    every = followed(yunet, frames, FaceSettings(faces=ALL, detect_every=1, smoothing=0))
    fifth = followed(yunet, frames)
    eyes_px = np.linalg.norm(every[0][0].face.landmarks_px[0] - every[0][0].face.landmarks_px[1])
    apart = [np.abs(a[0].face.landmarks_px - b[0].face.landmarks_px).mean() for a, b in zip(every, fifth, strict=True)]
    assert np.mean(apart) / eyes_px < 0.03  # 0.5 px of a crop, whose eyes are 35 px apart, is 0.014


def test_two_people_who_cross_keep_their_numbers(yunet: YuNetDetector) -> None:
    def across(start: float, end: float) -> Callable[[int], tuple[float, float]]:
        return lambda frame: (start + (end - start) * frame / 69, EYES_Y)

    found = followed(yunet, scene([Actor(1, across(90, 390), frames=70), Actor(2, across(390, 90), frames=70)], 70))

    behind, before = centres(found, 0), centres(found, 1)
    assert {crop for frame in numbers(found) for crop in frame} == {0, 1}
    assert (behind[0] < 120, behind[69] > 360) == (True, True)
    assert (before[0] > 360, before[69] < 120) == (True, True)
    assert len(before) == 70
    assert len(behind) > 50


def test_half_a_second_behind_a_board(yunet: YuNetDetector) -> None:
    actors = [Actor(1, still(LEFT_X), frames=70), Actor(2, still(RIGHT_X), frames=70)]
    found = followed(yunet, scene(actors, 70, board=lambda frame: (90, 220) if 30 <= frame < 45 else None))
    assert numbers(found)[:30] == [(0, 1)] * 30
    assert numbers(found)[36:45] == [(1,)] * 9  # flow notices within a few frames
    assert numbers(found)[50:] == [(0, 1)] * 20  # a search every fifth frame by now
    assert all(abs(x - LEFT_X) < 25 for x in centres(found, 0).values())


def gone(frame: int) -> tuple[float, float] | None:
    """Leave to the left after frame 20, come back from there after frame 50."""
    if frame < 50:
        return (LEFT_X - 12 * max(0, frame - 20), EYES_Y) if frame < 38 else None
    return (min(-60 + 12 * (frame - 50), LEFT_X), EYES_Y)


@pytest.mark.parametrize(("patience", "expected"), [(90, (0, 1)), (10, (1, 2))], ids=["in-time", "too-late"])
def test_somebody_who_leaves_and_comes_back(yunet: YuNetDetector, patience: int, expected: tuple[int, int]) -> None:
    actors = [Actor(1, gone, frames=80), Actor(2, still(RIGHT_X), frames=80)]
    found = followed(yunet, scene(actors, 80), FaceSettings(faces=ALL, patience_frames=patience))
    assert numbers(found)[40] == (1,)
    assert numbers(found)[-1] == expected


def test_a_cut_joins_nobody_and_a_cut_back_is_recognised(yunet: YuNetDetector) -> None:
    """Two people at the same place of two shots, one after the other, as in a film's dialogue."""
    first = list(scene([Actor(1, still(230), frames=60)], 40, background=1))
    second = list(scene([Actor(2, still(240), frames=60)], 20, background=2))
    found = followed(yunet, chain(first[:20], second, first[20:]))
    assert numbers(found) == [(0,)] * 20 + [(1,)] * 20 + [(0,)] * 20


def test_real_shots_are_cut_apart(shared_data: Path, yunet: YuNetDetector) -> None:
    def shot(name: str) -> list[NDArray[np.uint8]]:
        small = [cv2.resize(image, SIZE_PX[::-1]) for image in images(shared_data / name)[:24]]
        return [np.asarray(image, dtype=np.uint8) for image in small]

    one, other, two = (shot(name) for name in ("single_face.mp4", "again.mkv", "two_people.gif"))

    found = followed(yunet, chain(one[:12], other, one[12:], two))

    assert numbers(found) == [(0,)] * 12 + [(1,)] * 24 + [(0,)] * 12 + [(2, 3)] * 24
    assert not any(is_cut(grey_frame(a), grey_frame(b)) for a, b in pairwise(two))


def test_a_lamp_is_no_cut(yunet: YuNetDetector) -> None:
    frames = list(scene([Actor(1, still(230), frames=20)], 20))
    frames[10:] = [np.asarray(cv2.convertScaleAbs(image, alpha=1.3, beta=10), dtype=np.uint8) for image in frames[10:]]
    assert numbers(followed(yunet, frames)) == [(0,)] * 20


def test_flow_gives_up_a_face_that_is_gone() -> None:
    with_face, empty = next(iter(scene([Actor(1, still(230), frames=20)], 1))), next(iter(scene([], 1)))
    face = Face(box_px=(195.0, 95.0, 70.0, 90.0), score=0.9, landmarks_px=np.full((5, 2), 130, dtype=np.float32))
    shifted = np.roll(with_face, (2, 5), axis=(0, 1))
    (moved,) = follow(grey_frame(with_face), grey_frame(shifted), [face])
    (lost,) = follow(grey_frame(with_face), grey_frame(empty), [face])
    assert moved is not None
    assert moved.box_px == pytest.approx((200, 97, 70, 90), abs=0.7)
    assert moved.landmarks_px == pytest.approx(np.tile([135, 132], (5, 1)), abs=0.7)
    assert lost is None


def test_small_faces_and_too_many_are_left_out(shared_data: Path, yunet: YuNetDetector) -> None:
    picture = images(shared_data / "multi_face.jpg")
    widths = sorted(min(crop.face.box_px[2:]) for crop in followed(yunet, picture)[0])
    (large,) = followed(yunet, picture, FaceSettings(faces=ALL, min_size_px=(widths[1] + widths[2]) / 2))
    (few,) = followed(yunet, picture, FaceSettings(faces=ALL, max_faces=2))
    assert len(large) == 3
    assert len(few) == 2


def test_smoothing_calms_the_reported_box_and_not_the_crop(shared_data: Path, yunet: YuNetDetector) -> None:
    frames = images(shared_data / "single_face.mp4")[:30]
    raw, smooth = (followed(yunet, frames, FaceSettings(detect_every=1, smoothing=share)) for share in (0.0, 0.5))

    def jitter(found: list[list[FaceCrop]]) -> float:
        boxes = np.array([crops[0].face.box_px for crops in found])
        return float(np.abs(np.diff(boxes, n=2, axis=0)).mean())

    assert jitter(smooth) < 0.7 * jitter(raw)
    assert all((a[0].pixels == b[0].pixels).all() for a, b in zip(raw, smooth, strict=True))


@pytest.mark.parametrize(("faces", "expected"), [(LEFT, 0), (RIGHT, 1)])
def test_left_and_right_name_a_person_of_two(
    shared_data: Path, yunet: YuNetDetector, faces: str, expected: int
) -> None:
    frames = images(shared_data / "two_people.gif")
    found = followed(yunet, frames, FaceSettings(faces=faces))
    assert numbers(found) == [(expected,)] * len(frames)


def person(track_id: int, x: float, size: float) -> Track:
    face = Face(box_px=(x, 0, size, size), score=0.9, landmarks_px=np.zeros((5, 2), dtype=np.float32))
    nothing = np.zeros(1, dtype=np.float32)
    return Track(track_id=track_id, face=face, looks=nothing, patch=nothing)


def chosen(faces: str, frames: list[list[Track]], cuts: tuple[int, ...] = ()) -> list[int | None]:
    choose = chooser(faces)
    found = [choose.choose(people, cut=k in cuts, width_px=400) for k, people in enumerate(frames)]
    return [people[0].track_id if people else None for people in found]


def test_faces_of_similar_size_do_not_take_turns() -> None:
    frames = [[person(0, 0, 100), person(1, 200, 100 + 15 * (-1) ** k)] for k in range(6)]
    assert chosen(LARGEST, frames) == [1] * 6


def test_a_much_larger_face_becomes_the_subject() -> None:
    assert chosen(LARGEST, [[person(0, 0, 100)], [person(0, 0, 100), person(1, 200, 150)]]) == [0, 1]


def test_nobody_takes_the_place_of_a_subject_for_a_moment() -> None:
    both, other = [person(0, 0, 100), person(1, 200, 60)], [person(1, 200, 60)]
    away = chosen(LARGEST, [both, *[other] * 5, both, *[other] * (ABSENCE_FRAMES + 1)])
    assert away == [0, *[None] * 5, 0, *[None] * ABSENCE_FRAMES, 1]
    assert chosen(LARGEST, [both, other], cuts=(1,)) == [0, 1]


def test_a_side_stays_with_the_person() -> None:
    apart, crossed = [person(0, 50, 80), person(1, 250, 80)], [person(0, 250, 80), person(1, 50, 80)]
    assert chosen(LEFT, [apart, crossed, apart]) == [0, 0, 0]
    assert chosen(RIGHT, [apart, crossed, apart]) == [1, 1, 1]


def test_a_person_alone_counts_by_their_half_of_the_picture() -> None:
    alone = [person(0, 250, 80)]
    assert chosen(LEFT, [alone, alone]) == [None, None]
    assert chosen(RIGHT, [alone, alone]) == [0, 0]
    # The other one appears farther right: now the first is the left one.
    assert chosen(RIGHT, [alone, [person(0, 250, 60), person(1, 330, 60)]]) == [0, 1]


def test_a_small_face_in_the_background_is_no_second_person() -> None:
    assert chosen(LEFT, [[person(0, 250, 100), person(1, 10, 20)]]) == [None]


A, B = np.eye(2, dtype=np.float32)  # looks that have nothing in common
NEARLY_A, HALF_A = (np.array([share, np.sqrt(1 - share**2)], dtype=np.float32) for share in (0.9, 0.5))


@pytest.mark.parametrize(
    ("carried", "cut_since", "speed_px"),
    [(False, False, 30), (False, True, 0), (True, False, 0)],
    ids=["found", "after-a-cut", "flow-had-moved-them"],
)
def test_speed_is_learnt_once_a_frame_and_not_across_a_cut(carried: bool, cut_since: bool, speed_px: float) -> None:
    track, there = person(0, 0, 100), person(0, 60, 100).face
    track.carried, track.cut_since = carried, cut_since
    track.found(there, A, A, crowded=False)
    assert track.velocity_px.tolist() == [speed_px, 0]
    assert (track.face, track.cut_since) == (there, False)


@pytest.mark.parametrize(
    ("faces", "chosen"),
    [([(10, HALF_A), (-10, NEARLY_A)], 1), ([(30, A), (10, A)], 1), ([(0, B)], None), ([(200, A)], None)],
    ids=["more-alike", "nearer", "somebody-else", "elsewhere"],
)
def test_a_face_that_flow_carried_is_the_nearest_and_most_alike(
    faces: list[tuple[float, NDArray[np.float32]]], chosen: int | None
) -> None:
    track = person(0, 0, 100)
    track.carried, track.looks = True, A
    found = match([track], [person(0, x, 100).face for x, _ in faces], [looks for _, looks in faces])
    assert found == ({} if chosen is None else {track: chosen})


@pytest.mark.parametrize(
    ("name", "value"), [("faces", "both"), ("detect_every", 0), ("smoothing", 1.0), ("max_faces", 0)]
)
def test_a_setting_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(VideoError, match=f"face setting {name} is {value}, expected"):
        FaceSettings(**{name: value})  # type: ignore[arg-type]


def test_cropper_says_how_long_it_waits_for_somebody(yunet: YuNetDetector) -> None:
    assert FaceCropper(yunet, FaceSettings(patience_frames=7)).patience_frames == 7
