"""Light on a generated face: one map of soft shadows, highlights and creases that multiplies what was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.synthetic.anatomy import SIDES, Anatomy, Curve, FaceState, Placement, Pose
from affserve.train.synthetic.brush import Brush

NEUTRAL = 128  # the value of the light map that leaves a pixel as it is

_T = np.linspace(-1, 1, 7)
_THROUGH_THREE = np.stack([_T * (_T - 1) / 2, 1 - _T**2, _T * (_T + 1) / 2], axis=1)  # quadratic, (7, 3)


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """Light on a scene; the default changes nothing."""

    gain: float = 1.0  # factor on all pixels
    warmth: float = 0.0  # factor 1 + warmth on red, 1 - warmth on blue
    across: float = 0.0  # how much brighter the right of the face is than its middle
    down: float = 0.0  # how much brighter the bottom of the face is than its middle

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image (H, W, 3) under this gain and warmth."""
        factors = self.gain * np.array([1 + self.warmth, 1, 1 - self.warmth])
        return np.asarray(cv2.multiply(image, np.append(factors, 0)), dtype=np.uint8)


def draw_lighting(rng: np.random.Generator) -> Lighting:
    """Draw the light of one video."""
    gain, warmth = rng.uniform(0.72, 1.15), rng.normal(0, 0.04)
    return Lighting(gain=gain, warmth=warmth, across=rng.normal(0, 0.16), down=rng.normal(-0.06, 0.06))


