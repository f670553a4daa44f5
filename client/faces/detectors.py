"""Face detectors: YuNet where its file is at hand, OpenCV's Haar cascade where it is not.

In comes one RGB frame, out come the faces in it, in image coordinates; nothing is remembered from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Face
from affserve.client.faces.settings import WIDTH_PX
from affserve.client.faces.shrink import shrunk
from affserve.train.errors import VideoError

YUNET_THRESHOLD = 0.4  # low enough to follow a face that turns; tracks.py asks more of a face that is new
YUNET_NMS_IOU = 0.3
YUNET_CANDIDATES = 5000
HAAR_SIDE_PX = 320
HAAR_SCALE_STEP = 1.1
HAAR_NEIGHBOURS = 4
HAAR_SMALLEST_PX = 20
HAAR_LANDMARKS: NDArray[np.float64] = np.array(
    [[0.318, 0.388], [0.682, 0.388], [0.500, 0.601], [0.346, 0.760], [0.664, 0.760]]
)
"""(5, 2) x, y in units of the box: the mean place of YuNet's landmarks in the cascade's boxes over 150 frames of four
people. Crops made from them lie 2 px (of 112) from YuNet's on frontal faces; eyes found by OpenCV's eye cascades
inside the box made that 2.2 to 2.6 px, so none are looked for.
"""


class YuNetDetector:
    """OpenCV's YuNet network: boxes, confidence and five landmarks.

    A frame is shrunk until its longer side has `width_px` pixels (6 ms on one CPU core at 480x270). Where that shows no
    face and the caller wants a close look, it is tried once more at twice that, which finds faces half as large and
    takes four times as long.
    """

    name = "yunet"

    def __init__(self, model_path: Path) -> None:
        size = (WIDTH_PX, WIDTH_PX)
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(model_path), "", size, YUNET_THRESHOLD, YUNET_NMS_IOU, YUNET_CANDIDATES
            )
            # Another network loads without complaint and fails on its first image.
            self._detect_at(np.zeros((*size, 3), dtype=np.uint8), WIDTH_PX)
        except cv2.error as error:
            raise VideoError(
                f"{model_path} cannot be used as the YuNet face model ({error.err}); expected OpenCV Zoo's "
                "face_detection_yunet_2023mar.onnx"
            ) from error

    def detect(self, image: NDArray[np.uint8], *, width_px: int = WIDTH_PX, closely: bool = True) -> list[Face]:
        faces = self._detect_at(image, width_px)
        if not faces and closely and max(image.shape[:2]) > width_px:
            faces = self._detect_at(image, 2 * width_px)
        return faces

    def _detect_at(self, image: NDArray[np.uint8], side_px: int) -> list[Face]:
        small = shrunk(image, side_px)
        self._network.setInputSize(small.shape[1::-1])
        _, found = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        rows: Sequence[NDArray[np.float32]] = [] if found is None else list(found)
        return [_yunet_face(row, _ratio(small, image)) for row in rows]


def _yunet_face(row: NDArray[np.float32], scale: NDArray[np.float64]) -> Face:
    """Read one detection (15,): box, five landmarks, score; scale (2,) is shrunk / original size in x and y."""
    points = row[:14].reshape(7, 2) / scale
    (x, y), (width, height) = points[0], points[1]
    return Face(
        box_px=(float(x), float(y), float(width), float(height)),
        score=min(float(row[14]), 1.0),
        landmarks_px=points[2:].astype(np.float32),
    )


class HaarDetector:
    """OpenCV's bundled frontal-face cascade: needs no file, misses turned and small faces, gives no confidence.

    Its score is always NaN and its landmarks stand at fixed places in the box.
    """

    name = "haar"

    def __init__(self) -> None:
        cascades = Path(cv2.__file__).parent / "data"
        self._cascade = cv2.CascadeClassifier(str(cascades / "haarcascade_frontalface_alt2.xml"))

    def detect(self, image: NDArray[np.uint8], *, width_px: int = WIDTH_PX, closely: bool = True) -> list[Face]:
        """Find the faces in an RGB image (H, W, 3), shrunk to 320 px whatever `width_px` and `closely` are."""
        small = shrunk(image, HAAR_SIDE_PX)
        boxes = self._cascade.detectMultiScale(
            cv2.cvtColor(small, cv2.COLOR_RGB2GRAY),
            HAAR_SCALE_STEP,
            HAAR_NEIGHBOURS,
            minSize=(HAAR_SMALLEST_PX, HAAR_SMALLEST_PX),
        )
        return [_haar_face(np.asarray(box, dtype=np.float64), _ratio(small, image)) for box in boxes]


def _haar_face(box: NDArray[np.float64], scale: NDArray[np.float64]) -> Face:
    (x, y), (width, height) = box[:2] / scale, box[2:] / scale
    landmarks = (HAAR_LANDMARKS * (width, height) + (x, y)).astype(np.float32)
    return Face(box_px=(float(x), float(y), float(width), float(height)), score=np.nan, landmarks_px=landmarks)


def _ratio(small: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return shrunk / original size in x and y, (2,)."""
    return np.array(small.shape[1::-1]) / image.shape[1::-1]
