"""Faces are found, the right one is followed, and its crop is aligned as in training."""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from affserve.benchmarks.video.faces import crop_distance_px
from affserve.client.faces.cropper import FaceCropper, WholeImageCropper
from affserve.client.faces.detector_file import MODEL_ENVIRONMENT, YUNET_FILE, cache_folder, find_detector
from affserve.client.faces.detectors import HaarDetector, YuNetDetector
from affserve.client.faces.face import Face, overlap
from affserve.client.faces.settings import FaceSettings
from affserve.client.faces.tracks import NEW_FACE_SCORE
from affserve.client.video.source import open_source, read_image
from affserve.train.crops import REFERENCE_LANDMARKS_PX, similarity_to_reference
from affserve.train.errors import VideoError

NOWHERE = "http://127.0.0.1:9/"  # the discard port: nothing listens


@pytest.fixture(scope="module")
def yunet(shared_data: Path) -> YuNetDetector:
    return YuNetDetector(shared_data / YUNET_FILE)


@pytest.fixture(autouse=True)
def no_model_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(MODEL_ENVIRONMENT, raising=False)


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served at."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/{YUNET_FILE}"
        server.shutdown()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def face(x: float, y: float, size: float) -> Face:
    return Face(box_px=(x, y, size, size), score=0.9, landmarks_px=np.zeros((5, 2), dtype=np.float32))


def images(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.image for frame in open_source(path)]