def light_map(
    anatomy: Anatomy, state: FaceState, placement: Placement, shape: tuple[int, int], lighting: Lighting
) -> NDArray[np.uint8]:
    """Return light and shadow on the head (H, W): soft forms at half the size, blurred, then creases on top."""
    height, width = shape
    x, y = placement.centre_px
    half = Placement(centre_px=(x / 2 - 0.25, y / 2 - 0.25), scale_px=placement.scale_px / 2)
    pose = Pose(state, half)
    small = _shade_forms(anatomy, pose, (-(-height // 2), -(-width // 2)), half)
    small = _lean(small, anatomy, pose, half, lighting)
    full = np.asarray(cv2.resize(small, (2 * small.shape[1], 2 * small.shape[0])), dtype=np.uint8)
    creases = np.full(shape, NEUTRAL, dtype=np.uint8)
    brush = Brush(creases, Pose(state, placement), placement.scale_px)
    _draw_creases(brush, anatomy)
    brush.flush()
    cv2.GaussianBlur(creases, (0, 0), max(0.5, 0.016 * placement.scale_px), dst=creases)
    return np.asarray(cv2.multiply(full[:height, :width], creases, scale=1 / NEUTRAL), dtype=np.uint8)


def _shade_forms(anatomy: Anatomy, pose: Pose, shape: tuple[int, int], placement: Placement) -> NDArray[np.uint8]:
    small = np.full(shape, NEUTRAL, dtype=np.uint8)
    brush = Brush(small, pose, placement.scale_px)
    brush.fill(anatomy.outline(0.98), (84,))
    brush.fill(anatomy.outline(0.88), (float(NEUTRAL),))
    _shade_hair(brush, anatomy)
    _shade_upper_face(brush, anatomy)
    _shade_lower_face(brush, anatomy)
    brush.flush()
    cv2.GaussianBlur(small, (0, 0), 0.075 * placement.scale_px, dst=small)
    return small


def _shade_hair(brush: Brush, anatomy: Anatomy) -> None:
    me = anatomy.identity
    if me.hair_style == "bald":
        brush.spot((0, me.hairline_y - 0.1), (0.5, 0.25), (140,))
        return
    crown = anatomy.outline(1.0)
    brush.fill(crown[crown[:, 1] < me.hairline_y + 0.1], (112,))
    brush.spot((0.3 * me.parting, me.crown_y + 0.24), (0.55, 0.12), (156,))


def _shade_upper_face(brush: Brush, anatomy: Anatomy) -> None:
    me = anatomy.identity
    brush.spot((0, -0.7), (0.6, 0.2), (142,))
    for side in SIDES:
        brush.spot((side * (me.eye_x + 0.02), -0.08), (0.36, 0.25), (78,))
        bridge = np.array([[0.1, -0.3], [0.24, -0.1], [0.2, 0.35], [0.31, 0.68], [0.16, 0.62], [0.1, 0.2]])
        brush.fill(bridge * (float(side), 1.0), (98,))
    brush.fill(np.array([[-0.08, -0.35], [0.08, -0.35], [0.1, 0.5], [0, 0.62], [-0.1, 0.5]]), (150,), lift=0.1)


def _shade_lower_face(brush: Brush, anatomy: Anatomy) -> None:
    for side in SIDES:
        raised = anatomy.unit("AU6", side)
        brush.spot((side * 0.64, 0.58 - 0.1 * raised), (0.27, 0.2), (142 + 6 * raised,))
    brush.fill(np.array([[-0.26, 0.68], [0, 0.64], [0.26, 0.68], [0.12, 0.82], [-0.12, 0.82]]), (96,))
    upper, _, _, lower = anatomy.lips()
    lowest, pressed = float(lower[:, 1].max()), min(anatomy.both("AU24"), 1)
    brush.spot((0, lowest + 0.07), (0.24, 0.045), (94 + 60 * pressed,))
    if pressed > 0.1:
        # Pressed lips push the skin above them out.
        brush.spot((0, float(upper[:, 1].min()) - 0.06), (0.3, 0.05), (NEUTRAL + 34 * pressed,))
    brush.spot((0, min(lowest + 0.24, anatomy.chin_y - 0.15)), (0.2, 0.09), (138,))


def _lean(
    small: NDArray[np.uint8], anatomy: Anatomy, pose: Pose, placement: Placement, lighting: Lighting
) -> NDArray[np.uint8]:
    """Make one side of the head brighter than the other."""
    head = np.zeros_like(small)
    brush = Brush(head, pose, placement.scale_px)
    brush.fill(anatomy.outline(), (255,))
    brush.flush()
    height, width = small.shape
    x = (np.arange(width, dtype=np.float32) - placement.centre_px[0]) / placement.scale_px
    y = (np.arange(height, dtype=np.float32) - placement.centre_px[1]) / placement.scale_px - 0.3
    slope = (lighting.across / 255 * x)[None] + (lighting.down / 255 * y)[:, None]
    return np.clip(small * (1 + head * slope), 0, 255).astype(np.uint8)


def _draw_creases(brush: Brush, anatomy: Anatomy) -> None:
    """Draw the furrows that single action units make, each as dark as its unit is strong."""
    for side in SIDES:
        _draw_side_creases(brush, anatomy, side)
    inner = max(anatomy.both("AU1") - 0.25, 0)
    for y in (-0.7, -0.82):
        bend = np.array([[-0.3, y + 0.05], [0, y], [0.3, y + 0.05]])
        _crease(brush, bend, 0.28 * inner, 0.03)


def _draw_side_creases(brush: Brush, anatomy: Anatomy, side: int) -> None:
    me = anatomy.identity
    out = np.array([side, 1])
    _crease(brush, np.array([[0.075, -0.46], [0.065, -0.22]]) * out, 0.55 * anatomy.unit("AU4", side), 0.035)
    for y in (-0.72, -0.84):
        arc = np.array([[0.4, y], [0.62, y - 0.04], [0.85, y + 0.06]]) * out
        _crease(brush, arc, 0.25 * max(anatomy.unit("AU2", side) - 0.2, 0), 0.03)
    corner = np.array([me.eye_x + me.eye_half_width + 0.05, 0.0])
    for tip in ([0.17, -0.09], [0.19, 0.02], [0.15, 0.13]):
        _crease(brush, np.stack([corner, corner + tip]) * out, 0.5 * anatomy.unit("AU6", side), 0.025)
    bag = np.array([[me.eye_x - 0.2, 0.16], [me.eye_x, 0.22], [me.eye_x + 0.24, 0.15]])
    _crease(brush, bag * out, 0.1 + 0.4 * anatomy.unit("AU6", side), 0.028)
    tight = np.array([[me.eye_x - 0.22, 0.1], [me.eye_x, 0.14], [me.eye_x + 0.24, 0.09]])
    hood = np.array([[me.eye_x - 0.2, -0.17], [me.eye_x, -0.2], [me.eye_x + 0.26, -0.12]])
    for line in (tight, hood):
        _crease(brush, line * out, 0.6 * anatomy.unit("AU7", side), 0.035)
    fold = np.array([[0.3, 0.56], [0.42, 0.72], [0.52, 0.95], [0.54, 1.1]]) * out
    _crease(brush, fold[:3], 0.08 + 0.62 * anatomy.unit("AU10", side), 0.042)
    _crease(brush, fold[1:], 0.06 + 0.35 * anatomy.unit("AU12", side), 0.03)
    mouth = anatomy.mouth_corner(side)[0]
    down = mouth + np.array([[0.04, 0.0], [0.09, 0.16]]) * out
    _crease(brush, down, 0.5 * anatomy.unit("AU15", side), 0.035)
    purse = mouth + np.array([[0.06, -0.08], [0.08, 0.0], [0.06, 0.08]]) * out
    _crease(brush, purse, 0.5 * anatomy.both("AU23"), 0.03)
    for x in (0.07, 0.17):
        pucker = np.array([[x, mouth[1] - 0.22], [0.85 * x, mouth[1] - 0.12]]) * out
        _crease(brush, pucker, 0.4 * anatomy.both("AU23"), 0.025)


def _crease(brush: Brush, curve: Curve, depth: float, width: float) -> None:
    if depth > 0.03:
        brush.line(_bend(curve) if len(curve) == 3 else curve, (NEUTRAL * (1 - min(depth, 0.75)),), width)


def _bend(points: Curve) -> Curve:
    """Return a smooth curve through three points, (7, 2)."""
    return np.asarray(_THROUGH_THREE @ points)
