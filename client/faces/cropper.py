"""The croppers: people followed through a video, and their faces cut out as the encoder was trained to see them.

In comes one RGB frame after the other, out come the crops of the people who were asked for, each under a number that
stays theirs. Nothing looks ahead, so a file and a camera get the same answers.

A crop is that of train/alignment.py, which also made the generated training crops and follows the aligner behind
Aff-Wild2's `cropped_aligned`: one similarity transform brings the five landmarks as near as it can to ArcFace's
reference points in 112x112 px. Rotation in the image plane is gone, the eyes lie 35 px apart, and there is no other
margin: it reaches from the forehead to below the mouth. It is then doubled to the encoder's 224x224. What lies beyond
the border of the frame is black, as in the training crops, and never a stretched or mirrored edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.detector_file import find_detector
from affserve.client.faces.detectors import HaarDetector
from affserve.client.faces.face import Cropper, Face, FaceDetector
from affserve.client.faces.flow import GreyFrame, grey_frame
from affserve.client.faces.quality import quality_of
from affserve.client.faces.settings import FaceSettings
from affserve.client.faces.subjects import chooser
from affserve.client.faces.tracks import Tracker
from affserve.train.crops import align_face, to_crop_size, to_encoder_input

WITH_ROOM = 0.7  # of the largest face that was left out: others, and the same one in other frames, are smaller


@dataclass(frozen=True, kw_only=True)
class Croppers:
    """Gives each video its cropper: the one place that decides whether faces are looked for, and by what."""

    faces: FaceSettings = field(default_factory=FaceSettings)
    crops: bool | None = None  # frames are face crops already; None: where the source says so
    face_detector: str = "auto"
    face_model: Path | None = None

    @cached_property
    def detector(self) -> FaceDetector:
        """The detector of all videos, which go one after the other; VideoError where it cannot be had."""
        return find_detector(self.face_detector, self.face_model)

    def cropper(self, already_cropped: bool) -> Cropper:
        """Return a cropper for the next video; already_cropped: what its source says."""
        crops = already_cropped if self.crops is None else self.crops
        return WholeImageCropper() if crops else FaceCropper(self.detector, self.faces)


class FaceCropper(Cropper):
    """Finds and follows the people of one video and cuts the crops of those that the settings ask for."""

    def __init__(self, detector: FaceDetector, settings: FaceSettings | None = None) -> None:
        self._settings = settings or FaceSettings()
        self._detector = detector
        self._tracker = Tracker(detector, self._settings)
        self._chooser = chooser(self._settings.faces)
        self._boxes: dict[int, NDArray[np.float64]] = {}  # as reported for the frame before

    @property
    def name(self) -> str:
        return self._detector.name

    @property
    def patience_frames(self) -> int:
        return self._settings.patience_frames

    def advice(self) -> str:
        """Say what helps where few faces were found."""
        if (side_px := self._tracker.left_out_px) > 0:
            smaller_px = int(WITH_ROOM * side_px)
            return f"faces of up to {side_px:.0f} px were left out for their size: --min-face {smaller_px} takes them"
        if self._detector.name == HaarDetector.name:
            return "Haar misses turned and small faces: YuNet finds them (--face-model)"
        return "if the frames are face crops already, say --crops"

    def prepare(self, image: NDArray[np.uint8]) -> GreyFrame:
        return grey_frame(image)

    def find(self, image: NDArray[np.uint8], prepared: GreyFrame) -> list[tuple[int, Face]]:
        people = self._tracker.step(image, prepared)
        chosen = self._chooser.choose(people, cut=self._tracker.cut, width_px=image.shape[1])
        found = [(person.track_id, self._smoothed(person.track_id, person.face)) for person in chosen]
        self._boxes = {track_id: np.array(face.box_px) for track_id, face in found}
        return found

    def cut(self, image: NDArray[np.uint8], face: Face) -> tuple[Face, NDArray[np.uint8]]:
        crop = align_face(image, face.landmarks_px)
        found = self._detector.name != HaarDetector.name  # Haar's landmarks are where an average face has them
        quality = quality_of(crop, face.landmarks_px if found else None)
        return replace(face, quality=quality), to_encoder_input(crop)

    def _smoothed(self, track_id: int, face: Face) -> Face:
        before, kept = self._boxes.get(track_id), self._settings.smoothing
        if before is None or not kept:
            return face
        x, y, width, height = (float(v) for v in kept * before + (1 - kept) * np.array(face.box_px))
        return replace(face, box_px=(x, y, width, height))


class WholeImageCropper(Cropper):
    """For frames that are face crops already, such as Aff-Wild2's: the whole image is the crop."""

    name = "none (frames are crops)"
    patience_frames: int | None = None

    def prepare(self, image: NDArray[np.uint8]) -> None:
        return None

    def find(self, image: NDArray[np.uint8], prepared: None) -> list[tuple[int, Face]]:
        """Return the whole image (H, W, 3) as a face."""
        height, width = image.shape[:2]
        landmarks = np.empty((0, 2), dtype=np.float32)
        return [(0, Face(box_px=(0.0, 0.0, float(width), float(height)), score=np.nan, landmarks_px=landmarks))]

    def cut(self, image: NDArray[np.uint8], face: Face) -> tuple[Face, NDArray[np.uint8]]:
        return replace(face, quality=quality_of(to_crop_size(image))), to_encoder_input(image)
