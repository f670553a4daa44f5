"""What moved between two frames: faces carried along by optical flow, and cuts between shots.

A face is carried by a grid of points in its box, tracked by the pyramidal Lucas-Kanade method (Bouguet 2001) forwards
and back again (Kalal et al. 2010); the points that return to where they came from vote for one similarity transform,
which then moves box and landmarks. The mouth may speak meanwhile: no landmark moves alone.

All of it works on a grey copy of the frame with 320 px on its longer side: 0.5 ms a frame and face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Face
from affserve.client.faces.shrink import shrunk

Points = NDArray[np.complex128]
"""x + iy: a similarity transform of the plane is then z -> a z + b."""

SIDE_PX = 320
GRID = 5  # points across a face, and down
PYRAMID_LEVELS = 3
PATCH_PX = (15, 15)  # that a point is recognised by, of the grey copy
RETURN_PX = 1.0  # a point that comes back farther from where it started is lost
AGREEMENT_PX = 0.25  # points this near the common transform always agree with it
QUORUM = 0.5  # of a face's points must agree
GROWTH = 1.25  # between two frames, at most
CUT_CORRELATION = 0.55  # of two frames' thumbnails: below, another shot has begun
CUT_CHANGE = 6.0  # grey levels, mean change that a cut makes at least
THUMB_PX = (32, 18)
_PLACES: Points = np.array([x + 1j * y for y in np.linspace(0.1, 0.9, GRID) for x in np.linspace(0.15, 0.85, GRID)])


@dataclass(frozen=True, kw_only=True, eq=False)
class GreyFrame:
    """The small grey copy of a frame: (h, w) uint8, its size relative to the frame's, and a thumbnail (18, 32)."""

    grey: NDArray[np.uint8]
    scale: float
    thumb: NDArray[np.float32]


def grey_frame(image: NDArray[np.uint8]) -> GreyFrame:
    """Return the grey copy of an RGB frame (H, W, 3)."""
    small = shrunk(image, SIDE_PX)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    thumb = cv2.resize(grey, THUMB_PX, interpolation=cv2.INTER_AREA).astype(np.float32)
    scale = small.shape[1] / image.shape[1]
    return GreyFrame(grey=np.asarray(grey, dtype=np.uint8), scale=scale, thumb=thumb)


def is_cut(before: GreyFrame, after: GreyFrame) -> bool:
    """Say whether another shot begins: the picture is another one, not only brighter, darker or moved a little."""
    if before.grey.shape != after.grey.shape:
        return True
    a, b = before.thumb - before.thumb.mean(), after.thumb - after.thumb.mean()
    spread = float(np.linalg.norm(a) * np.linalg.norm(b))
    if float(np.abs(a - b).mean()) < CUT_CHANGE:
        return False
    return spread == 0 or float((a * b).sum()) / spread < CUT_CORRELATION


def follow(before: GreyFrame, after: GreyFrame, faces: Sequence[Face]) -> list[Face | None]:
    """Return the faces of the frame before where they are now; None for a face whose points do not agree on it."""
    if not faces:
        return []
    start = np.stack([_grid(face) for face in faces])  # (n, 25)
    moved, good = _tracked(before, after, start)
    tolerance_px = AGREEMENT_PX / after.scale
    return [_carried(face, start[k], moved[k], good[k], tolerance_px) for k, face in enumerate(faces)]


def _grid(face: Face) -> Points:
    x, y, width, height = face.box_px
    return np.asarray(_PLACES.real * width + x + 1j * (_PLACES.imag * height + y))


def _tracked(before: GreyFrame, after: GreyFrame, points: Points) -> tuple[Points, NDArray[np.bool_]]:
    """Return where points (n, 25) px of the frame went, and which of them are to be trusted."""
    flat = np.stack([points.real.ravel(), points.imag.ravel()], axis=1)[:, None] * before.scale
    start = flat.astype(np.float32)
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        before.grey, after.grey, start, start.copy(), winSize=PATCH_PX, maxLevel=PYRAMID_LEVELS
    )
    back, found_again, _ = cv2.calcOpticalFlowPyrLK(
        after.grey, before.grey, there, start.copy(), winSize=PATCH_PX, maxLevel=PYRAMID_LEVELS
    )
    error = np.linalg.norm(back - start, axis=-1).ravel()
    good = np.asarray((found.ravel() == 1) & (found_again.ravel() == 1) & (error < RETURN_PX), dtype=np.bool_)
    moved: Points = (there[:, 0, 0] / after.scale).astype(np.complex128) + 1j * (there[:, 0, 1] / after.scale)
    return moved.reshape(points.shape), good.reshape(points.shape)


def _carried(face: Face, start: Points, moved: Points, good: NDArray[np.bool_], tolerance_px: float) -> Face | None:
    if good.sum() < QUORUM * len(start):
        return None
    turn, shift, agreeing = _common_motion(start[good], moved[good], tolerance_px)
    if agreeing < QUORUM * len(start) or not 1 / GROWTH < abs(turn) < GROWTH:
        return None
    landmarks = turn * (face.landmarks_px[:, 0].astype(np.float64) + 1j * face.landmarks_px[:, 1]) + shift
    centre = turn * complex(*face.centre_px) + shift
    width, height = face.box_px[2] * abs(turn), face.box_px[3] * abs(turn)
    return Face(
        box_px=(centre.real - width / 2, centre.imag - height / 2, width, height),
        score=face.score,
        landmarks_px=np.stack([landmarks.real, landmarks.imag], axis=1).astype(np.float32),
    )


def _common_motion(start: Points, moved: Points, tolerance_px: float) -> tuple[complex, complex, int]:
    """Fit z -> a z + b by least squares, twice, without the points that stray; return a, b and how many agree."""
    kept = np.ones(len(start), dtype=bool)
    turn, shift = 1 + 0j, 0j
    for _ in range(3):
        s, t = start[kept], moved[kept]
        s0, t0 = s.mean(), t.mean()
        spread = float((np.abs(s - s0) ** 2).sum())
        turn = complex((np.conj(s - s0) * (t - t0)).sum() / spread) if spread > 0 else 1 + 0j
        shift = complex(t0 - turn * s0)
        stray = np.abs(turn * start + shift - moved)
        kept = stray <= max(2.5 * float(np.median(stray)), tolerance_px)
    return turn, shift, int(kept.sum())