def landmarks_in_crop(landmarks: NDArray[np.float32], transform: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(landmarks @ transform[:, :2].T + transform[:, 2], dtype=np.float64)


@pytest.mark.parametrize(("name", "most_missed"), [("single_face.mp4", 0), ("again.mkv", 0), ("two_people.gif", 0)])
def test_yunet_finds_a_face_in_every_frame(
    shared_data: Path, yunet: YuNetDetector, name: str, most_missed: int
) -> None:
    missed = sum(not yunet.detect(image) for image in images(shared_data / name))
    assert missed <= most_missed


def test_all_faces_of_a_group_are_found_in_image_coordinates(shared_data: Path, yunet: YuNetDetector) -> None:
    faces = yunet.detect(read_image(shared_data / "multi_face.jpg"))
    assert len(faces) == 5
    for found in faces:
        x, y, width, height = found.box_px
        assert 60 < width < 160
        assert ((found.landmarks_px > (x, y)) & (found.landmarks_px < (x + width, y + height))).all()
        right_eye, left_eye, _, right_mouth, left_mouth = found.landmarks_px
        assert right_eye[0] < left_eye[0]
        assert right_mouth[0] < left_mouth[0]
        assert right_eye[1] < right_mouth[1]


def test_a_small_face_in_a_large_frame_is_found(shared_data: Path, yunet: YuNetDetector) -> None:
    close = images(shared_data / "single_face.mp4")[0]
    small = cv2.resize(close, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    frame = np.full((1080, 1920, 3), 90, dtype=np.uint8)
    frame[300 : 300 + small.shape[0], 700 : 700 + small.shape[1]] = small
    (found,) = [face for face in yunet.detect(frame) if face.score >= NEW_FACE_SCORE]
    assert 780 < found.box_px[0] < 800
    assert 50 < found.box_px[2] < 70


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_a_face_at_the_border_keeps_its_place_in_the_crop(shared_data: Path, yunet: YuNetDetector, edge: str) -> None:
    """A quarter of the face is outside: what is left lies where it lay, and beyond the border the crop is black."""
    image = images(shared_data / "single_face.mp4")[0]
    (whole,) = FaceCropper(yunet).crop(image)
    x, y, width, height = (round(v) for v in whole.face.box_px)
    cut = {
        "left": image[:, x + width // 4 :],
        "right": image[:, : x + width - width // 4],
        "top": image[y + height // 4 :],
        "bottom": image[: y + height - height // 4],
    }[edge]
    (found,) = FaceCropper(yunet).crop(np.ascontiguousarray(cut))
    inside = (found.pixels > 0).any(axis=2)
    assert 0.02 < 1 - inside.mean() < 0.5
    # The same pixels in the same place: the correlation is taken where both crops show the image.
    ours, theirs = found.pixels[inside].astype(float).ravel(), whole.pixels[inside].astype(float).ravel()
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8  # 0.85 to 0.95 measured; 12 px of 224 to the side give 0.73


def test_crop_puts_the_landmarks_where_training_has_them(shared_data: Path, yunet: YuNetDetector) -> None:
    cropper = FaceCropper(yunet)
    for image in images(shared_data / "single_face.mp4")[::12]:
        (found,) = cropper.crop(image)
        subject, crop = found.face, found.pixels
        placed = landmarks_in_crop(subject.landmarks_px, similarity_to_reference(subject.landmarks_px))
        assert crop.shape == (224, 224, 3)
        # A similarity cannot change proportions, so a real face's points stay some pixels (of 112) apart from them.
        assert np.linalg.norm(placed - REFERENCE_LANDMARKS_PX, axis=1).mean() < 5
        (again,) = yunet.detect(crop)
        # What the pixels show is what the transform says, to the detector's own precision (1.9 px measured).
        assert np.abs(again.landmarks_px / 2 - placed).mean() < 3


def test_haar_crops_agree_with_yunets_on_a_frontal_face(shared_data: Path, yunet: YuNetDetector) -> None:
    shifts = []
    for image in images(shared_data / "single_face.mp4")[::6]:
        (theirs,) = yunet.detect(image)
        ours = max(HaarDetector().detect(image), key=lambda face: overlap(face, theirs))
        expected = landmarks_in_crop(theirs.landmarks_px, similarity_to_reference(theirs.landmarks_px))
        placed = landmarks_in_crop(theirs.landmarks_px, similarity_to_reference(ours.landmarks_px))
        shifts.append(np.linalg.norm(placed - expected, axis=1).mean())
    assert np.mean(shifts) < 3.5  # pixels of 112; 2.1 measured


def test_distance_of_crops_is_told_in_pixels_of_the_crop() -> None:
    twice = 2 * REFERENCE_LANDMARKS_PX + 50  # in a frame that shows the face twice as large
    assert crop_distance_px(twice, twice) == pytest.approx(0, abs=1e-4)
    assert crop_distance_px(twice, twice + np.array([6, 8], dtype=np.float32)) == pytest.approx(5, abs=1e-3)


def test_overlap_is_intersection_over_union() -> None:
    assert overlap(face(0, 0, 10), face(5, 0, 10)) == pytest.approx(50 / 150)
    assert overlap(face(0, 0, 10), face(20, 20, 10)) == 0
    assert overlap(face(0, 0, 10), face(0, 0, 10)) == 1


def test_whole_image_is_the_crop_of_a_crop() -> None:
    image = np.full((112, 112, 3), 7, dtype=np.uint8)
    (found,) = WholeImageCropper().crop(image)
    assert found.face.box_px == pytest.approx((0, 0, 112, 112))
    assert (found.pixels == np.full((224, 224, 3), 7)).all()


def test_model_is_taken_from_option_then_environment(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_ENVIRONMENT, str(tmp_path / "absent.onnx"))
    assert find_detector("auto", shared_data / YUNET_FILE, url=NOWHERE).name == "yunet"
    with pytest.raises(VideoError, match=MODEL_ENVIRONMENT):
        find_detector("auto", url=NOWHERE)
    monkeypatch.setenv(MODEL_ENVIRONMENT, str(shared_data / YUNET_FILE))
    assert find_detector("auto", url=NOWHERE).name == "yunet"


def test_model_is_fetched_once_and_kept(shared_data: Path, web_folder: tuple[Path, str]) -> None:
    folder, url = web_folder
    (folder / YUNET_FILE).write_bytes((shared_data / YUNET_FILE).read_bytes())
    assert find_detector("yunet", url=url).name == "yunet"
    (folder / YUNET_FILE).unlink()
    assert find_detector("yunet", url=url).name == "yunet"
    assert [file.name for file in cache_folder().iterdir()] == [YUNET_FILE]


def test_another_file_under_the_address_is_not_trusted(web_folder: tuple[Path, str]) -> None:
    folder, url = web_folder
    (folder / YUNET_FILE).write_bytes(b"something else")
    assert find_detector("auto", url=url).name == "haar"
    assert not cache_folder().exists()


def test_without_a_network_haar_stands_in_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_detector("auto", url=NOWHERE).name == "haar"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Haar" in printed.err
    assert "--face-model" in printed.err
    assert printed.err.count("\n") == 1


def test_yunet_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(VideoError, match="cannot be fetched"):
        find_detector("yunet", url=NOWHERE)


def test_haar_on_request_needs_no_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_detector("haar", url=NOWHERE).name == "haar"
    assert capsys.readouterr().err == ""


def test_unknown_kind_and_wrong_files_are_errors(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no network in here")
    with pytest.raises(VideoError, match="expected one of auto, yunet, haar"):
        find_detector("mtcnn")
    with pytest.raises(VideoError, match="is not a file"):
        find_detector("auto", tmp_path / "absent.onnx")
    with pytest.raises(VideoError, match="cannot be used as the YuNet face model"):
        find_detector("auto", wrong)


def test_another_network_is_not_taken_for_yunet(repository: Path) -> None:
    with pytest.raises(VideoError, match="cannot be used as the YuNet face model"):
        find_detector("auto", repository / "temporal_head" / "1" / "model.onnx")


def small_faces(clip: Path) -> list[NDArray[np.uint8]]:
    """A person whose face is 15 px wide in a large frame."""
    frames = []
    for frame in itertools.islice(open_source(clip), 8):
        canvas = np.full((240, 320, 3), 90, dtype=np.uint8)
        canvas[40:74, 40:100] = cv2.resize(frame.image, (60, 34), interpolation=cv2.INTER_AREA)
        frames.append(canvas)
    return frames


def test_faces_that_are_too_small_are_told_with_the_option_that_takes_them(
    shared_data: Path, yunet: YuNetDetector
) -> None:
    frames = small_faces(shared_data / "single_face.mp4")
    cropper = FaceCropper(yunet)
    assert not any(cropper.crop(frame) for frame in frames)
    (size,) = re.findall(r"--min-face (\d+)", cropper.advice())

    closer = FaceCropper(yunet, FaceSettings(min_size_px=float(size)))
    assert all(closer.crop(frame) for frame in frames)


def test_haar_gives_no_confidence(shared_data: Path) -> None:
    image = next(iter(open_source(shared_data / "single_face.mp4"))).image
    assert [np.isnan(face.score) for face in HaarDetector().detect(image)] == [True]
    assert "--face-model" in FaceCropper(HaarDetector()).advice()
    assert [np.isnan(one.face.score) for one in WholeImageCropper().crop(image)] == [True]
