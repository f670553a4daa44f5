"""Every person has windows of their own, rows leave in order, and a long video is held no longer than a short one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from affserve.client.faces.face import Face
from affserve.client.results.rows import NO_TRACK, Rows
from affserve.client.sequences.row_merger import RowMerger
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.export.contract import default_head_description
from affserve.train.windows import WINDOW_FRAMES, Outputs, OverlapMerger, segments

WINDOW, STRIDE, WIDTH = 30, 20, 4
DESCRIPTION = replace(default_head_description(), window_frames=WINDOW, stride_frames=STRIDE)


def predict(features: NDArray[np.float32]) -> Outputs:
    """Answer with numbers that tell what else was in the window, and where in it a step lies."""
    mean = features.mean(axis=1, keepdims=True)
    told = mean + 10 * mean.mean() + 0.01 * len(features) * np.arange(len(features))[:, None]
    return {task: np.repeat(told, len(names), axis=1) for task, names in DESCRIPTION.labels.items()}


def sequence() -> OverlapMerger:
    return OverlapMerger(predict, WINDOW, STRIDE)


def feature(track_id: int, frame: int) -> NDArray[np.float32]:
    return np.full(WIDTH, track_id + 0.001 * frame, dtype=np.float32)


def seen(frame: int, people: Sequence[int]) -> SeenFrame:
    face = Face(box_px=(1.0, 2.0, 30.0, 40.0), score=0.9, landmarks_px=np.zeros((5, 2), dtype=np.float32))
    return SeenFrame(index=frame, timestamp_s=frame / 30, faces=tuple((track_id, face) for track_id in people))


def pushed(merger: RowMerger, frames: Sequence[SeenFrame]) -> Iterator[Rows]:
    features = [feature(track_id, frame.index) for frame in frames for track_id, _ in frame.faces]
    yield from merger.push(frames, np.array(features, dtype=np.float32).reshape(-1, WIDTH))


def merged(people: Sequence[Sequence[int]], patience: int | None, chunk: int = 7) -> list[tuple[int, int, float]]:
    """Return frame, track and first prediction of every row."""
    merger = RowMerger(sequence, DESCRIPTION.labels, patience)
    frames = [seen(k, who) for k, who in enumerate(people)]
    blocks = [rows for start in range(0, len(frames), chunk) for rows in pushed(merger, frames[start : start + chunk])]
    blocks += merger.finish()
    return [
        (int(frame), int(track), float(value))
        for rows in blocks
        for frame, track, value in zip(
            rows.frame, rows.track_id, rows.predictions["valence_arousal"][:, 0], strict=True
        )
    ]


def alone(track_id: int, frames: range, present: Sequence[int]) -> dict[int, float]:
    """Return a person's predictions computed at once: the plain sum over the segments of their own frames."""
    last, steps = present[0], []
    for frame in frames:
        last = frame if frame in present else last
        steps.append(feature(track_id, last))
    sums, counts = np.zeros(len(steps)), np.zeros(len(steps))
    for segment in segments(len(steps), WINDOW, STRIDE):
        sums[segment] += predict(np.array(steps)[segment])["valence_arousal"][:, 0]
        counts[segment] += 1
    return {frame: float(sums[k] / counts[k]) for k, frame in enumerate(frames) if frame in present}


def test_each_person_has_a_sequence_of_their_own() -> None:
    """One from the start, one who comes late, is hidden for a while and leaves before the end."""
    second = [*range(13, 40), *range(48, 60)]
    people = [[0, 3] if k in second else [0] for k in range(100)]

    rows = merged(people, None)

    assert [row[:2] for row in rows] == [(k, track) for k, who in enumerate(people) for track in who]
    expected = {0: alone(0, range(100), range(100)), 3: alone(3, range(13, 100), second)}
    assert [value for *_, value in rows] == pytest.approx([expected[track][k] for k, track, _ in rows], rel=1e-4)


