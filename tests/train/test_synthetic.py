"""The generated corpus: its layout and defects, its determinism, and whether what it labels can be seen."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from affserve.client.faces.detector_file import YUNET_FILE
from affserve.train.cli import data_app
from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, open_corpus
from affserve.train.crops import CROP_SIZE_PX, REFERENCE_LANDMARKS_PX, align_face, similarity_to_reference
from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL
from affserve.train.synthetic.anatomy import LEFT, Anatomy, FaceState, Placement
from affserve.train.synthetic.corpus import read_description, write_corpus, write_films
from affserve.train.synthetic.face import draw_face
from affserve.train.synthetic.light import Lighting
from affserve.train.synthetic.motion import ACTIVE_INTENSITY, draw_motion
from affserve.train.synthetic.plan import Difficulty, SyntheticConfig, plan_videos
from affserve.train.synthetic.scene import draw_performance, draw_person
from affserve.train.synthetic.video import LANDMARK_COLUMNS

WHOLE = SyntheticConfig(whole_frame_videos=2, whole_frame_frames=40)
# At 10 frames per second, 60 frames hold two expressions.
SMALL = replace(WHOLE, videos=16, validation_share=0.4, frames_min=60, frames_max=80, fps=(10.0,))
TINY = SyntheticConfig(videos=3, frames_min=30, frames_max=32, fps=(15.0,), whole_frame_videos=1, whole_frame_frames=30)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", SMALL, workers=1).root


@pytest.fixture(scope="module")
def corpus(root: Path) -> Corpus:
    return open_corpus(root)


@pytest.fixture(scope="module")
def described(root: Path) -> dict[str, dict]:
    return {video["name"]: video for video in read_description(root)["videos"]}


def test_the_corpus_reader_finds_every_video_and_knows_it_is_synthetic(corpus: Corpus, described: dict) -> None:
    assert corpus.name == "synthetic"
    for key, task in TASKS.items():
        for part in (TRAIN, VALIDATION):
            wanted = {name for name, video in described.items() if key in video["tasks"] and video["set"] == part}
            assert set(corpus.videos(task, part)) == wanted
    crops = [cv2.imread(str(next(iter(corpus.crops(name).values())))) for name in described]
    assert {crop.shape for crop in crops} == {(CROP_SIZE_PX, CROP_SIZE_PX, 3)}


def test_validation_holds_every_expression_and_every_action_unit(corpus: Corpus) -> None:
    expressions = Counter[int]()
    active = np.zeros(ACTION_UNITS.outputs)
    for video in corpus.videos(EXPRESSION, VALIDATION):
        annotation = corpus.annotation(EXPRESSION, VALIDATION, video)
        expressions.update(annotation.values[annotation.valid, 0].astype(int).tolist())
    for video in corpus.videos(ACTION_UNITS, VALIDATION):
        annotation = corpus.annotation(ACTION_UNITS, VALIDATION, video)
        active += annotation.values[annotation.valid].sum(axis=0)
    assert set(expressions) == set(range(EXPRESSION.outputs))
    assert (active > 0).all(), active


def test_the_corpus_has_the_defects_of_the_real_one_and_nobody_in_both_sets(described: dict) -> None:
    videos = described.values()
    people = {part: {v["identity"] for v in videos if v["set"] == part} for part in (TRAIN, VALIDATION)}
    assert not people[TRAIN] & people[VALIDATION]
    assert {v["defects"]["extra_lines"] for v in videos} == {-1, 0, 1, 2}
    assert any(v["defects"]["first_crop"] > 1 for v in videos)
    assert any(v["defects"]["missing"] for v in videos)
    assert any(v["frames"] < SMALL.frames_min for v in videos)
    assert {v["root"] for v in videos} == {"cropped_aligned", "cropped_aligned_new_50_vids"}
    assert {len(v["tasks"]) for v in videos} == {1, 2, 3}
    left = next(name for name in described if name.endswith("_left"))
    right = left.removesuffix("left") + "right"
    assert described[left]["frames"] == described[right]["frames"]
    assert described[left]["identity"] != described[right]["identity"]


@pytest.mark.parametrize("task", [VALENCE_AROUSAL, ACTION_UNITS], ids=lambda task: task.key)
def test_some_rows_miss_all_numbers_and_some_only_a_few(corpus: Corpus, task: object) -> None:
    missing = [
        (corpus.annotation(task, part, video).values == task.invalid)
        for part in (TRAIN, VALIDATION)
        for video in corpus.videos(task, part)
    ]
    share = np.concatenate(missing).mean(axis=1)
    assert (share == 1).any()
    assert ((share > 0) & (share < 1)).any()


def test_the_default_corpus_is_of_demo_size_with_enough_to_validate_every_task() -> None:
    plans = plan_videos(SyntheticConfig())
    assert 16_000 < sum(len(plan.crops()) for plan in plans) < 22_000
    assert len({plan.name for plan in plans}) == len(plans)
    for key in TASKS:
        assert sum(key in plan.tasks and plan.subset == VALIDATION for plan in plans) >= 8


def _tree(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_any_number_of_workers_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one = write_corpus(tmp_path / "one", TINY, workers=1)
    two = write_corpus(tmp_path / "two", TINY, workers=2)
    other = write_corpus(tmp_path / "other", replace(TINY, seed=1), workers=1)
    assert one.crops == two.crops > 0
    assert _tree(one.root) == _tree(two.root)
    crops = [{digest for path, digest in _tree(made.root).items() if path.endswith(".jpg")} for made in (one, other)]
    assert not crops[0] & crops[1]

    # Their films show the same people doing the same.
    assert write_films(one.root, TINY, workers=1) == 3
    corpus = open_corpus(one.root)
    for film in sorted(one.root.glob("batch1/*.mp4")):
        truth = list(csv.DictReader(film.with_suffix(".csv").read_text().splitlines()))
        with av.open(str(film)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == len(truth)
        part = next(part for part in (TRAIN, VALIDATION) if film.stem in corpus.videos(EXPRESSION, part))
        labels = corpus.annotation(EXPRESSION, part, film.stem)
        told = [int(row["expression"]) for row in truth]
        assert all(told[k] == int(v) for k, v in enumerate(labels.values[: len(told), 0]) if labels.valid[k])
        number, path = next(iter(corpus.crops(film.stem).items()))
        points = [float(truth[number - 1][name]) for name in LANDMARK_COLUMNS]
        again = align_face(frames[number - 1], np.array(points).reshape(5, 2))
        assert np.abs(again.astype(int) - cv2.imread(str(path))[..., ::-1]).mean() < 20


def test_a_finished_corpus_is_reused_and_any_other_target_refused(root: Path, tmp_path: Path) -> None:
    before = _tree(root)
    assert write_corpus(root, SMALL, workers=1).reused
    with pytest.raises(DataError, match="seed differ"):
        write_corpus(root, replace(SMALL, seed=5), workers=1)
    assert _tree(root) == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a generated corpus"):
        write_corpus(tmp_path, TINY, workers=1)
    assert _tree(tmp_path).keys() == {"letter.txt"}


def test_a_run_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", TINY, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"videos": 1}, {"frames_max": 10}, {"fps": ()}, {"validation_share": 1.0}],
    ids=["one video", "max below min", "no rate", "all validation"],
)
def test_a_config_that_cannot_be_made_is_refused(wrong: dict) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)


def _truth(root: Path) -> dict[Path, list[dict[str, str]]]:
    files = sorted(root.glob("videos/*.csv"))
    return {path.with_suffix(".mp4"): list(csv.DictReader(path.read_text().splitlines())) for path in files}


def test_times_in_the_truth_are_those_of_the_container(root: Path) -> None:
    steps = []
    for path, rows in _truth(root).items():
        with av.open(str(path)) as container:
            read = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        assert [float(row["timestamp_s"]) for row in rows] == read
        assert [int(row["frame"]) for row in rows] == list(range(SMALL.whole_frame_frames))
        steps.append(len(set(np.diff(read).round(6))))
    assert max(steps) > 2, "no video has a variable frame rate"
    assert min(steps) == 1


def test_landmarks_in_the_truth_lie_in_the_face_and_in_order(root: Path) -> None:
    for rows in _truth(root).values():
        for row in rows:
            value = {name: float(v) for name, v in row.items() if name.endswith("_px")}
            assert value["right_eye_x_px"] < value["nose_tip_x_px"] < value["left_eye_x_px"]
            assert value["right_eye_y_px"] < value["nose_tip_y_px"] < value["right_mouth_corner_y_px"]
            assert value["face_x_px"] < value["right_eye_x_px"]
            assert value["left_eye_x_px"] < value["face_x_px"] + value["face_w_px"]
            assert value["right_mouth_corner_y_px"] < value["face_y_px"] + value["face_h_px"]
            assert 90 < value["face_w_px"] < 220


def _frames_of_many_people(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw one 640x360 frame, and its landmarks, of each of `count` people in the middle of doing something."""
    drawn = []
    calm = Difficulty(occlusion=0, degradation=0)
    for person in range(count):
        rng = np.random.default_rng(person)
        identity = draw_person(0, 1000 + person, 1.0)
        performance = draw_performance(rng, identity, frames=40, fps=4, difficulty=calm, size=(360, 640))
        placement = Placement(centre_px=(320.0, 150.0), scale_px=float(rng.uniform(52, 84)))
        drawn.append(performance.draw(int(rng.integers(40)), placement))
    return drawn


