"""A person before a camera: the face of `face`, a background, and everything that makes frames hard to read.

The nuisances come in bursts of a few frames (a hand, a mask, a bar before the eyes; blur, darkness, noise), so that one
frame may say nothing where its neighbours still do. Labels are never touched by them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.synthetic.anatomy import FaceState, Identity, Placement, draw_identity
from affserve.train.synthetic.face import draw_face
from affserve.train.synthetic.light import Lighting, draw_lighting
from affserve.train.synthetic.motion import Motion, draw_motion
from affserve.train.synthetic.plan import Difficulty

CLEAR = ""
OCCLUDERS = ("mask", "hand", "bar")  # over the mouth, over the mouth, over the eyes
DEGRADATIONS = ("blur", "dark", "noise")
_BURST_FRAMES = (5, 30)
_TILE_PX = 256  # side of the tile that sensor noise is cut from
_EYES_TO_MOUTH = 1.14  # in eye distances


@dataclass(frozen=True, kw_only=True)
class Nuisances:
    """What spoils each of N frames: the name of an occluder and of a degradation, or CLEAR, and how strongly."""

    occluder: list[str]
    degradation: list[str]
    strength: NDArray[np.float64]  # (N, 2) in [0, 1], of each

    def name(self, frame: int) -> str:
        """Return what spoils a frame, such as `mask` or `hand+blur`; `none` if nothing does."""
        return "+".join(filter(None, (self.occluder[frame], self.degradation[frame]))) or "none"


def draw_nuisances(rng: np.random.Generator, frames: int, difficulty: Difficulty) -> Nuisances:
    """Draw the bursts of one video."""
    occluder, occlusion = _draw_bursts(rng, frames, difficulty.occlusion, OCCLUDERS)
    degradation, severity = _draw_bursts(rng, frames, difficulty.degradation, DEGRADATIONS)
    return Nuisances(occluder=occluder, degradation=degradation, strength=np.stack([occlusion, severity], axis=1))


def _draw_bursts(
    rng: np.random.Generator, frames: int, share: float, kinds: tuple[str, ...]
) -> tuple[list[str], NDArray[np.float64]]:
    names, strength = [CLEAR] * frames, np.zeros(frames)
    # Bursts may fall on each other; -log(1 - share) of them per mean length leave the wanted share covered.
    mean_frames = sum(_BURST_FRAMES) / 2
    for _ in range(rng.poisson(-np.log1p(-share) * frames / mean_frames)):
        start, length = int(rng.integers(frames)), int(rng.integers(_BURST_FRAMES[0], _BURST_FRAMES[1] + 1))
        stop = min(start + length, frames)
        names[start:stop] = [kinds[rng.integers(len(kinds))]] * (stop - start)
        strength[start:stop] = rng.random()
    return names, strength


class Performance:
    """One person in one video: everything needed to draw any of its frames."""

    def __init__(
        self,
        rng: np.random.Generator,
        identity: Identity,
        motion: Motion,
        difficulty: Difficulty,
        height: int,
        width: int,
    ) -> None:
        self.identity = identity
        self.motion = motion  # as labelled
        self._shown = _with_tremor(rng, motion, difficulty.tremor)
        self.lighting = draw_lighting(rng)
        self.nuisances = draw_nuisances(rng, len(motion), difficulty)
        self._background = _draw_background(rng, height, width)
        self._noise = rng.normal(0, 1, (_TILE_PX, _TILE_PX)).astype(np.float32)
        self._offsets = rng.integers(0, _TILE_PX, (len(motion), 2))
        self._sensor_noise = difficulty.sensor_noise
        self._flicker = rng.normal(0, difficulty.flicker, (len(motion), 2)) * (1, 0.5)

    def state(self, frame: int) -> FaceState:
        """Return the state that is drawn in a frame."""
        return FaceState.at(self._shown, frame)

    def draw(self, frame: int, placement: Placement) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Draw a frame: the image (H, W, 3) RGB and the true landmarks (5, 2) px."""
        image = self._background.copy()
        landmarks = draw_face(image, self.identity, self.state(frame), placement, self.lighting)
        occlusion, severity = (float(v) for v in self.nuisances.strength[frame])
        occlude(image, landmarks, self.nuisances.occluder[frame], occlusion, self.identity)
        exposure, balance = (float(v) for v in self._flicker[frame])
        light = self.lighting
        image = replace(light, gain=light.gain * (1 + exposure), warmth=light.warmth + balance).apply(image)
        kind = self.nuisances.degradation[frame]
        if kind == "blur":
            image = np.asarray(
                cv2.GaussianBlur(image, (0, 0), (0.035 + 0.05 * severity) * placement.scale_px), np.uint8
            )
        elif kind == "dark":
            image = Lighting(gain=0.42 - 0.25 * severity).apply(image)
        noise = self._sensor_noise + (14 + 18 * severity if kind == "noise" else 0) + (6 if kind == "dark" else 0)
        return self._add_noise(image, frame, noise), landmarks

    def _add_noise(self, image: NDArray[np.uint8], frame: int, level: float) -> NDArray[np.uint8]:
        """Add grey noise of `level` grey levels, cut from the tile at this frame's own place."""
        if level <= 0:
            return image
        height, width = image.shape[:2]
        down, right = self._offsets[frame]
        rows, columns = (down + np.arange(height)) % _TILE_PX, (right + np.arange(width)) % _TILE_PX
        tile = (level * self._noise).astype(np.int16)[rows[:, None], columns]
        return np.asarray(cv2.add(image, cv2.merge([tile] * 3), dtype=cv2.CV_8U), dtype=np.uint8)


