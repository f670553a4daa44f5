"""What a generated face does over time: expressions, action units, valence, arousal, gaze, blinks and head pose.

In comes a random generator, out comes a `Motion`: arrays with one row per frame that both drive the drawing and are the
labels. The labels are what is drawn, before any nuisance: an action unit counts as active when its intensity is above
`ACTIVE_INTENSITY`, the expression is the class of the current segment from its very onset, valence and arousal follow
the expression's place on the circumplex (Russell 1980) times its intensity plus a slow course of their own, and are
labelled `REACTION_LAG_S` late, as by people. So one frame cannot tell all: whether a face is coming or going decides
about its expression, and what it showed a moment ago about its valence and arousal.
This is a test instrument; it says nothing about how people express what they feel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL, Task

ACTIVE_INTENSITY = 0.5
# People who watch a film and say what they see are late; published estimates are longer (Mariooryad & Busso 2015).
REACTION_LAG_S = 0.4

# Action units and their weights in a full expression (EMFACS; Friesen & Ekman 1983), of the challenge's twelve.
PROTOTYPES: dict[str, dict[str, float]] = {
    "Neutral": {},
    "Anger": {"AU4": 1.0, "AU7": 0.9, "AU23": 0.9, "AU24": 0.95},
    "Disgust": {"AU10": 1.0, "AU4": 0.75, "AU7": 0.5, "AU25": 0.55},
    "Fear": {"AU1": 0.95, "AU2": 0.75, "AU4": 0.8, "AU7": 0.6, "AU25": 0.85, "AU26": 0.6},
    "Happiness": {"AU6": 0.9, "AU12": 1.0, "AU25": 0.75},
    "Sadness": {"AU1": 0.95, "AU4": 0.75, "AU15": 1.0},
    "Surprise": {"AU1": 1.0, "AU2": 1.0, "AU25": 0.9, "AU26": 0.95},
    "Other": {},
}
# 'Other' is drawn as one of these, always lopsided: a smirk, a sceptical look, a winking grin.
OTHER_PROTOTYPES: tuple[dict[str, float], ...] = (
    {"AU12": 0.85, "AU24": 0.8, "AU7": 0.6, "AU2": 0.5},
    {"AU1": 0.6, "AU2": 0.85, "AU23": 0.6, "AU15": 0.4},
    {"AU6": 0.7, "AU12": 0.75, "AU25": 0.7, "AU10": 0.6, "AU2": 0.4},
)
CIRCUMPLEX: dict[str, tuple[float, float]] = {  # valence, arousal of a full expression
    "Neutral": (0.0, -0.05),
    "Anger": (-0.55, 0.65),
    "Disgust": (-0.65, 0.25),
    "Fear": (-0.6, 0.8),
    "Happiness": (0.8, 0.4),
    "Sadness": (-0.7, -0.5),
    "Surprise": (0.2, 0.75),
    "Other": (0.25, 0.1),
}
# How often each class is dealt; skewed as in the wild, but none vanishes.
CLASS_CARDS: dict[str, int] = {
    "Neutral": 5,
    "Anger": 2,
    "Disgust": 2,
    "Fear": 2,
    "Happiness": 4,
    "Sadness": 3,
    "Surprise": 3,
    "Other": 3,
}
_AU_INDEX = {name: k for k, name in enumerate(ACTION_UNITS.names)}
# Units that few expressions call for come on their own more often, so that none is too rare to learn.
_EVENT_EVERY_S = {"AU7": 10, "AU10": 9, "AU15": 10, "AU23": 9, "AU24": 6}
_SPEECH = ("AU25", "AU26")


@dataclass(frozen=True, kw_only=True)
class Motion:
    """N frames of behaviour as it is drawn; every array has N rows.

    action_units: (N, 12) intensities in [0, 1]; expression: (N,) class index; valence_arousal: (N, 2) in [-1, 1];
    asymmetry: (N,) in [-1, 1], positive moves the person's left side more; wink: (N,) in [0, 1], of that side's eye;
    blink: (N,) in [0, 1], 1 is shut; gaze: (N, 2) in [-1, 1], right and down of the image; pose: (N, 3) yaw, pitch and
    roll in radians.
    """

    fps: float
    action_units: NDArray[np.float32]
    expression: NDArray[np.int64]
    valence_arousal: NDArray[np.float32]
    asymmetry: NDArray[np.float32]
    wink: NDArray[np.float32]
    blink: NDArray[np.float32]
    gaze: NDArray[np.float32]
    pose: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.expression)

    def labels(self, task: Task) -> NDArray[np.float32]:
        """Return the annotation values of `task`, (N, task.columns)."""
        late = np.maximum(np.arange(len(self)) - round(REACTION_LAG_S * self.fps), 0)
        labels: dict[str, NDArray[np.float32]] = {
            VALENCE_AROUSAL.key: self.valence_arousal[late],
            EXPRESSION.key: self.expression[:, None].astype(np.float32),
            ACTION_UNITS.key: (self.action_units > ACTIVE_INTENSITY).astype(np.float32),
        }
        return labels[task.key]


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """One expression from its onset to the onset of the next."""

    expression: str
    start: int  # frame
    stop: int  # frame after the last
    intensity: float  # at the apex, 0 to 1
    weights: NDArray[np.float64]  # (12,) of the action units at the apex
    asymmetry: float
    wink: float


def draw_motion(
    rng: np.random.Generator, frames: int, fps: float, *, pose_amplitude: float, lead: Sequence[str] = ()
) -> Motion:
    """Draw the behaviour of one face over `frames` frames; `lead` are the expressions it starts with.

    pose_amplitude: standard deviation of yaw in radians; pitch and roll get a part of it.
    """
    segments = _draw_segments(rng, frames, fps, lead)
    envelope = np.stack([_envelope(segment, frames, fps) for segment in segments])  # (S, N)
    expression = np.zeros(frames, dtype=np.int64)
    for segment in segments:
        expression[segment.start : segment.stop] = EXPRESSION.names.index(segment.expression)
    affect = _draw_affect(rng, segments, envelope, fps)
    units = np.clip(envelope.T @ np.stack([segment.weights for segment in segments]), 0, 1)  # (N, 12)
    units = _settle(np.maximum(units, _draw_unit_events(rng, frames, fps)))
    pose, gaze = _draw_pose(rng, affect[:, 1], fps, pose_amplitude), smooth_noise(rng, frames, fps, 0.9, channels=2)
    return Motion(
        fps=fps,
        action_units=units.astype(np.float32),
        expression=expression,
        valence_arousal=affect.astype(np.float32),
        asymmetry=_mix(envelope, [s.asymmetry for s in segments]),
        wink=_mix(envelope, [s.wink for s in segments]),
        blink=_draw_blinks(rng, frames, fps).astype(np.float32),
        gaze=np.clip(0.5 * gaze, -1, 1).astype(np.float32),
        pose=pose.astype(np.float32),
    )


def _draw_segments(rng: np.random.Generator, frames: int, fps: float, lead: Sequence[str]) -> list[_Segment]:
    segments: list[_Segment] = []
    hand = list(lead)
    start = 0
    while start < frames:
        if not hand:
            hand = _deal(rng, before=segments[-1].expression if segments else "")
        # An early end would leave the leading classes out of a short video.
        mean_s = 1.8 if len(segments) < len(lead) else 2.6
        length = max(2, round(fps * float(np.clip(rng.lognormal(np.log(mean_s), 0.35), 0.9, 6.0))))
        segments.append(_draw_segment(rng, hand.pop(0), start, min(start + length, frames)))
        start += length
    return segments


def _deal(rng: np.random.Generator, before: str) -> list[str]:
    """Shuffle one deck of classes so that no class follows itself more often than the deck forces it to."""
    deck = [name for name, cards in CLASS_CARDS.items() for _ in range(cards)]
    order = [deck[k] for k in rng.permutation(len(deck))]
    for k, name in enumerate(order):
        previous = order[k - 1] if k else before
        other = next((j for j in range(k + 1, len(order)) if order[j] != previous), None)
        if name == previous and other is not None:
            order[k], order[other] = order[other], order[k]
    return order


def _draw_segment(rng: np.random.Generator, expression: str, start: int, stop: int) -> _Segment:
    other = expression == "Other"
    prototype = OTHER_PROTOTYPES[rng.integers(len(OTHER_PROTOTYPES))] if other else PROTOTYPES[expression]
    weights = np.zeros(ACTION_UNITS.outputs)
    for name, weight in prototype.items():
        # Faces differ in which parts of a prototype they show: labels must not follow from the expression alone.
        shown = rng.random() < 0.35 + 0.7 * weight
        weights[_AU_INDEX[name]] = weight * rng.uniform(0.8, 1.15) if shown else 0.25 * weight
    side = rng.choice([-1.0, 1.0])
    return _Segment(
        expression=expression,
        start=start,
        stop=stop,
        intensity=float(rng.uniform(0.6, 1.0)),
        weights=weights,
        asymmetry=side * (rng.uniform(0.85, 1.0) if other else 0.12 * rng.random()),
        wink=float(rng.uniform(0.5, 0.9)) if other and rng.random() < 0.6 else 0.0,
    )


def _envelope(segment: _Segment, frames: int, fps: float) -> NDArray[np.float64]:
    """Intensity of a segment over all frames: a smooth onset, an apex, and an offset that overlaps the next onset."""
    onset_s, offset_s = 0.5, 0.6
    t = (np.arange(frames) - segment.start) / fps
    length_s = (segment.stop - segment.start) / fps
    rise = _smoothstep(t / onset_s) if segment.start else np.ones(frames)
    return segment.intensity * rise * (1 - _smoothstep((t - length_s) / offset_s))


def _smoothstep(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _mix(envelope: NDArray[np.float64], values: Sequence[float]) -> NDArray[np.float32]:
    """Blend one value per segment by the segments' envelopes (S, N): (N,)."""
    return np.clip(np.asarray(values) @ envelope, -1, 1).astype(np.float32)