def test_haar_finds_the_drawn_faces() -> None:
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    found = 0
    people = _frames_of_many_people(40)
    for image, landmarks in people:
        x, y = landmarks.mean(axis=0)
        boxes = detector.detectMultiScale(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 3, minSize=(60, 60))
        found += any(left < x < left + w and top < y < top + h for left, top, w, h in boxes)
    assert found >= 0.95 * len(people)


def test_yunet_finds_the_drawn_faces_and_their_eyes(shared_data: Path) -> None:
    detector = cv2.FaceDetectorYN.create(str(shared_data / YUNET_FILE), "", (320, 180), 0.7)
    errors, people = [], _frames_of_many_people(40)
    for image, landmarks in people:
        small = cv2.resize(image, (320, 180), interpolation=cv2.INTER_AREA)
        _, faces = detector.detect(np.ascontiguousarray(small[..., ::-1]))
        if faces is not None:
            seen = 2 * faces[0][4:14].reshape(5, 2)
            errors.append(np.linalg.norm(seen - landmarks, axis=1) / np.linalg.norm(landmarks[1] - landmarks[0]))
    assert len(errors) >= 0.95 * len(people)
    assert (np.median(errors, axis=0)[:3] < 0.1).all(), "a tenth of the distance of the eyes is 3.5 px in a crop"


