"""The geometry of a generated face: who it is, what it does now, and the curves that follow from both.

Curves are (n, 2) arrays in face units: 1 is the usual distance between the eyes, the origin lies midway between them, x
points to the right of the image, y down. "Right" and "left" of a side are the person's; side -1 is the person's right
and lies on the left of the image. Nobody is portrayed: every number is drawn from a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.train.labels import ACTION_UNITS
from affserve.train.synthetic.motion import Motion

Curve = NDArray[np.float64]
Colour = tuple[int, int, int]  # RGB

RIGHT, LEFT = -1, 1
SIDES = (RIGHT, LEFT)
NOSE_TIP_Y = 0.57
_LOPSIDED = {"AU1", "AU2", "AU6", "AU7", "AU10", "AU12", "AU15"}  # the units that asymmetry takes from one side
LID_POINTS = 15  # of a lid's line, and of a lip's
_U = np.linspace(-1, 1, LID_POINTS)  # along a lid or a lip
_BOW = 1 - _U**2  # 0 at the corners, 1 in the middle
_T = np.linspace(0, 1, 9)  # along a brow, inner end first
# The crown is a superellipse, squarer than an ellipse; the jaw's x is raised to a person's own power.
_CROWN = np.linspace(-np.pi, 0, 17)
_CROWN_X = np.sign(np.cos(_CROWN)) * np.abs(np.cos(_CROWN)) ** 0.8
_CROWN_Y = -(np.abs(np.sin(_CROWN)) ** 0.85)
_JAW = np.linspace(0, np.pi / 2, 11)[1:]
_JAW_X, _JAW_Y = np.abs(np.cos(_JAW)), np.sin(_JAW)

_SKINS = ((247, 218, 196), (236, 194, 163), (219, 170, 132), (190, 138, 100), (150, 101, 70), (112, 74, 53))
_HAIRS = ((28, 22, 20), (55, 36, 26), (98, 64, 38), (150, 105, 58), (196, 160, 100), (128, 124, 120), (120, 52, 28))
_IRISES = ((62, 40, 24), (92, 62, 34), (84, 98, 58), (78, 112, 140), (96, 110, 116))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays with a person: colours, proportions in face units, and the looks of the face at rest."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    half_width: float  # of the head at the cheeks
    chin_y: float
    jaw_power: float  # 1 is pointed, 0.5 is square
    crown_y: float
    hairline_y: float
    hair_style: str  # bald, short, long
    hair_volume: float  # how far the hair stands off the head
    parting: float  # -1 to 1, where the hairline rises
    eye_x: float  # half the distance between the eyes
    eye_half_width: float
    eye_height: float  # of the upper lid over the middle of the eye
    eye_slant: float  # positive lifts the outer corner
    brow_y: float  # at rest: a raised or lowered brow may be just this person's
    brow_arch: float
    brow_thickness: float
    nose_half_width: float
    mouth_half_width: float
    mouth_y: float
    mouth_bend: float  # at rest: positive lifts the corners
    lip_thickness: float
    lip_redness: float  # 0 to 1
    beard: float  # 0 none to 1 full
    glasses: bool
    expressiveness: float  # factor on every action unit's effect


def draw_identity(rng: np.random.Generator, spread: float) -> Identity:
    """Draw a person; `spread` scales how much resting faces differ from one another (0: not at all)."""
    tone = rng.uniform(0, len(_SKINS) - 1.001)
    light, dark = np.array(_SKINS[int(tone)]), np.array(_SKINS[int(tone) + 1])
    skin = light + (tone % 1) * (dark - light) + rng.normal(0, 4, 3)
    # Dark skin goes with dark hair here, so that hair stays visible on every head.
    hair = np.array(_HAIRS[rng.integers(2 if tone > 3.2 else len(_HAIRS))]) + rng.normal(0, 5, 3)
    long_hair = rng.random() < 0.45
    return Identity(
        skin=_colour(skin),
        hair=_colour(hair),
        iris=_IRISES[rng.integers(2 if tone > 2.5 else len(_IRISES))],
        clothes=_colour(rng.uniform(30, 200, 3)),
        half_width=float(rng.uniform(1.03, 1.18)),
        chin_y=float(rng.uniform(1.58, 1.75)),
        jaw_power=float(rng.uniform(0.55, 0.85)),
        crown_y=float(rng.uniform(-1.6, -1.4)),
        hairline_y=float(rng.uniform(-1.05, -0.85)),
        hair_style="long" if long_hair else str(rng.choice(["short", "short", "short", "short", "bald"])),
        hair_volume=float(rng.uniform(0.04, 0.16)),
        parting=float(rng.uniform(-1, 1)),
        eye_x=float(rng.uniform(0.47, 0.53)),
        eye_half_width=float(rng.uniform(0.2, 0.24)),
        eye_height=0.115 * float(np.exp(0.12 * spread * rng.standard_normal())),
        eye_slant=float(rng.normal(0.015, 0.02)),
        brow_y=-0.41 + 0.045 * spread * float(np.clip(rng.standard_normal(), -2, 2)),
        brow_arch=float(rng.uniform(0.03, 0.1)),
        brow_thickness=float(rng.uniform(0.05, 0.085)),
        nose_half_width=float(rng.uniform(0.2, 0.28)),
        mouth_half_width=float(rng.uniform(0.36, 0.43)),
        mouth_y=float(rng.uniform(1.03, 1.11)),
        mouth_bend=0.04 * spread * float(np.clip(rng.standard_normal(), -2, 2)),
        lip_thickness=float(rng.uniform(0.75, 1.25)),
        lip_redness=float(rng.uniform(0.2, 0.75)),
        beard=float(rng.uniform(0.4, 1)) if not long_hair and rng.random() < 0.35 else 0.0,
        glasses=bool(rng.random() < 0.2),
        expressiveness=float(np.clip(np.exp(0.15 * spread * rng.standard_normal()), 0.65, 1.4)),
    )


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (int(v) for v in np.clip(values, 8, 250))
    return red, green, blue


@dataclass(frozen=True, kw_only=True)
class FaceState:
    """What a face does in one frame."""

    action_units: NDArray[np.float32]  # (12,) intensities in [0, 1]
    valence: float = 0.0  # -1 to 1: seen in the bend of the mouth and the tone of the skin
    arousal: float = 0.0  # -1 to 1: seen in the opening of the eyes, the pupils and a flush of nose and ears
    asymmetry: float = 0.0  # -1 to 1: positive takes the lopsided units from the person's right side
    wink: float = 0.0  # 0 to 1, of the side that asymmetry favours
    blink: float = 0.0  # 0 to 1
    gaze: tuple[float, float] = (0.0, 0.0)  # -1 to 1, right and down of the image
    yaw: float = 0.0  # radians, positive turns the nose to the right of the image
    pitch: float = 0.0  # radians, positive looks down
    roll: float = 0.0  # radians, positive turns clockwise in the image

    @classmethod
    def at(cls, motion: Motion, frame: int) -> FaceState:
        """Return the state of frame `frame` of a motion."""
        valence, arousal = (float(v) for v in motion.valence_arousal[frame])
        yaw, pitch, roll = (float(v) for v in motion.pose[frame])
        return cls(
            action_units=motion.action_units[frame],
            valence=valence,
            arousal=arousal,
            asymmetry=float(motion.asymmetry[frame]),
            wink=float(motion.wink[frame]),
            blink=float(motion.blink[frame]),
            gaze=(float(motion.gaze[frame, 0]), float(motion.gaze[frame, 1])),
            yaw=yaw,
            pitch=pitch,
            roll=roll,
        )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a face lies in an image."""

    centre_px: tuple[float, float]  # of the point midway between the eyes, head straight
    scale_px: float  # pixels of one face unit