def smooth_noise(
    rng: np.random.Generator, frames: int, fps: float, period_s: float, channels: int
) -> NDArray[np.float64]:
    """Return smooth noise (frames, channels) of unit variance that changes over about `period_s` seconds."""
    knots = rng.standard_normal((int(frames / fps / period_s) + 4, channels))
    return _between(knots, np.arange(frames) / fps / period_s)


def _between(knots: NDArray[np.float64], position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate knots (M, channels) at positions (N,) with a cubic B-spline scaled to keep the knots' variance."""
    whole = np.floor(position).astype(np.int64)
    f = (position - whole)[:, None]
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    norm = np.sqrt(sum(w**2 for w in weights))
    return np.asarray(sum(w * knots[np.minimum(whole + k, len(knots) - 1)] for k, w in enumerate(weights)) / norm)


def _draw_affect(
    rng: np.random.Generator, segments: list[_Segment], envelope: NDArray[np.float64], fps: float
) -> NDArray[np.float64]:
    places = np.array([CIRCUMPLEX[segment.expression] for segment in segments])  # (S, 2)
    own = 0.27 * smooth_noise(rng, envelope.shape[1], fps, 3.5, channels=2)
    resting = rng.normal(0, 0.12, size=2)
    return np.asarray(np.clip(envelope.T @ places + own + resting, -1, 1))


def _draw_unit_events(rng: np.random.Generator, frames: int, fps: float) -> NDArray[np.float64]:
    """Action units that come and go on their own, and bursts of speech on AU25 and AU26: (N, 12)."""
    t = np.arange(frames) / fps
    events = np.zeros((frames, ACTION_UNITS.outputs))
    for k in range(ACTION_UNITS.outputs):
        for _ in range(rng.poisson(t[-1] / _EVENT_EVERY_S.get(ACTION_UNITS.names[k], 14))):
            middle_s, length_s, peak = rng.uniform(0, t[-1]), rng.uniform(0.7, 2.5), rng.uniform(0.5, 1.0)
            # A raised cosine, squared off so that the event spends time at its apex.
            shape = 1.6 * np.cos(np.clip((t - middle_s) / length_s, -0.5, 0.5) * np.pi) ** 2
            events[:, k] = np.maximum(events[:, k], peak * np.minimum(shape, 1))
    for _ in range(rng.poisson(t[-1] / 10)):
        start_s, length_s, rate_hz = rng.uniform(0, t[-1]), rng.uniform(1.0, 3.0), rng.uniform(1.5, 2.6)
        talking = _smoothstep((t - start_s) / 0.2) * (1 - _smoothstep((t - start_s - length_s) / 0.2))
        beat = 0.5 - 0.5 * np.cos(2 * np.pi * rate_hz * (t - start_s))
        for name, peak in zip(_SPEECH, (0.95, 0.7), strict=True):
            events[:, _AU_INDEX[name]] = np.maximum(events[:, _AU_INDEX[name]], peak * talking * beat)
    return events


def _settle(units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weaken what one mouth cannot do at once: pressed lips do not part, and a jaw that drops parts them."""
    units = units.copy()
    pressed, part, jaw = (_AU_INDEX[name] for name in ("AU24", "AU25", "AU26"))
    units[:, pressed] *= 1 - 0.9 * _smoothstep(units[:, part] / 0.7)
    units[:, part] = np.maximum(units[:, part] * (1 - 0.8 * units[:, pressed]), 0.8 * units[:, jaw])
    return units


def _draw_blinks(rng: np.random.Generator, frames: int, fps: float) -> NDArray[np.float64]:
    t = np.arange(frames) / fps
    blink = np.zeros(frames)
    for middle_s in rng.uniform(0, t[-1], size=rng.poisson(t[-1] / 3.5)):
        blink = np.maximum(blink, 1 - _smoothstep(np.abs(t - middle_s) / 0.16))
    return blink


def _draw_pose(
    rng: np.random.Generator, arousal: NDArray[np.float64], fps: float, amplitude: float
) -> NDArray[np.float64]:
    """Let the head wander along a smooth path, faster when aroused: (N, 3) yaw, pitch, roll in radians."""
    frames = len(arousal)
    travelled = np.cumsum(0.35 + 0.75 * (arousal + 1) / 2) / fps / 0.9  # in knots of the path
    path = _between(rng.standard_normal((int(travelled[-1]) + 5, 3)), travelled)
    tremble = smooth_noise(rng, frames, fps, 0.25, channels=3) * (0.12 * np.clip(arousal, 0, 1))[:, None]
    return np.asarray(amplitude * np.array([1.0, 0.55, 0.45]) * np.clip(path + tremble, -2.2, 2.2))