def _crop(**state: object) -> np.ndarray:
    """Draw one average person frontally and cut the crop at the resting landmarks, so that only the face moves."""
    identity = draw_person(0, 3, 0.0)
    units = np.zeros(ACTION_UNITS.outputs, dtype=np.float32)
    for name in [name for name in state if name.startswith("AU")]:
        units[ACTION_UNITS.names.index(name)] = state.pop(name)
    image = np.full((180, 180, 3), 128, dtype=np.uint8)
    placement = Placement(centre_px=(90.0, 80.0), scale_px=38.0)
    draw_face(image, identity, FaceState(action_units=units, **state), placement, Lighting())
    blank = np.zeros_like(image)
    at_rest = FaceState(action_units=np.zeros(ACTION_UNITS.outputs, dtype=np.float32))
    return align_face(image, draw_face(blank, identity, at_rest, placement, Lighting())).astype(np.int16)


UPPER, LOWER = slice(0, 70), slice(70, CROP_SIZE_PX)


@pytest.mark.parametrize(
    ("shown", "rows"),
    [
        *(({name: 1.0}, UPPER) for name in ("AU1", "AU2", "AU4", "AU6", "AU7")),
        *(({name: 1.0}, LOWER) for name in ("AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26")),
        ({"valence": 0.8}, LOWER),
        ({"arousal": 0.8}, UPPER),
        ({"blink": 1.0}, UPPER),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_labelled_can_be_seen_in_a_crop(shown: dict, rows: slice) -> None:
    changed = np.abs(_crop(**dict(shown)) - _crop()).max(axis=2)[rows]
    # 16 grey levels are four standard deviations of the sensor noise; 20 pixels are a brow's end or a mouth's corner.
    assert (changed > 16).sum() >= 20


def _anatomy(name: str = "") -> Anatomy:
    """The average person's face, in eye distances, x outwards and y down, with one action unit at full strength."""
    units = (np.array(ACTION_UNITS.names) == name).astype(np.float32)
    return Anatomy(draw_person(0, 3, 0.0), FaceState(action_units=units))


def _eye_opening(face: Anatomy) -> float:
    upper_lid, lower_lid = face.eye(LEFT)
    return float((lower_lid - upper_lid)[:, 1].max())


def _lips(face: Anatomy) -> np.ndarray:
    """Upper lip's upper and lower edge, lower lip's upper and lower edge, y in the middle of the mouth."""
    return np.array([line[len(line) // 2, 1] for line in face.lips()])


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("AU1", lambda face: -face.brow(LEFT)[0, 1]),  # its inside
        ("AU2", lambda face: -face.brow(LEFT)[8, 1]),
        ("AU4", lambda face: face.brow(LEFT)[0, 1]),
        ("AU6", lambda face: -_eye_opening(face)),
        ("AU7", lambda face: -_eye_opening(face)),
        ("AU10", lambda face: -_lips(face)[1]),
        ("AU12", lambda face: -face.mouth_corner(LEFT)[0][1]),
        ("AU12", lambda face: face.mouth_corner(LEFT)[0][0]),
        ("AU15", lambda face: face.mouth_corner(LEFT)[0][1]),
        ("AU23", lambda face: -face.mouth_corner(LEFT)[0][0]),
        ("AU24", lambda face: -_lips(face) @ (-1, 1, -1, 1)),  # both lips get thinner
        ("AU25", lambda face: _lips(face) @ (0, -1, 1, 0)),
        ("AU26", lambda face: face.chin_y),
    ],
)
def test_an_action_unit_moves_what_facs_says_it_moves(name: str, measure: Callable[[Anatomy], float]) -> None:
    # 0.03 of the distance between the eyes is a pixel of a crop.
    assert measure(_anatomy(name)) - measure(_anatomy()) > 0.03


def test_the_landmarks_are_where_the_crop_wants_them() -> None:
    image = np.full((180, 180, 3), 128, dtype=np.uint8)
    state = FaceState(action_units=np.zeros(ACTION_UNITS.outputs, dtype=np.float32), roll=0.2)
    landmarks = draw_face(image, draw_person(0, 3, 0.0), state, Placement(centre_px=(90, 80), scale_px=38), Lighting())
    in_crop = np.c_[landmarks, np.ones(5)] @ similarity_to_reference(landmarks).T
    assert np.abs(in_crop - REFERENCE_LANDMARKS_PX).max() < 4
    eyes = align_face(image, landmarks).sum(axis=2)
    for x, y in REFERENCE_LANDMARKS_PX[:2].astype(int):
        assert eyes[y - 4 : y + 5, x - 4 : x + 5].min() < 120, "no pupil where an eye should be"


def test_motion_is_smooth_and_labels_follow_from_it() -> None:
    motion = draw_motion(np.random.default_rng(0), 900, 30.0, pose_amplitude=0.1)
    affect = motion.labels(VALENCE_AROUSAL)
    assert np.abs(affect).max() <= 1
    assert np.abs(np.diff(affect, axis=0)).max() < 0.15
    assert np.array_equal(affect[12:], motion.valence_arousal[:-12]), "0.4 s after what is drawn"
    assert np.array_equal(motion.labels(ACTION_UNITS) == 1, motion.action_units > ACTIVE_INTENSITY)
    changes = np.flatnonzero(np.diff(motion.expression))
    assert len(changes) >= 4
    assert np.diff(changes).min() >= 0.85 * 30, "a segment lasts about a second at least"


def test_the_command_prints_one_line_or_json_and_reuses(tmp_path: Path) -> None:
    options = ["--videos", "2", "--frames-max", "30", "--whole-frame-videos", "0", "--workers", "1"]
    out = tmp_path / "corpus"
    first = CliRunner().invoke(data_app, ["synth", str(out), *options])
    assert first.exit_code == 0, first.output
    assert first.stdout.count("\n") == 1
    again = CliRunner().invoke(data_app, ["synth", str(out), *options, "--json"])
    assert json.loads(again.stdout)["reused"] is True
