"""Whole-frame videos of generated faces, for trying the client: H.264 in mp4, with the truth of every frame beside it.

`<name>.csv` has one row per frame: its number from 0, its time in the container, where the face and its landmarks are,
its labels, and what spoils it. Times are those a reader of the container gets, to the last digit.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import OutputError
from affserve.train.labels import ACTION_UNITS, VALENCE_AROUSAL
from affserve.train.synthetic.anatomy import Anatomy, Placement, Pose
from affserve.train.synthetic.face import face_box_px
from affserve.train.synthetic.motion import smooth_noise
from affserve.train.synthetic.plan import SyntheticConfig
from affserve.train.synthetic.scene import Performance, draw_performance, draw_person

HEIGHT_PX, WIDTH_PX = 360, 640
LANDMARKS = ("right_eye", "left_eye", "nose_tip", "right_mouth_corner", "left_mouth_corner")
BOX_COLUMNS = ("face_x_px", "face_y_px", "face_w_px", "face_h_px")
LANDMARK_COLUMNS = tuple(f"{name}_{axis}_px" for name in LANDMARKS for axis in "xy")
COLUMNS = (
    *("frame", "timestamp_s"),
    *BOX_COLUMNS,
    *LANDMARK_COLUMNS,
    *VALENCE_AROUSAL.names,
    "expression",
    *ACTION_UNITS.names,
    "nuisance",
)
_SCALE_PX = (52.0, 84.0)  # one face unit, about half the width of a face


@dataclass(frozen=True, kw_only=True)
class WholeFramePlan:
    """One whole-frame video: frame k is shown at ticks[k] / ticks_per_second."""

    number: int
    name: str
    identity: int
    ticks_per_second: float
    ticks: tuple[int, ...]
    variable_frame_rate: bool


def plan_whole_frames(config: SyntheticConfig) -> list[WholeFramePlan]:
    """Decide on the whole-frame videos; their people appear in neither set and the first has a variable frame rate."""
    plans = []
    for k in range(config.whole_frame_videos):
        variable, rate = k == 0, (25, 30)[k % 2]
        steps = np.ones(config.whole_frame_frames - 1, dtype=np.int64)
        if variable:
            # Phone cameras stretch exposures in the dark: frames last from 1/60 to 4/60 s.
            rng = np.random.default_rng([config.seed, 3, k])
            rate, steps = 60, rng.choice([1, 2, 3, 4], size=len(steps), p=[0.1, 0.6, 0.2, 0.1])
        ticks = tuple(int(v) for v in np.concatenate([[0], np.cumsum(steps)]))
        plans.append(
            WholeFramePlan(
                number=k,
                name=f"face{k + 1:02d}" + ("_variable_rate" if variable else ""),
                identity=config.videos + k,
                ticks_per_second=rate,
                ticks=ticks,
                variable_frame_rate=variable,
            )
        )
    return plans


def write_whole_frames(folder: Path, plan: WholeFramePlan, config: SyntheticConfig) -> int:
    """Draw a video of somebody in neither set into `folder`; return the number of frames."""
    rng = np.random.default_rng([config.seed, 4, plan.number])
    factor = config.whole_frame_nuisance
    difficulty = replace(
        config.difficulty,
        occlusion=config.difficulty.occlusion * factor,
        degradation=config.difficulty.degradation * factor,
    )
    performance = draw_performance(
        rng,
        draw_person(config.seed, plan.identity, difficulty.identity_spread),
        frames=plan.ticks[-1] + 1,
        fps=plan.ticks_per_second,
        difficulty=difficulty,
        size=(HEIGHT_PX, WIDTH_PX),
    )
    return write_film(folder, plan, performance, rng)


def write_film(folder: Path, plan: WholeFramePlan, performance: Performance, rng: np.random.Generator) -> int:
    """Write `<name>.mp4` and `<name>.csv` of a performance into `folder`; return the number of frames."""
    placements = _draw_placements(rng, plan)
    try:
        rows = _encode(folder / f"{plan.name}.mp4", plan, performance, placements)
        with (folder / f"{plan.name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{folder / plan.name}: cannot be written: {error}") from error
    return len(plan.ticks)


def _draw_placements(rng: np.random.Generator, plan: WholeFramePlan) -> list[Placement]:
    """Let the person move about and come nearer and go, one placement per tick."""
    ticks = plan.ticks[-1] + 1
    x, y, size = np.tanh(0.8 * smooth_noise(rng, ticks, plan.ticks_per_second, 4.0, channels=3)).T
    low, high = _SCALE_PX
    scale = (low + high) / 2 + (high - low) / 2 * size
    centre = np.stack([WIDTH_PX / 2 + 0.2 * WIDTH_PX * x, 0.44 * HEIGHT_PX + 0.04 * HEIGHT_PX * y], axis=1)
    return [
        Placement(centre_px=(float(c[0]), float(c[1])), scale_px=float(s)) for c, s in zip(centre, scale, strict=True)
    ]


def _encode(
    path: Path, plan: WholeFramePlan, performance: Performance, placements: list[Placement]
) -> list[list[object]]:
    rows: list[list[object]] = []
    with av.open(str(path), "w") as container:
        tick_s = 1 / Fraction(plan.ticks_per_second)
        rate = Fraction(30) if plan.variable_frame_rate else 1 / tick_s
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick_s
        for number, tick in enumerate(plan.ticks):
            image, landmarks = performance.draw(tick, placements[tick])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, tick_s
            container.mux(stream.encode(frame))
            rows.append([number, float(tick * tick_s), *_truth(performance, tick, placements[tick], landmarks)])
        container.mux(stream.encode())
    return rows


def _truth(performance: Performance, tick: int, placement: Placement, landmarks: NDArray[np.float64]) -> list[object]:
    state, motion = performance.state(tick), performance.motion
    box = face_box_px(Anatomy(performance.identity, state), Pose(state, placement))
    affect = motion.labels(VALENCE_AROUSAL)[tick]
    return [
        *(round(v, 2) for v in box),
        *(round(float(v), 2) for v in landmarks.ravel()),
        *(round(float(v), 4) for v in affect),
        int(motion.expression[tick]),
        *(int(v) for v in motion.labels(ACTION_UNITS)[tick]),
        performance.nuisances.name(tick),
    ]