def _with_tremor(rng: np.random.Generator, motion: Motion, tremor: float) -> Motion:
    """Return the motion with independent noise on every frame's action units, valence and arousal."""
    units = motion.action_units + rng.normal(0, tremor, motion.action_units.shape)
    affect = motion.valence_arousal + rng.normal(0, 2 * tremor, motion.valence_arousal.shape)
    return replace(
        motion,
        action_units=np.clip(units, 0, 1).astype(np.float32),
        valence_arousal=np.clip(affect, -1, 1).astype(np.float32),
    )


def draw_person(seed: int, number: int, spread: float) -> Identity:
    """Return the person with this number in the corpus with this seed."""
    return draw_identity(np.random.default_rng([seed, 1, number]), spread)


def draw_performance(
    rng: np.random.Generator,
    identity: Identity,
    *,
    frames: int,
    fps: float,
    difficulty: Difficulty,
    size: tuple[int, int],
    lead: tuple[str, ...] = (),
) -> Performance:
    """Draw what `identity` does in a video of `size` (height, width) px; `lead` are the expressions it starts with."""
    motion = draw_motion(rng, frames, fps, pose_amplitude=difficulty.pose_amplitude, lead=lead)
    return Performance(rng, identity, motion, difficulty, *size)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a wall: smooth patches of colour, a few straight edges and a fine texture."""
    coarse = (rng.integers(60, 190, (3, 4, 1)) + rng.integers(-25, 25, (3, 4, 3))).astype(np.uint8)
    image = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    for _ in range(3):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        corner = (int(x + rng.uniform(0.1, 0.4) * width), int(y + rng.uniform(0.1, 0.6) * height))
        colour = tuple(float(v) for v in rng.integers(40, 200) + rng.integers(-20, 20, 3))
        cv2.rectangle(image, (int(x), int(y)), corner, colour, -1, cv2.LINE_AA)
    texture = rng.normal(0, 6, (height, width, 1))
    blurred = cv2.GaussianBlur(image, (0, 0), 0.008 * width)
    return np.clip(blurred + texture, 0, 255).astype(np.uint8)


def occlude(
    image: NDArray[np.uint8], landmarks: NDArray[np.float64], kind: str, strength: float, identity: Identity
) -> None:
    """Draw an occluder over a face with these landmarks (5, 2) px; CLEAR draws nothing."""
    if kind == CLEAR:
        return
    across, down, middle = _axes(landmarks)
    shade = 60 + 120 * strength
    if kind == "mask":
        shape = [[-0.95, 0.45], [0, 0.3], [0.95, 0.45], [0.85, 1.25], [0.35, 1.75], [-0.35, 1.75], [-0.85, 1.25]]
        _fill_fixed(image, middle + np.array(shape) @ [across, down], (shade + 40, shade + 60, shade + 70))
    elif kind == "bar":
        tilt = 0.3 * (strength - 0.5)
        shape = [[-1.6, -0.26 - tilt], [1.6, -0.26 + tilt], [1.6, 0.24 + tilt], [-1.6, 0.24 - tilt]]
        _fill_fixed(image, middle + np.array(shape) @ [across, down], (shade - 40, shade - 45, shade - 40))
    else:
        _draw_hand(image, middle, across, down, identity, strength)


def _axes(landmarks: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return what one face unit across and one down are in px, and the point midway between the eyes."""
    middle = landmarks[:2].mean(axis=0)
    down = (landmarks[3:].mean(axis=0) - middle) / _EYES_TO_MOUTH
    return landmarks[1] - landmarks[0], down, middle


def _draw_hand(
    image: NDArray[np.uint8],
    middle: NDArray[np.float64],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    identity: Identity,
    strength: float,
) -> None:
    """Draw four fingers across the mouth."""
    thickness = max(2, int(0.26 * np.linalg.norm(down)))
    for finger in range(4):
        y = 0.75 + 0.24 * finger
        ends = middle + np.array([[-0.75 + 0.1 * abs(finger - 1), y], [1.5, y + 0.5 * (strength - 0.3)]]) @ [
            across,
            down,
        ]
        colour = tuple(float(c) * (0.82 + 0.06 * (finger % 2)) for c in identity.skin)
        start, end = (tuple(int(v) for v in np.rint(point * 16)) for point in ends)
        cv2.line(image, start, end, colour, thickness, cv2.LINE_AA, 4)


def _fill_fixed(image: NDArray[np.uint8], points_px: NDArray[np.float64], colour: tuple[float, ...]) -> None:
    cv2.fillPoly(image, [np.rint(points_px * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
