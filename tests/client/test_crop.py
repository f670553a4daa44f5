"""Raw videos to training crops: the folders that labels name, the crops that are served, and runs that go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpora import write_annotation
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.corpora.videos import plan_crops
from affserve.client.faces.cropper import FaceCropper
from affserve.client.faces.detectors import YuNetDetector
from affserve.client.faces.settings import FaceSettings
from affserve.client.video.source import open_source
from affserve.train.corpus.affwild2 import open_corpus
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import DataError
from affserve.train.labels import EXPRESSION

TRAIN_FOLDER = (EXPRESSION.challenge, "Train_Set")


def arguments(data: Path, out: Path, *names: str) -> list[str]:
    model = str(data / "face_detection_yunet_2023mar.onnx")
    videos = [str(data / name) for name in names]
    return ["data", "crop", *videos, "--out", str(out), "--face-model", model, "--workers", "1"]


def tree(folder: Path) -> dict[str, str]:
    """Hashes of all crops."""
    files = sorted(folder.rglob("*.jpg"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def cropped(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with labels of two people in one video, of another video, and of one without a person."""
    root = tmp_path_factory.mktemp("crop") / "corpus"
    for name in ("two_people_left", "two_people_right", "single_face"):
        write_annotation(root, *TRAIN_FOLDER, name, EXPRESSION.header + "\n" + "0\n" * 56)
    result = CliRunner().invoke(app, [*arguments(shared_data, root, "two_people.gif", "single_face.mp4"), "--json"])
    assert result.exit_code == 0, result.output
    reports = {Path(one["video"]).name: one for one in map(json.loads, result.stdout.splitlines())}
    assert reports["two_people.gif"]["crops"] == {"two_people_left": 56, "two_people_right": 56}
    assert reports["single_face.mp4"]["crops"] == {"single_face": 72}
    return root


def test_a_crop_is_what_is_served(cropped: Path, shared_data: Path) -> None:
    cropper = FaceCropper(YuNetDetector(shared_data / "face_detection_yunet_2023mar.onnx"))
    crops = open_corpus(cropped).crops("single_face")
    for frame in open_source(shared_data / "single_face.mp4"):
        served = cropper.crop(frame.image)[0].pixels
        ours = to_encoder_input(read_crop(crops[frame.index + 1]))
        assert np.abs(served.astype(int) - ours).mean() < 3  # JPEG of quality 95
    left, right = (read_crop(open_corpus(cropped).crops(f"two_people_{side}")[1]) for side in ("left", "right"))
    assert np.abs(left.astype(int) - right).mean() > 10


def test_served_crops_come_first_and_are_compared_with_the_official_ones(
    cropped: Path, shared_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(cropped / "annotations", root / "annotations")
    shutil.copytree(cropped / "cropped_affserve" / "single_face", root / "cropped_aligned" / "single_face")
    shutil.copytree(cropped / "cropped_affserve" / "two_people_left", root / "cropped_aligned" / "two_people_left")
    assert open_corpus(root).images == "official"
    result = CliRunner().invoke(app, arguments(shared_data, root, "single_face.mp4"))
    assert "single_face 100.0%, single_face 0.0 px from the official crops" in result.stdout
    with pytest.raises(DataError, match="lacks 1 of the videos that have official crops, such as two_people_left"):
        open_corpus(root)
    assert open_corpus(root, images="served").crop_folders.keys() == {"single_face"}
    assert open_corpus(root, images="official").image_source() != open_corpus(root, images="served").image_source()


def test_killed_it_goes_on_and_ends_in_the_same_files(cropped: Path, shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(cropped / "annotations", root / "annotations")
    again = arguments(shared_data, root, "two_people.gif", "single_face.mp4")
    running = subprocess.Popen(
        [sys.executable, "-m", "affserve.client", *again], stdout=subprocess.DEVNULL, start_new_session=True
    )
    partial = root / "cropped_affserve" / ".partial" / "single_face"
    while running.poll() is None and not partial.exists():  # the first video is done, the second begun
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (root / "cropped_affserve" / "single_face").exists()
    result = CliRunner().invoke(app, again)
    assert (
        "two_people.gif: 56 frames, 2 people; two_people_left 100.0%, two_people_right 100.0% (done before)"
        in result.stdout
    )
    assert tree(root) == tree(cropped)


def test_a_video_that_cannot_be_read_stops_no_other(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes((shared_data / "single_face.mp4").read_bytes()[:60_000])
    command = arguments(shared_data, tmp_path / "corpus", "two_people.gif")
    result = CliRunner().invoke(app, [*command[:2], str(tmp_path / "broken.mp4"), *command[2:]])
    assert result.exit_code == 1
    assert "broken.mp4" in result.stderr
    assert "two_people 100.0%" in result.stdout
    with pytest.raises(DataError, match="have the same name"):
        plan_crops([Path("a/x.mp4"), Path("b/x.avi")], tmp_path, FaceSettings(), "yunet", None)
