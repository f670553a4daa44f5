"""What a generated corpus will hold, decided before anything is drawn: its videos, their sets, people and defects.

In comes a `SyntheticConfig`, out come `VideoPlan`s. Defects are dealt by a video's place in its set, so that a small
corpus has them too; the first four videos of each set carry every task and start with all eight expressions between
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from affserve.train.corpus.affwild2 import IMAGE_ROOT_PREFIX, TRAIN, VALIDATION
from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard single frames are to read; 0 switches a nuisance off."""

    identity_spread: float = 1.0  # factor on how much resting faces and expressiveness differ between people
    pose_amplitude: float = 0.14  # radians, standard deviation of yaw; pitch and roll get about half
    occlusion: float = 0.12  # share of frames with something before the face
    degradation: float = 0.12  # share of frames that are blurred, dark or noisy
    tremor: float = 0.08  # standard deviation, from frame to frame, of what is drawn around the labelled intensities
    flicker: float = 0.05  # standard deviation, from frame to frame, of exposure and half of it of white balance
    sensor_noise: float = 4.0  # grey levels, standard deviation on every frame
    landmark_jitter: float = 0.02  # eye distances, standard deviation of the aligner's error from frame to frame

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise DataError(f"difficulty {name} is {value}, expected 0 or more")
        for name in ("occlusion", "degradation"):
            if getattr(self, name) > 0.9:
                raise DataError(f"difficulty {name} is {getattr(self, name)}, expected a share of at most 0.9")


DRAWN_TASKS = (VALENCE_AROUSAL.key, EXPRESSION.key, ACTION_UNITS.key)  # what a generated face has labels for
IMAGE_ROOTS = (IMAGE_ROOT_PREFIX, f"{IMAGE_ROOT_PREFIX}_new_50_vids")

