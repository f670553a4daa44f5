"""How curves given in face units become pixels: a pose, a list of strokes, and anti-aliased polygons."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.synthetic.anatomy import Curve, Pose

_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
_ROUND = np.stack([np.cos(np.linspace(0, 2 * np.pi, 16)), np.sin(np.linspace(0, 2 * np.pi, 16))], axis=1)

Paint = tuple[float, ...]  # RGB, or one value of a light map
Point = tuple[float, float]


class Brush:
    """Collects curves given in face units and draws them into an image (H, W) or (H, W, 3) of uint8.

    All points are projected at once: with some sixty short curves a face, that is most of the speed.
    """

    def __init__(self, image: NDArray[np.uint8], pose: Pose, scale_px: float) -> None:
        self.image = image
        self.scale_px = scale_px
        self._pose = pose
        self._curves: list[Curve] = []
        self._strokes: list[tuple[Paint, int, float]] = []  # paint, thickness in px (0: fill), lift

    def fill(self, curve: Curve, paint: Paint, lift: float = 0.0) -> None:
        """Fill the polygon of a curve."""
        self._curves.append(curve)
        self._strokes.append((paint, 0, lift))

    def line(self, curve: Curve, paint: Paint, width: float, lift: float = 0.0) -> None:
        """Draw along a curve, `width` face units wide."""
        self._curves.append(curve)
        self._strokes.append((paint, max(1, round(width * self.scale_px)), lift))

    def spot(self, centre: Point, radius: Point, paint: Paint, lift: float = 0.0) -> None:
        """Fill an ellipse."""
        self.fill(ellipse(centre, radius), paint, lift)

    def flush(self) -> None:
        """Draw what was collected, in order."""
        lengths = [len(curve) for curve in self._curves]
        lift = np.repeat([lift for _, _, lift in self._strokes], lengths)
        points = np.rint(self._pose(np.concatenate(self._curves), lift) * (1 << _SHIFT)).astype(np.int32)
        start = 0
        for length, (paint, thickness, _) in zip(lengths, self._strokes, strict=True):
            curve = [points[start : start + length]]
            start += length
            if thickness:
                cv2.polylines(self.image, curve, False, paint, thickness, cv2.LINE_AA, _SHIFT)
            else:
                cv2.fillPoly(self.image, curve, paint, cv2.LINE_AA, _SHIFT)
        self._curves, self._strokes = [], []


def ellipse(centre: Point, radius: Point) -> Curve:
    """Return a closed ellipse, (16, 2)."""
    return np.asarray(_ROUND * radius + centre)


def blend(a: Paint, b: Paint, share: float) -> tuple[float, ...]:
    """Return the colour `share` of the way from a to b."""
    return tuple(float(u + share * (v - u)) for u, v in zip(a, b, strict=True))