def test_frames_without_a_face_have_one_empty_row_in_their_place() -> None:
    people: list[list[int]] = [[], [], [0], [], [0, 1], [], []]

    rows = merged(people, None)

    assert [row[:2] for row in rows] == [
        *[(0, NO_TRACK), (1, NO_TRACK), (2, 0), (3, NO_TRACK), (4, 0), (4, 1), (5, NO_TRACK), (6, NO_TRACK)]
    ]
    assert [np.isnan(value) for *_, value in rows] == [track == NO_TRACK for _, track, _ in rows]


def test_somebody_who_left_holds_nothing_back() -> None:
    """The rows of a person who is gone for longer than the patience are final, before their window is full."""
    merger = RowMerger(sequence, DESCRIPTION.labels, 5)
    list(pushed(merger, [seen(k, [0]) for k in range(10)]))

    held = list(pushed(merger, [seen(k, []) for k in range(10, 15)]))
    released = list(pushed(merger, [seen(15, [])]))

    assert held == []
    assert [int(frame) for rows in released for frame in rows.frame] == list(range(16))


def test_a_number_that_comes_back_after_leaving_begins_anew() -> None:
    people = [[2] if k < 10 or k >= 30 else [] for k in range(50)]

    rows = [row for row in merged(people, 5) if row[1] == 2]

    expected = alone(2, range(16), range(10)) | alone(2, range(30, 50), range(30, 50))
    assert {frame: value for frame, _, value in rows} == pytest.approx(expected, rel=1e-4)


def test_a_change_of_subject_mixes_no_features() -> None:
    people = [[0] if k < 25 or k >= 45 else [1] for k in range(80)]

    rows = merged(people, None)

    first = alone(0, range(80), [*range(25), *range(45, 80)])
    second = alone(1, range(25, 80), range(25, 45))
    assert {frame: value for frame, _, value in rows} == pytest.approx(first | second, rel=1e-4)


def test_missing_frame_numbers_are_held_too() -> None:
    merger = RowMerger(sequence, DESCRIPTION.labels, None)
    numbers = [5, 6, 9, 150, 151]

    rows = [*pushed(merger, [seen(k, [0]) for k in numbers]), *merger.finish()]

    assert [int(k) for block in rows for k in block.frame] == numbers
    found = [float(v) for block in rows for v in block.predictions["valence_arousal"][:, 0]]
    assert found == pytest.approx(list(alone(0, range(5, 152), numbers).values()), rel=1e-4)


def test_frames_that_come_together_are_answered_together_across_gaps() -> None:
    asked: list[int] = []

    class Counting(OverlapMerger):
        def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
            asked.append(len(features))
            return super().push(features)

    merger = RowMerger(lambda: Counting(predict, WINDOW, STRIDE), DESCRIPTION.labels, None)
    list(pushed(merger, [seen(k, [0]) for k in (0, 1, 5, 6, 9)]))
    list(pushed(merger, [seen(10 + 2 * WINDOW_FRAMES, [0])]))

    assert asked[0] == 10
    assert sum(asked) == 11 + 2 * WINDOW_FRAMES
    assert max(asked) == WINDOW_FRAMES, "a long gap is not held in memory"


def crowd(frame: int) -> list[int]:
    """Two people who stay, one who is hidden now and then, and a new one every 50 frames."""
    return [0, 1, *([2] if frame % 40 < 25 else []), 3 + frame // 50] if frame % 97 else []


def most_held(frames: int) -> int:
    """Return the most bytes that a merger holds while a long stream goes by."""
    merger = RowMerger(sequence, DESCRIPTION.labels, 15)
    held_bytes, rows = 0, 0
    for start in range(0, frames, 32):
        chunk = [seen(k, crowd(k)) for k in range(start, min(start + 32, frames))]
        rows += sum(len(set(block.frame.tolist())) for block in pushed(merger, chunk))
        if start % (32 * 15) == 0:
            held_bytes = max(held_bytes, len(pickle.dumps(merger)))
    rows += sum(len(set(block.frame.tolist())) for block in merger.finish())
    assert rows == frames
    return held_bytes


def test_twenty_thousand_frames_are_held_no_longer_than_two_thousand() -> None:
    # Who is there at the moment of looking differs; what grew would be 10 times as much.
    assert most_held(20_000) < 1.2 * most_held(2_000)