_COMPLETE = 4  # videos at the start of a set that carry every task
_TASK_PATTERN: dict[int, tuple[str, ...]] = {  # by place in the set, modulo 8; elsewhere all three
    4: (VALENCE_AROUSAL.key,),
    5: (EXPRESSION.key, ACTION_UNITS.key),
    6: (EXPRESSION.key,),
    7: (VALENCE_AROUSAL.key, ACTION_UNITS.key),
}
_EXTRA_LINES = (1, 2, -1, 1, 0, 1, 1, 0)  # annotation lines minus frames, by place modulo 8
_LEADS = tuple((EXPRESSION.names[2 * k], EXPRESSION.names[2 * k + 1]) for k in range(_COMPLETE))


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to generate; the defaults make about 20,000 crops and six whole-frame videos."""

    seed: int = 0
    videos: int = 60  # crop folders of both sets together
    frames_min: int = 280  # shortest ordinary video, frames; some are shorter still
    frames_max: int = 400  # longest video, frames
    fps: tuple[float, ...] = (7.5, 15.0, 24.0, 25.0, 30.0, 30.0)  # dealt at random, frames per second
    validation_share: float = 0.25  # of the videos
    whole_frame_videos: int = 6  # mp4 files with a moving face, of people in neither set
    whole_frame_frames: int = 600  # frames of each of them
    whole_frame_nuisance: float = 0.35  # factor on occlusion and degradation there: a detector must find the face
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        checks = {
            "seed": (self.seed >= 0, "0 or more"),
            "videos": (self.videos >= 2, "at least 2: one for each set"),
            "frames_min": (self.frames_min >= 30, "at least 30"),
            "frames_max": (self.frames_max >= self.frames_min, f"at least frames_min, {self.frames_min}"),
            "fps": (bool(self.fps) and all(1 <= f <= 120 for f in self.fps), "rates from 1 to 120"),
            "validation_share": (0 < self.validation_share < 1, "between 0 and 1"),
            "whole_frame_videos": (self.whole_frame_videos >= 0, "0 or more"),
            "whole_frame_frames": (self.whole_frame_frames >= 30, "at least 30"),
            "whole_frame_nuisance": (0 <= self.whole_frame_nuisance <= 1, "from 0 to 1"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise DataError(f"synthetic corpus: {name} is {getattr(self, name)}, expected {expected}")

    @property
    def validation_videos(self) -> int:
        """How many videos the validation set gets."""
        return int(np.clip(round(self.videos * self.validation_share), 1, self.videos - 1))


@dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """One crop folder and its annotation files; frames and rows are counted from 1, as in file names."""

    number: int  # in the corpus; seeds everything random in the video
    name: str
    subset: str  # TRAIN or VALIDATION
    root: str  # one of IMAGE_ROOTS
    tasks: tuple[str, ...]  # keys
    identity: int
    frames: int
    fps: float
    lead: tuple[str, ...]  # expressions it starts with
    extra_lines: int  # annotation lines minus frames
    first_crop: int  # earlier crops are missing
    missing: tuple[tuple[int, int], ...]  # first and last frame of each gap
    invalid: tuple[tuple[int, int], ...]  # first and last row of each run without a label
    partly_invalid: tuple[tuple[int, int], ...]  # rows where only some of the numbers are missing

    @property
    def lines(self) -> int:
        """How many rows its annotation files have."""
        return self.frames + self.extra_lines

    def crops(self) -> list[int]:
        """Return the numbers of the crops that exist."""
        gone = {k for first, last in self.missing for k in range(first, last + 1)}
        return [k for k in range(self.first_crop, self.frames + 1) if k not in gone]


def plan_videos(config: SyntheticConfig) -> list[VideoPlan]:
    """Decide on every crop folder of the corpus."""
    train = config.videos - config.validation_videos
    plans: list[VideoPlan] = []
    for number in range(config.videos):
        subset, place = (TRAIN, number) if number < train else (VALIDATION, number - train)
        twin = plans[-1] if subset == TRAIN and _is_left(place - 1, train) else None
        plans.append(_plan_video(config, number, subset, place, twin, left=subset == TRAIN and _is_left(place, train)))
    return plans


def _is_left(place: int, train: int) -> bool:
    """Say whether the training video at `place` is the left person of a pair."""
    return place % 20 == 2 and place + 1 < train


def _plan_video(
    config: SyntheticConfig, number: int, subset: str, place: int, twin: VideoPlan | None, left: bool
) -> VideoPlan:
    rng = np.random.default_rng([config.seed, 0, number])
    frames = int(rng.integers(config.frames_min, config.frames_max + 1))
    fps = float(rng.choice(config.fps))
    if place % 7 == 6:
        frames = max(30, int(config.frames_min * rng.uniform(0.3, 0.95)))
    if twin:
        frames, fps = twin.frames, twin.fps
    extra = _EXTRA_LINES[place % 8]
    first_crop = min(41, frames // 3) if place % 6 == 5 else 1
    return VideoPlan(
        number=number,
        name=twin.name.removesuffix("_left") + "_right" if twin else _name(number) + ("_left" if left else ""),
        subset=subset,
        root=IMAGE_ROOTS[place % 5 == 3],
        tasks=_TASK_PATTERN.get(place % 8, DRAWN_TASKS) if place >= _COMPLETE else DRAWN_TASKS,
        # Now and then a person comes back, but never in the other set.
        identity=number - 3 if subset == TRAIN and place % 9 == 8 else number,
        frames=frames,
        fps=fps,
        lead=_LEADS[place % _COMPLETE],
        extra_lines=extra,
        first_crop=first_crop,
        missing=_draw_gaps(rng, first_crop, frames, place),
        invalid=_draw_runs(rng, frames + extra, 2, (8, 30)) if place % 2 else (),
        partly_invalid=_draw_runs(rng, frames + extra, 2, (3, 8)) if place % 4 == 1 else (),
    )


def _name(number: int) -> str:
    """Return a name in one of the forms that Aff-Wild2 has."""
    forms = (f"video{number}", f"{number + 100}-60-1920x1080-{number % 5 + 1}", f"video{number}_1", f"{number + 200}")
    return forms[number % len(forms)]


def _draw_gaps(rng: np.random.Generator, first: int, frames: int, place: int) -> tuple[tuple[int, int], ...]:
    """Draw bursts of missing crops: none in every third video, half of a video in every eleventh."""
    if place % 3 == 0:
        return ()
    if place % 11 == 10:
        return ((first + frames // 4, min(first + 3 * frames // 4, frames)),)
    return tuple((a, b) for a, b in _draw_runs(rng, frames, 3, (1, 9)) if a > first)


def _draw_runs(rng: np.random.Generator, length: int, count: int, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Draw up to `count` runs in 2..length that neither touch nor overlap, first and last included."""
    runs: list[tuple[int, int]] = []
    for _ in range(count):
        first = int(rng.integers(2, length))
        last = min(first + int(rng.integers(size[0], size[1] + 1)) - 1, length - 1)
        if all(last < a - 1 or b + 1 < first for a, b in runs):
            runs.append((first, last))
    return tuple(sorted(runs))
