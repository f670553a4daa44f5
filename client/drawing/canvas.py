"""Drawing on a video frame: anti-aliased shapes, translucent panels and text in a real typeface.

Text is in the typeface that comes with matplotlib, so that it looks the same everywhere and needs nothing more to be
installed. Masks of text and panels are kept, because a video draws the same ones again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SUPERSAMPLING = 4  # of the rounded corners of panels
SUBPIXEL_BITS = 4  # OpenCV draws on a grid of 1/16 pixel
KEPT_MASKS = 512

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

WHITE: Colour = (255, 255, 255)
INK: Colour = (16, 20, 26)


def colour_of(text: str) -> Colour:
    """Read #RRGGBB."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def readable_on(background: Colour) -> Colour:
    """Return white or ink, whichever stands out more."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else WHITE


@dataclass(frozen=True, kw_only=True, eq=False)
class TextMask:
    """A line of text as coverage.

    coverage: (h, w) uint8. ascent_px: rows above the baseline.
    """

    coverage: NDArray[np.uint8]
    ascent_px: int

    @property
    def width_px(self) -> int:
        """Width of the text."""
        return int(self.coverage.shape[1])


@lru_cache(maxsize=KEPT_MASKS)
def text_mask(text: str, size_px: int, *, bold: bool = False) -> TextMask:
    """Render a line of text, size_px from the top of the tallest to the bottom of the deepest letter."""
    font = _font(bold, size_px)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor="ls"))  # around the pen's start
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, 255, font, anchor="ls")
    return TextMask(coverage=np.asarray(mask), ascent_px=-top)


@lru_cache(maxsize=KEPT_MASKS)
def _font(bold: bool, size_px: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size_px)


@lru_cache(maxsize=KEPT_MASKS)
def _rounded(width: int, height: int, radius: int) -> NDArray[np.uint8]:
    """Coverage (height, width) of a rectangle with round corners."""
    large = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    corners = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(corners, min(radius * SUPERSAMPLING, min(large.size) / 2), 255)
    return np.asarray(large.reduce(SUPERSAMPLING))


class Canvas:
    """Draws on an RGB image (H, W, 3) in place; what lies outside is cut off."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]

    def panel(self, box: tuple[float, float, float, float], colour: Colour, opacity: float, radius_px: float) -> None:
        """Fill a rounded rectangle x, y, width, height."""
        x, y, width, height = (round(value) for value in box)
        if width > 0 and height > 0:
            self._blend(_rounded(width, height, round(radius_px)), x, y, colour, opacity)

    def text(self, x: float, baseline: float, mask: TextMask, colour: Colour, opacity: float = 1.0) -> None:
        """Write a line of text that starts at x and stands on the baseline."""
        self._blend(mask.coverage, round(x), round(baseline) - mask.ascent_px, colour, opacity)

    def line(self, points: NDArray[np.float64], colour: Colour, width_px: float) -> None:
        """Draw a line through points (n, 2) x, y."""
        grid = np.round(points * (1 << SUBPIXEL_BITS)).astype(np.int32)
        cv2.polylines(self.image, [grid], False, colour, max(1, round(width_px)), cv2.LINE_AA, SUBPIXEL_BITS)

    def disc(self, centre: NDArray[np.float64], radius_px: float, colour: Colour) -> None:
        """Fill a circle around x, y."""
        self._circle(centre, radius_px, colour, -1)

    def ring(self, centre: NDArray[np.float64], radius_px: float, colour: Colour, width_px: float) -> None:
        """Draw the edge of a circle around x, y."""
        self._circle(centre, radius_px, colour, max(1, round(width_px)))

    def _circle(self, centre: NDArray[np.float64], radius_px: float, colour: Colour, width_px: int) -> None:
        grid = 1 << SUBPIXEL_BITS
        place = (round(centre[0] * grid), round(centre[1] * grid))
        radius = max(1, round(radius_px * grid))
        cv2.circle(self.image, place, radius, colour, width_px, cv2.LINE_AA, SUBPIXEL_BITS)

    def _blend(self, mask: NDArray[np.uint8], x: int, y: int, colour: Colour, opacity: float) -> None:
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + mask.shape[1], self.width), min(y + mask.shape[0], self.height)
        if right <= left or bottom <= top:
            return
        part = self.image[top:bottom, left:right]
        alpha = mask[top - y : bottom - y, left - x : right - x, None] * np.float32(opacity / 255)
        part[:] = (part + alpha * (np.array(colour, dtype=np.float32) - part) + 0.5).astype(np.uint8)
