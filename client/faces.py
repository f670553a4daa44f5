"""Faces: find them, choose the subject of each frame, cut the encoder's input.

In comes an RGB frame, out come the subject's face and a (224, 224, 3) crop in the same alignment that training uses.
Each frame stands for itself: landmarks are not smoothed over time, because the corpus the model learns from is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.alignment import align_face, to_encoder_input
from affserve.train.errors import VideoError

YUNET_WIDTH_PX = 320  # 3 to 5 ms a frame on one CPU core
YUNET_THRESHOLD = 0.7
YUNET_NMS_IOU = 0.3
YUNET_CANDIDATES = 5000
HAAR_WIDTH_PX = 320
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

SIMILAR_SIZE = 0.5  # a face of at least this part of the largest one's area may stay the subject
SAME_FACE_IOU = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """A face in image coordinates.

    box_px: x, y of the upper left corner, width, height. score: the detector's confidence, 0 to 1.
    landmarks_px: (5, 2) x, y in the order of train/alignment.py.
    """

    box_px: tuple[float, float, float, float]
    score: float
    landmarks_px: NDArray[np.float32]

    @property
    def area_px(self) -> float:
        """Area of the box."""
        return self.box_px[2] * self.box_px[3]


class FaceDetector(Protocol):
    """Finds faces; an instance belongs to one thread (OpenCV's detectors hold state between calls)."""

    name: str

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an RGB image (H, W, 3), in no particular order."""
        ...


class YuNetDetector:
    """OpenCV's YuNet network: boxes, confidence and five landmarks.

    A frame is scaled to `width_px`; where that shows no face, it is tried once more at twice that width, which finds
    faces half as large and costs frames without a face some 15 ms.
    """

    name = "yunet"

    def __init__(self, model_path: Path, *, width_px: int = YUNET_WIDTH_PX, threshold: float = YUNET_THRESHOLD) -> None:
        self._width_px = width_px
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(model_path), "", (width_px, width_px), threshold, YUNET_NMS_IOU, YUNET_CANDIDATES
            )
            # Another network loads without complaint and fails on its first image.
            self._detect_at(np.zeros((width_px, width_px, 3), dtype=np.uint8), width_px)
        except cv2.error as error:
            raise VideoError(
                f"{model_path} cannot be used as the YuNet face model ({error.err}); expected OpenCV Zoo's "
                "face_detection_yunet_2023mar.onnx"
            ) from error

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an RGB image (H, W, 3)."""
        faces = self._detect_at(image, self._width_px)
        if not faces and image.shape[1] > self._width_px:
            faces = self._detect_at(image, min(2 * self._width_px, image.shape[1]))
        return faces

    def _detect_at(self, image: NDArray[np.uint8], width_px: int) -> list[Face]:
        scaled, scale = _scaled(image, width_px)
        self._network.setInputSize((scaled.shape[1], scaled.shape[0]))
        _, found = self._network.detect(cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR))
        rows: Sequence[NDArray[np.float32]] = [] if found is None else list(found)
        return [_yunet_face(row, scale) for row in rows]


def _yunet_face(row: NDArray[np.float32], scale: NDArray[np.float64]) -> Face:
    """Read one detection (15,): box, five landmarks, score; scale (2,) is scaled / original size in x and y."""
    points = row[:14].reshape(7, 2) / scale
    (x, y), (width, height) = points[0], points[1]
    return Face(
        box_px=(float(x), float(y), float(width), float(height)),
        score=float(row[14]),
        landmarks_px=points[2:].astype(np.float32),
    )


