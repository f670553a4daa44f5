"""What a face is, who finds faces, and who cuts them out of the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.quality import UNJUDGED, Quality
from affserve.client.faces.settings import WIDTH_PX

Box = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """A face in image coordinates; at the border of an image, box and landmarks may lie outside it.

    score: the detector's confidence, 0 to 1; NaN where there is none, because it gives none or nothing was detected.
    landmarks_px: (5, 2) x, y in the order of train/crops.py. quality: of its crop, once that is cut.
    """

    box_px: Box
    score: float
    landmarks_px: NDArray[np.float32]
    quality: Quality = UNJUDGED

    @property
    def area_px(self) -> float:
        """Area of the box."""
        return self.box_px[2] * self.box_px[3]

    @property
    def side_px(self) -> float:
        """Side of a square of the same area as the box."""
        return float(np.sqrt(self.area_px))

    @property
    def centre_px(self) -> tuple[float, float]:
        """Centre of the box, x and y."""
        x, y, width, height = self.box_px
        return x + width / 2, y + height / 2


class FaceDetector(Protocol):
    """Finds faces; an instance belongs to one thread (OpenCV's detectors hold state between calls)."""

    name: str

    def detect(self, image: NDArray[np.uint8], *, width_px: int = WIDTH_PX, closely: bool = True) -> list[Face]:
        """Find the faces in an RGB image (H, W, 3), in no particular order.

        width_px: see FaceSettings. closely: where none is found, look for smaller ones at a higher cost, if it can.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceCrop:
    """One person's face in one frame, ready for the encoder.

    track_id: 0, 1, 2, ... in order of appearance; the same person keeps it. pixels: (224, 224, 3) uint8 RGB.
    """

    track_id: int
    face: Face
    pixels: NDArray[np.uint8]


class Cropper(Protocol):
    """Takes the frames of one video in order and returns the crops of their faces.

    It works in three steps, so that they may overlap: only `find` remembers and wants the frames in order.
    """

    @property
    def name(self) -> str:
        """How faces are found, for the summary."""
        ...

    @property
    def patience_frames(self) -> int | None:
        """For how many frames a person may be out of sight and come back under the same number; None: for ever."""
        ...

    def prepare(self, image: NDArray[np.uint8]) -> Any:
        """Return what `find` needs of an RGB frame (H, W, 3) beside the frame itself."""
        ...

    def find(self, image: NDArray[np.uint8], prepared: Any) -> list[tuple[int, Face]]:
        """Return track_id and face of those people in the next frame who are asked for, in the order of track_id."""
        ...

    def cut(self, image: NDArray[np.uint8], face: Face) -> tuple[Face, NDArray[np.uint8]]:
        """Return a face in a frame with the quality of its crop, and the crop (224, 224, 3)."""
        ...

    def crop(self, image: NDArray[np.uint8]) -> list[FaceCrop]:
        """Return the faces of the next RGB frame (H, W, 3) of a video: all steps at once."""
        found = self.find(image, self.prepare(image))
        cut = [(track_id, *self.cut(image, face)) for track_id, face in found]
        return [FaceCrop(track_id=track_id, face=face, pixels=pixels) for track_id, face, pixels in cut]


def shared_area(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def overlap(a: Face, b: Face) -> float:
    """Intersection over union of two faces' boxes."""
    shared = shared_area(a.box_px, b.box_px)
    total = a.area_px + b.area_px - shared
    return shared / total if total > 0 else 0.0
