"""Draws a generated face into an image, with anti-aliased polygons and one soft map of light and shadow.

In come an image, a person, a state and a place; the image changes and the landmarks come back. The face is a test
instrument: near enough to a face for face detectors, with every label visible at 112x112 px, and nobody's likeness.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.synthetic.anatomy import (
    LID_POINTS,
    NOSE_TIP_Y,
    SIDES,
    Anatomy,
    Curve,
    FaceState,
    Identity,
    Placement,
    Pose,
)
from affserve.train.synthetic.brush import Brush, Paint, blend, ellipse
from affserve.train.synthetic.light import NEUTRAL, Lighting, light_map

NOSE_LIFT = 0.3  # face units from the face's surface to the tip of the nose

_REACH = 2.3  # face units around the eyes that hold the whole head
_LID_BOW = np.sqrt(1 - np.linspace(-1, 1, LID_POINTS) ** 2)


def draw_face(
    image: NDArray[np.uint8], identity: Identity, state: FaceState, placement: Placement, lighting: Lighting
) -> NDArray[np.float64]:
    """Draw a head into `image` (H, W, 3) RGB and return its landmarks (5, 2) px in the order of `train.crops`.

    Of the lighting only the direction is used here; its gain is for the whole scene (`Lighting.apply`).
    """
    anatomy = Anatomy(identity, state)
    rows, columns, local = _region(image, placement)
    part = np.ascontiguousarray(image[rows, columns])
    if part.size:
        brush = Brush(part, Pose(state, local), local.scale_px)
        _draw_body(brush, anatomy)
        _draw_head(brush, anatomy)
        brush.flush()
        cv2.GaussianBlur(part, (0, 0), max(0.8, 0.025 * local.scale_px), dst=part)
        for draw in (_draw_nose, _draw_mouth, _draw_eyes, _draw_brows):
            draw(brush, anatomy)
        if identity.glasses:
            _draw_glasses(brush, anatomy)
        brush.flush()
        shadows = light_map(anatomy, state, local, (part.shape[0], part.shape[1]), lighting)
        image[rows, columns] = cv2.multiply(part, cv2.merge([shadows] * 3), scale=1 / NEUTRAL)
    return landmarks_px(anatomy, Pose(state, placement))


def landmarks_px(anatomy: Anatomy, pose: Pose) -> NDArray[np.float64]:
    """Return right eye, left eye, nose tip, right and left mouth corner: (5, 2) px."""
    flat = pose(anatomy.landmarks())
    nose = pose(np.array([[0.0, NOSE_TIP_Y]]), NOSE_LIFT)
    return np.concatenate([flat[:2], nose, flat[2:]])


def face_box_px(anatomy: Anatomy, pose: Pose) -> tuple[float, float, float, float]:
    """Return x, y, width and height in px of the box from hairline to chin and cheek to cheek."""
    skin = anatomy.outline()
    face = pose(skin[skin[:, 1] > anatomy.identity.hairline_y])
    (left, top), (right, bottom) = face.min(axis=0), face.max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


def _region(image: NDArray[np.uint8], placement: Placement) -> tuple[slice, slice, Placement]:
    """Return the part of the image that a head can touch, and the placement seen from its corner."""
    height, width = image.shape[:2]
    (x, y), reach = placement.centre_px, _REACH * placement.scale_px
    x0, x1 = (int(np.clip(v, 0, width)) for v in (x - reach, x + reach + 1))
    y0, y1 = (int(np.clip(v, 0, height)) for v in (y - reach, y + 3 * reach + 1))
    return slice(y0, y1), slice(x0, x1), Placement(centre_px=(x - x0, y - y0), scale_px=placement.scale_px)


def _skin(anatomy: Anatomy) -> tuple[float, ...]:
    """Return the colour of the skin now: warmer and a little brighter with positive valence."""
    valence = anatomy.state.valence
    factors = (1 + 0.04 * valence, 1 + 0.01 * valence, 1 - 0.04 * valence)
    return tuple(float(min(c * f, 255)) for c, f in zip(anatomy.identity.skin, factors, strict=True))


def _draw_body(brush: Brush, anatomy: Anatomy) -> None:
    me = anatomy.identity
    if me.hair_style == "long":
        side = me.half_width + 0.6 * me.hair_volume + 0.12
        brush.fill(np.array([[-side, -0.6], [side, -0.6], [side + 0.1, 2.1], [-side - 0.1, 2.1]]), me.hair)
    chin = me.chin_y
    shoulders = [[-2.2, 7.0], [-2.1, 2.6], [-0.8, chin + 0.55], [0.8, chin + 0.55], [2.1, 2.6], [2.2, 7.0]]
    brush.fill(np.array(shoulders), me.clothes)
    neck = [[-0.62, 1.0], [0.62, 1.0], [0.68, chin + 0.6], [0, chin + 0.85], [-0.68, chin + 0.6]]
    brush.fill(np.array(neck), blend(_skin(anatomy), (40, 20, 10), 0.3))


def _draw_head(brush: Brush, anatomy: Anatomy) -> None:
    me, skin = anatomy.identity, _skin(anatomy)
    for side in SIDES:
        ear = blend(blend(skin, (120, 30, 20), 0.15), (214, 70, 62), _flush(anatomy))
        brush.spot((side * (me.half_width + 0.03), 0.25), (0.13, 0.34), ear)
    if me.hair_style != "bald":
        crown = anatomy.outline(1.02 + me.hair_volume)
        brush.fill(crown[crown[:, 1] < 0.15], me.hair)
    brush.fill(anatomy.outline(), skin)
    blush = 0.2 + 0.19 * anatomy.state.valence
    for side in SIDES:
        y = 0.62 - 0.07 * anatomy.unit("AU6", side)
        brush.spot((side * 0.66, y), (0.27, 0.22), blend(skin, (214, 84, 72), blush))
    if me.hair_style != "bald":
        _draw_hairline(brush, anatomy)
    if me.beard:
        _draw_beard(brush, anatomy, skin)


def _draw_hairline(brush: Brush, anatomy: Anatomy) -> None:
    me = anatomy.identity
    crown = anatomy.outline(1.005)
    crown = crown[crown[:, 1] < -0.25]
    x = np.linspace(crown[:, 0].max(), crown[:, 0].min(), 13)
    u = x / me.half_width
    dip = 0.55 if me.hair_style == "long" else 0.4
    y = me.hairline_y + dip * np.abs(u) ** 3 - 0.12 * np.exp(-(((u - 0.5 * me.parting) / 0.3) ** 2))
    brush.fill(np.concatenate([crown, np.stack([x, y], axis=1)]), me.hair)


def _draw_beard(brush: Brush, anatomy: Anatomy, skin: Paint) -> None:
    me = anatomy.identity
    jaw = anatomy.outline()
    jaw = jaw[jaw[:, 1] > 0.35]
    edge = np.array([[-0.95, 0.5], [-0.86, 0.8], [-0.7, 1.0], [-0.5, 0.98], [-0.28, 0.86], [-0.05, 0.83]])
    top = np.concatenate([edge, edge[::-1] * (-1, 1)])
    brush.fill(np.concatenate([jaw, top]), blend(skin, me.hair, 0.2 + 0.4 * me.beard))


def _draw_brows(brush: Brush, anatomy: Anatomy) -> None:
    colour = blend(anatomy.identity.hair, (40, 25, 20), 0.45)
    for side in SIDES:
        brush.fill(anatomy.brow(side), colour)


def _draw_eyes(brush: Brush, anatomy: Anatomy) -> None:
    skin = _skin(anatomy)
    for side in SIDES:
        upper, lower = anatomy.eye(side)
        brush.fill(np.concatenate([upper, lower[::-1]]), (236, 230, 226))
        _draw_iris(brush, anatomy, side)
        # The lids cover what of the iris lies outside the opening.
        for lid, reach in ((upper, -0.17), (lower, 0.14)):
            brush.fill(np.concatenate([lid, _ease(lid, reach)[::-1]]), skin)
        brush.line(lower, blend(skin, (110, 50, 40), 0.5), 0.02)
        brush.line(_ease(upper, -0.055), blend(skin, (70, 30, 20), 0.45), 0.02)
        brush.line(upper, (34, 24, 22), 0.045)


def _ease(lid: Curve, reach: float) -> Curve:
    """Return a lid's line moved by `reach` downward in its middle and not at all in the corners."""
    eased = lid.copy()
    eased[:, 1] += reach * _LID_BOW
    return eased


