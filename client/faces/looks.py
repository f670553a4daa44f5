"""How a face looks, in a few hundred numbers: enough to tell the people of one video apart, not to know anybody.

A description joins two halves, each of length 1: a coarse picture of head and shoulders in brightness and colour (8x8
over twice the face's box, the middle counting most), and the colours of the face itself. The scalar product of two
descriptions is 1 for the same picture. Over 19 people, real and generated, 97 % of the pairs of the same person within
a clip lie above 0.65 (all real ones above 0.7), and 95 % of the pairs of two people below.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Face
from affserve.client.faces.flow import GreyFrame

Looks = NDArray[np.float32]

SPAN = 2.0  # side of the picture, in faces
PICTURE_PX = 48
TILES = 8
MIDDLE = 0.35  # standard deviation of the weights, in widths of the picture
COLOUR_BINS = [8, 16, 16]  # of Y, Cr and Cb
COLOUR_RANGES = [0, 256, 96, 192, 64, 160]  # where faces lie; other colours count in the outermost bins
COLOUR_LIMITS = (np.array([0, 96, 64], dtype=np.uint8), np.array([255, 191, 159], dtype=np.uint8))
GREY_COLOUR = 128.0
PATCH_PX = 24

_BELL = np.exp(-((np.linspace(-0.5, 0.5, TILES) / MIDDLE) ** 2) / 2)
_WEIGHTS = (_BELL[:, None] * _BELL)[..., None].astype(np.float32)  # (8, 8, 1)


def describe(image: NDArray[np.uint8], face: Face) -> Looks:
    """Return how a face in an RGB frame (H, W, 3) looks: (n,) float32 of length 1."""
    picture = cv2.cvtColor(_square(image, face, SPAN, PICTURE_PX), cv2.COLOR_RGB2YCrCb)
    tiles = cv2.resize(picture, (TILES, TILES), interpolation=cv2.INTER_AREA).astype(np.float32)
    tiles[..., 0] -= tiles[..., 0].mean()
    tiles[..., 1:] = 2 * (tiles[..., 1:] - GREY_COLOUR)
    quarter = PICTURE_PX // 4
    inner = np.clip(picture[quarter:-quarter, quarter:-quarter], *COLOUR_LIMITS)
    colours = cv2.calcHist([inner], [0, 1, 2], None, COLOUR_BINS, COLOUR_RANGES).ravel()
    # The square root makes the scalar product of two histograms their Bhattacharyya coefficient.
    halves = (_unit((tiles * _WEIGHTS).ravel()), _unit(np.sqrt(colours)))
    return np.asarray(np.concatenate(halves) / np.sqrt(2), dtype=np.float32)


def patch(frame: GreyFrame, face: Face) -> Looks:
    """Return a face in grey, (576,) float32 of mean 0 and length 1: the same face a few frames later gives about 1."""
    x, y = face.centre_px
    small = Face(
        box_px=(
            (x - face.side_px / 2) * frame.scale,
            (y - face.side_px / 2) * frame.scale,
            face.side_px * frame.scale,
            face.side_px * frame.scale,
        ),
        score=face.score,
        landmarks_px=face.landmarks_px,
    )
    grey = _square(frame.grey, small, 1.0, PATCH_PX).astype(np.float32).ravel()
    return _unit(grey - grey.mean())


def alike(a: Looks, b: Looks) -> float:
    """Return the similarity of two descriptions, or of two patches: 1 for the same."""
    return float(a @ b)


def blended(a: Looks, b: Looks, share: float) -> Looks:
    """Return a description that is `share` of b and otherwise a."""
    return _unit((1 - share) * a + share * b)


def _square(image: NDArray[np.uint8], face: Face, span: float, side_px: int) -> NDArray[np.uint8]:
    """Cut a square around the middle of a face, `span` faces wide, at (side_px, side_px)."""
    x, y = face.centre_px
    scale = side_px / max(span * face.side_px, 1e-6)
    transform = np.array([[scale, 0, side_px / 2 - scale * x], [0, scale, side_px / 2 - scale * y]])
    cut = cv2.warpAffine(image, transform, (side_px, side_px), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, dtype=np.uint8)


def _unit(values: NDArray[np.float32]) -> Looks:
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), dtype=np.float32)
