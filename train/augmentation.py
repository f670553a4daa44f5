"""What may differ between two pictures of the same face and expression: the augmentation of stage 1.

What a detector's jitter and another camera do to a face, and nothing that changes its expression: a little turned,
moved, scaled, relit, in another white balance, and mirrored. One matrix changes a crop's colours (112, 112, 3), one
interpolation makes it an encoder input (224, 224, 3), so that augmented faces are no blurrier than the served ones.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.alignment import ENCODER_SIZE_PX

TURN_DEGREES = 8.0
SHIFT = 0.04  # of the side
SCALE = (0.92, 1.08)
BRIGHTNESS = 0.2
CONTRAST = 0.2
SATURATION = 0.2
WHITE_BALANCE = 0.15  # of each channel on its own: rooms differ in the colour of their light more than in its strength
OFFSET = 15.0  # levels of 255
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Augmentation:
    """Transforms of crops that depend on nothing but (seed, epoch, index)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, crop: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """Return another picture (224, 224, 3) of a crop (H, W, 3)."""
        rng = np.random.default_rng([self.seed, epoch, index])
        height, width = crop.shape[:2]
        relit = cv2.transform(crop, _light(rng, float(crop.mean())))
        return resampled(np.asarray(relit, dtype=np.uint8), _motion(rng, height, width))


def _light(rng: np.random.Generator, level: float) -> NDArray[np.float64]:
    """Draw a (3, 4) matrix over (R, G, B, 1): saturation, contrast about the mean level, white balance, brightness."""
    saturation = 1 + rng.uniform(-SATURATION, SATURATION)
    contrast = 1 + rng.uniform(-CONTRAST, CONTRAST)
    gains = (1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)) * (1 + rng.uniform(-WHITE_BALANCE, WHITE_BALANCE, 3))
    mixing = saturation * np.eye(3) + (1 - saturation) * LUMA
    offset = gains * (1 - contrast) * level + rng.uniform(-OFFSET, OFFSET)
    return np.hstack([gains[:, None] * contrast * mixing, offset[:, None]])


def _motion(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Draw a (3, 3) similarity about the middle of an image, mirrored half of the time, in pixel centres."""
    angle = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    scale = rng.uniform(*SCALE)
    mirror = rng.choice((-1.0, 1.0))
    x, y = (width - 1) / 2, (height - 1) / 2
    shift_x, shift_y = rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[mirror * cosine, -sine, x + shift_x], [mirror * sine, cosine, y + shift_y], [0, 0, 1]])
    motion: NDArray[np.float64] = turn @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    return motion


def resampled(image: NDArray[np.uint8], motion: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Move an image (H, W, 3) by a (3, 3) matrix and resize it to (224, 224, 3) at once, its border repeated."""
    height, width = image.shape[:2]
    along, down = ENCODER_SIZE_PX / width, ENCODER_SIZE_PX / height
    # Pixels are areas: the centre of the first is at half a pixel from the edge, before and after.
    enlarge = np.array([[along, 0, (along - 1) / 2], [0, down, (down - 1) / 2]])
    size = (ENCODER_SIZE_PX, ENCODER_SIZE_PX)
    moved = cv2.warpAffine(image, enlarge @ motion, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)