def _draw_iris(brush: Brush, anatomy: Anatomy, side: int) -> None:
    x, y = anatomy.iris_centre(side)
    brush.spot((x, y), (0.112, 0.112), blend(anatomy.identity.iris, (0, 0, 0), 0.35))
    brush.spot((x, y), (0.09, 0.09), anatomy.identity.iris)
    pupil = 0.052 + 0.038 * anatomy.state.arousal
    brush.spot((x, y), (pupil, pupil), (12, 10, 10))
    brush.spot((x - 0.035, y - 0.04), (0.022, 0.022), (250, 250, 250))


def _flush(anatomy: Anatomy) -> float:
    """Return how much blood shows in nose and ears: an excited face has more."""
    return 0.25 + 0.18 * anatomy.state.arousal


def _draw_nose(brush: Brush, anatomy: Anatomy) -> None:
    me, skin = anatomy.identity, _skin(anatomy)
    brush.spot((0, 0.5), (0.16, 0.15), blend(skin, (214, 70, 62), _flush(anatomy)), lift=0.12)
    for side in SIDES:
        lifted = 0.08 * anatomy.unit("AU10", side)
        wing = me.nose_half_width
        arc = np.array([[wing - 0.07, 0.46], [wing, 0.54], [wing + 0.01, 0.62], [wing - 0.05, 0.68]])
        brush.line(arc * (side, 1) - (0, lifted), blend(skin, (70, 30, 20), 0.4), 0.03, lift=0.1)
        brush.spot((side * 0.105, 0.665 - lifted), (0.06, 0.032), blend(skin, (40, 12, 8), 0.75), lift=0.15)