class Pose:
    """Turns curves in face units into pixels: a turn of the head seen from far away, then a placement."""

    def __init__(self, state: FaceState, placement: Placement) -> None:
        cos, sin = np.cos(state.roll), np.sin(state.roll)
        self._turn = (float(np.sin(state.yaw)), float(np.sin(state.pitch)))
        self._shrink = np.array([np.cos(state.yaw), np.cos(state.pitch)])
        self._roll = placement.scale_px * np.array([[cos, sin], [-sin, cos]])  # applied from the right
        self._centre = np.array(placement.centre_px)

    def __call__(self, curve: Curve, lift: float | NDArray[np.float64] = 0.0) -> Curve:
        """Project points (n, 2) that lie `lift` (one or (n,)) face units before the surface of the head: (n, 2) px."""
        round_xy = (curve - (0, 0.2)) / (1.3, 2.1)
        z = 0.75 * np.sqrt(np.maximum(1 - (round_xy * round_xy).sum(axis=1), 0)) + lift
        turned = curve * self._shrink + z[:, None] * self._turn
        return np.asarray(turned @ self._roll + self._centre)


class Anatomy:
    """The curves of one person's face in one state, in face units."""

    def __init__(self, identity: Identity, state: FaceState) -> None:
        self.identity = identity
        self.state = state
        strong = {name: float(v) for name, v in zip(ACTION_UNITS.names, state.action_units, strict=True)}
        kept = {side: float(np.clip(1 + side * state.asymmetry, 0, 1)) for side in SIDES}
        self._units = {
            side: {
                name: value * identity.expressiveness * (kept[side] if name in _LOPSIDED else 1)
                for name, value in strong.items()
            }
            for side in SIDES
        }

    def unit(self, name: str, side: int) -> float:
        """How far an action unit acts on a side: 0 to about 1."""
        return self._units[side][name]

    def both(self, name: str) -> float:
        """How far an action unit acts on the middle of the face."""
        return 0.5 * (self._units[RIGHT][name] + self._units[LEFT][name])

    @property
    def chin_y(self) -> float:
        """How low the chin is, with the jaw where it is now."""
        return self.identity.chin_y + 0.2 * self.both("AU26")

    def outline(self, scale: float = 1.0) -> Curve:
        """Return the contour of the head, crown to chin, drawn in by `scale` toward its middle."""
        me = self.identity
        crown = np.stack([me.half_width * _CROWN_X, 0.15 + (0.15 - me.crown_y) * _CROWN_Y], axis=1)
        jaw = np.stack([me.half_width * _JAW_X**me.jaw_power, 0.15 + (self.chin_y - 0.15) * _JAW_Y], axis=1)
        mirrored = jaw[-2::-1] * (-1, 1)
        return np.asarray((np.concatenate([crown, jaw, mirrored]) - (0, 0.1)) * scale + (0, 0.1))

    def brow(self, side: int) -> Curve:
        """Return the outline of a brow, inner end first: AU1 lifts it inside, AU2 outside, AU4 draws it down and in."""
        me = self.identity
        inner, outer, lower = self.unit("AU1", side), self.unit("AU2", side), self.unit("AU4", side)
        t = _T
        x = side * (me.eye_x - 0.27 - 0.07 * lower + t * (0.58 + 0.05 * lower))
        y = me.brow_y - me.brow_arch * np.sin(np.pi * t**1.3) + 0.06 * t**3
        y += (0.14 * lower - 0.19 * inner) * (1 - t) ** 1.2 - 0.2 * outer * t**0.8 + 0.05 * lower * t
        half = 0.5 * me.brow_thickness * (1 - 0.65 * t**2) * np.minimum(1, 0.55 + 3 * t)
        upper, under = np.stack([x, y - half], axis=1), np.stack([x, y + half], axis=1)
        return np.concatenate([upper, under[::-1]])

    def eye(self, side: int) -> tuple[Curve, Curve]:
        """Return the upper and the lower lid, inner corner first; both have the same x."""
        me, state = self.identity, self.state
        tight, cheek = self.unit("AU7", side), self.unit("AU6", side)
        wide = 1 + 0.58 * state.arousal + 0.15 * self.unit("AU2", side)
        winks = state.wink if side * state.asymmetry > 0 else 0.0
        shut = max(state.blink, winks)
        upper = me.eye_height * max(wide, 0.4) * (1 - 0.38 * min(tight, 1.2))
        lower = 0.095 * (1 - 0.9 * min(tight, 1) - 0.45 * min(cheek, 1))
        x = side * (me.eye_x + me.eye_half_width * _U)
        slant = -me.eye_slant * _U
        lower_y = slant + max(lower, 0.005) * _BOW**0.9
        upper_y = slant - upper * _BOW**0.75
        closed = shut * (lower_y - upper_y - 0.012 * _BOW)
        return np.stack([x, upper_y + closed], axis=1), np.stack([x, lower_y], axis=1)

    def iris_centre(self, side: int) -> tuple[float, float]:
        """Return where the iris is."""
        right, down = self.state.gaze
        return side * self.identity.eye_x + 0.06 * right, 0.04 * down - 0.015

    def mouth_corner(self, side: int) -> Curve:
        """Return a corner of the mouth, (1, 2): AU12 draws it up and out, AU15 down, AU23 in."""
        me, state = self.identity, self.state
        smile = self.unit("AU12", side)
        half = me.mouth_half_width + 0.1 * smile - 0.14 * self.both("AU23") - 0.03 * self.both("AU24")
        half -= 0.04 * self.both("AU26")
        bend = 0.03 * side * state.asymmetry + me.mouth_bend + 0.05 * state.valence
        y = me.mouth_y - 0.16 * smile + 0.15 * self.unit("AU15", side) - bend + 0.03 * self.both("AU26")
        return np.array([[side * half + 0.13 * state.asymmetry, y]])

    def lips(self) -> list[Curve]:
        """Return four lines from the right corner to the left: outer upper, inner upper, inner lower, outer lower."""
        me = self.identity
        part, jaw = self.both("AU25"), self.both("AU26")
        corners = np.concatenate([self.mouth_corner(RIGHT), self.mouth_corner(LEFT)])
        x = corners[0, 0] + (corners[1, 0] - corners[0, 0]) * (_U + 1) / 2
        base = corners[0, 1] + (corners[1, 1] - corners[0, 1]) * (_U + 1) / 2
        middle = me.mouth_y - 0.13 * self.both("AU10") - 0.035 * part - 0.02 * self.both("AU12")
        gap = part * (0.075 + 0.26 * jaw)
        thin = (1 - 0.5 * min(self.both("AU23"), 1)) * (1 - 0.85 * min(self.both("AU24"), 1)) * me.lip_thickness
        inner_upper = base + (middle - base) * _BOW
        inner_lower = base + (middle + gap + 0.05 * jaw * (1 - part) - base) * _BOW
        bow = 1 - 0.3 * np.exp(-((_U / 0.16) ** 2))
        outer_upper = inner_upper - 0.08 * thin * (1 - np.abs(_U) ** 1.7) * bow
        outer_lower = inner_lower + 0.115 * thin * _BOW**0.8
        rows = (outer_upper, inner_upper, inner_lower, outer_lower)
        return [np.stack([x, y], axis=1) for y in rows]

    def landmarks(self) -> Curve:
        """Return right eye, left eye, right and left mouth corner, (4, 2); the nose tip has a lift of its own."""
        eyes = [np.array([[side * self.identity.eye_x, 0.0]]) for side in SIDES]
        return np.concatenate([*eyes, *(self.mouth_corner(side) for side in SIDES)])