class HaarDetector:
    """OpenCV's bundled frontal-face cascade: needs no file, misses turned and small faces, gives no confidence.

    Its score is always 1 and its landmarks stand at fixed places in the box.
    """

    name = "haar"

    def __init__(self) -> None:
        cascades = Path(cv2.__file__).parent / "data"
        self._cascade = cv2.CascadeClassifier(str(cascades / "haarcascade_frontalface_alt2.xml"))

    def detect(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces in an RGB image (H, W, 3)."""
        scaled, scale = _scaled(image, HAAR_WIDTH_PX)
        boxes = self._cascade.detectMultiScale(
            cv2.cvtColor(scaled, cv2.COLOR_RGB2GRAY),
            HAAR_SCALE_STEP,
            HAAR_NEIGHBOURS,
            minSize=(HAAR_SMALLEST_PX, HAAR_SMALLEST_PX),
        )
        return [_haar_face(np.asarray(box, dtype=np.float64), scale) for box in boxes]


def _haar_face(box: NDArray[np.float64], scale: NDArray[np.float64]) -> Face:
    corner, size = box[:2] / scale, box[2:] / scale
    landmarks = (corner + HAAR_LANDMARKS * size).astype(np.float32)
    return Face(box_px=(*map(float, corner), *map(float, size)), score=1.0, landmarks_px=landmarks)  # type: ignore[arg-type]


def _scaled(image: NDArray[np.uint8], width_px: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Shrink an image to a width (never enlarge it); also return scaled / original size in x and y, (2,)."""
    height, width = image.shape[:2]
    if width <= width_px:
        return image, np.ones(2)
    size = (width_px, max(1, round(height * width_px / width)))
    scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(scaled, dtype=np.uint8), np.array(size) / (width, height)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceCrop:
    """One person's face in one frame, ready for the encoder.

    track_id: 0, 1, 2, ... in order of appearance; the same person keeps it. pixels: (224, 224, 3) uint8 RGB.
    """

    track_id: int
    face: Face
    pixels: NDArray[np.uint8]


class FaceCropper:
    """Chooses the subject of each frame and cuts its crop: the largest face, or the previous one if nearly as large."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._previous: Face | None = None

    @property
    def name(self) -> str:
        """Name of the detector."""
        return self._detector.name

    def crop(self, image: NDArray[np.uint8]) -> list[FaceCrop]:
        """Return the crop of the subject of an RGB frame (H, W, 3); none where there is no face."""
        face = choose_subject(self._detector.detect(image), self._previous)
        if face is None:
            return []
        self._previous = face
        return [FaceCrop(track_id=0, face=face, pixels=to_encoder_input(align_face(image, face.landmarks_px)))]


class WholeImageCropper:
    """For frames that are face crops already, such as Aff-Wild2's: the whole image is the crop."""

    name = "none (frames are crops)"

    def crop(self, image: NDArray[np.uint8]) -> list[FaceCrop]:
        """Return the whole image (H, W, 3) as a face of score 1, resized to (224, 224, 3)."""
        height, width = image.shape[:2]
        face = Face(
            box_px=(0.0, 0.0, float(width), float(height)),
            score=1.0,
            landmarks_px=np.empty((0, 2), dtype=np.float32),
        )
        return [FaceCrop(track_id=0, face=face, pixels=to_encoder_input(image))]


class Cropper(Protocol):
    """What `analyze` asks of either cropper."""

    @property
    def name(self) -> str:
        """How faces are found, for the summary."""
        ...

    def crop(self, image: NDArray[np.uint8]) -> list[FaceCrop]:
        """Return the faces of the next RGB frame (H, W, 3) of a video, in the order of their track_id."""
        ...


def choose_subject(faces: Sequence[Face], previous: Face | None) -> Face | None:
    """Return the largest face; among faces of similar size the one that overlaps the previous subject."""
    if not faces:
        return None
    largest = max(faces, key=lambda face: face.area_px)
    if previous is None:
        return largest
    rivals = [face for face in faces if face.area_px >= SIMILAR_SIZE * largest.area_px]
    nearest = max(rivals, key=lambda face: overlap(face, previous))
    return nearest if overlap(nearest, previous) >= SAME_FACE_IOU else largest


def overlap(a: Face, b: Face) -> float:
    """Intersection over union of two faces' boxes."""
    ax, ay, aw, ah = a.box_px
    bx, by, bw, bh = b.box_px
    width = min(ax + aw, bx + bw) - max(ax, bx)
    height = min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0.0) * max(height, 0.0)
    total = a.area_px + b.area_px - shared
    return shared / total if total > 0 else 0.0