def _draw_mouth(brush: Brush, anatomy: Anatomy) -> None:
    me, skin = anatomy.identity, _skin(anatomy)
    outer_upper, inner_upper, inner_lower, outer_lower = anatomy.lips()
    lip = blend(skin, (168, 52, 58), 0.25 + 0.4 * me.lip_redness + 0.2 * anatomy.state.arousal)
    brush.fill(np.concatenate([outer_upper, inner_upper[::-1]]), blend(lip, (60, 10, 20), 0.18))
    brush.fill(np.concatenate([inner_lower, outer_lower[::-1]]), lip)
    gap = float((inner_lower - inner_upper)[:, 1].max())
    if gap > 0.02:
        brush.fill(np.concatenate([inner_upper, inner_lower[::-1]]), (52, 16, 18))
        edge = inner_upper + (inner_lower - inner_upper) * min(1, 0.075 / gap)
        teeth = blend((52, 16, 18), (232, 226, 214), min(1, gap / 0.08))
        brush.fill(np.concatenate([inner_upper, edge[::-1]]), teeth)
    pressed = anatomy.both("AU24")
    brush.line(inner_upper, blend(lip, (50, 14, 18), 0.6 + 0.4 * min(pressed, 1)), 0.022 + 0.015 * pressed)


def _draw_glasses(brush: Brush, anatomy: Anatomy) -> None:
    me = anatomy.identity
    frame = blend(me.hair, (20, 20, 24), 0.6)
    for side in SIDES:
        brush.line(ellipse((side * me.eye_x, 0.03), (0.37, 0.28)), frame, 0.03, lift=0.1)
        brush.line(np.array([[side * (me.eye_x + 0.36), -0.02], [side * me.half_width, -0.05]]), frame, 0.03)
    brush.line(np.array([[-me.eye_x + 0.37, 0], [0, -0.04], [me.eye_x - 0.37, 0]]), frame, 0.03, lift=0.1)
