"""Pose, sharpness and the rule that says which faces to rely on, on faces whose truth is known and on real clips."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from affserve.client.faces.cropper import Croppers, FaceCropper, WholeImageCropper
from affserve.client.faces.detectors import HaarDetector, YuNetDetector
from affserve.client.faces.quality import (
    LARGEST_YAW_DEG,
    LEAST_SCORE,
    LEAST_SHARPNESS,
    NOSE_LENGTH,
    Quality,
    pose_deg,
    quality_of,
)
from affserve.client.faces.settings import FaceSettings
from affserve.client.results.rows import FRAME_COLUMNS
from affserve.client.video.source import open_source
from affserve.train.crops import to_crop_size

HEAD: NDArray[np.float64] = np.array(
    [[-0.5, 0, 0], [0.5, 0, 0], [0, 0.5, NOSE_LENGTH], [-0.4, 1.1, 0], [0.4, 1.1, 0]], dtype=np.float64
)


def landmarks(yaw: float, roll: float) -> NDArray[np.float32]:
    """The landmarks of a head that is turned about its upright axis, then in the picture, seen from far away."""
    a, b = np.radians([yaw, roll])
    turned = np.stack([HEAD[:, 0] * np.cos(a) + HEAD[:, 2] * np.sin(a), HEAD[:, 1]], axis=1)
    rolled = turned @ np.array([[np.cos(b), np.sin(b)], [-np.sin(b), np.cos(b)]])
    return (80 * rolled + 300).astype(np.float32)


@pytest.mark.parametrize("roll", [-40, 0, 25])
@pytest.mark.parametrize("yaw", [-75, -30, 0, 20, 60])
def test_pose_of_a_head_that_is_turned_so(yaw: float, roll: float) -> None:
    assert pose_deg(landmarks(yaw, roll)) == pytest.approx((yaw, roll), abs=0.1)


def test_sharpness_falls_with_blur_and_size_and_not_with_contrast(shared_data: Path) -> None:
    (face, *_) = crops(shared_data / "multi_face.jpg", shared_data)
    crop = to_crop_size(face[1])
    blurred = [quality_of(cv2.GaussianBlur(crop, (0, 0), px)).sharpness for px in (0.5, 1, 2, 4)]
    small = [
        quality_of(to_crop_size(cv2.resize(crop, (px, px), interpolation=cv2.INTER_AREA))).sharpness
        for px in (60, 30, 15)
    ]
    assert sorted(blurred, reverse=True) == blurred
    assert sorted(small, reverse=True) == small
    assert blurred[2] < LEAST_SHARPNESS < quality_of(crop).sharpness
    pale = (crop // 2 + 60).astype(np.uint8)
    assert quality_of(pale).sharpness == pytest.approx(quality_of(crop).sharpness, rel=0.15)
    assert quality_of(np.zeros_like(crop)) == pytest.approx(Quality(sharpness=0.0), nan_ok=True)


def test_the_rule_is_the_one_that_the_column_tells() -> None:
    told = next(column.description for column in FRAME_COLUMNS if column.name == "reliable")
    for limit in (LEAST_SCORE, LARGEST_YAW_DEG, LEAST_SHARPNESS):
        assert f"{limit:g}" in told
    good = Quality(yaw_deg=-LARGEST_YAW_DEG, sharpness=LEAST_SHARPNESS)
    assert good.is_reliable(LEAST_SCORE)
    assert not good.is_reliable(LEAST_SCORE - 0.01)
    assert not Quality(yaw_deg=-46, sharpness=1).is_reliable(1)
    assert not Quality(sharpness=0.11).is_reliable(1)
    assert Quality(sharpness=1).is_reliable(np.nan)  # of crops and of Haar, which tell no more


def crops(path: Path, data: Path) -> list[tuple[Quality, NDArray[np.uint8], float]]:
    detector = YuNetDetector(data / "face_detection_yunet_2023mar.onnx")
    cropper = FaceCropper(detector, FaceSettings(faces="all"))
    found = [one for frame in open_source(path) for one in cropper.crop(frame.image)]
    return [(one.face.quality, one.pixels, one.face.score) for one in found]


def test_faces_of_real_clips_are_called_what_they_are(shared_data: Path) -> None:
    """Somebody who looks into the camera, sharp and blurred; two people who turn to each other."""
    frontal = crops(shared_data / "single_face.mp4", shared_data)
    turned = crops(shared_data / "two_people.gif", shared_data)

    assert all(quality.is_reliable(score) and abs(quality.yaw_deg) < 15 for quality, _, score in frontal)
    assert {np.sign(quality.yaw_deg) for quality, _, _ in turned if abs(quality.yaw_deg) > 20} == {-1, 1}
    smeared = [quality_of(to_crop_size(cv2.GaussianBlur(pixels, (0, 0), 10))) for _, pixels, _ in frontal]
    assert not any(quality.is_reliable(1) for quality in smeared)


def test_what_is_not_measured_is_empty(shared_data: Path) -> None:
    image = next(iter(open_source(shared_data / "single_face.mp4"))).image
    (by_haar,) = FaceCropper(HaarDetector(), FaceSettings()).crop(image)
    (whole,) = WholeImageCropper().crop(image)
    for one in (by_haar, whole):
        assert np.isnan([one.face.quality.yaw_deg, one.face.quality.roll_deg]).all()
        assert one.face.quality.sharpness > 0
    assert isinstance(Croppers(crops=True).cropper(False), WholeImageCropper)
