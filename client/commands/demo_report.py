"""Served predictions against the truth of generated videos: the demo's table.

Both are joined frame by frame; what is scored are the frames in which a face was found, the same for every column of
the table. Every video shows another person, so the interval of a difference is one over people: they are drawn with
replacement, each with all their frames.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.formats import CSV
from affserve.train.errors import DataError
from affserve.train.evaluation.metrics import metric_titles, people_drawn
from affserve.train.evaluation.scores import Scores, constant_guess, score
from affserve.train.labels import TASKS, VALENCE_AROUSAL

Labels = dict[str, NDArray[np.float32]]

SMOOTHING_FRAMES = 2.0  # standard deviation of the Gauss that the single frame's answers are smoothed with
RESAMPLINGS = 1000  # of the people, for the intervals


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One held-out video and what was said of it."""

    csv: Path  # the served rows
    truth: Path  # the CSV that the generator wrote beside the video
    single_frame: Labels  # (F, K) by task, of the frames with a face


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the served model achieves on videos never trained on, and beside what."""

    served: Scores  # the temporal model
    single_frame: Scores  # the same encoder with a head that sees one frame at a time
    smoothed: Scores  # the same answers, averaged over time
    constant: Scores  # the best answer that never looks
    gain: Mapping[str, tuple[float, float]]  # served less single frame: 95 % interval over people, by metric
    people: int
    frames: int
    frames_with_face: int
    rates: Mapping[str, float]  # frames per second
    repository: Path
    csv: tuple[Path, ...]  # one a video
    plots: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "served": self.served.summary(),
            "single_frame": self.single_frame.summary(),
            "smoothed_single_frame": self.smoothed.summary(),
            "constant_guess": self.constant.summary(),
            "gain_over_single_frame_95": {name: list(ends) for name, ends in self.gain.items()},
            "people": self.people,
            "served_parts": {key: dict(parts) for key, parts in self.served.parts.items()},
            "frames": self.frames,
            "frames_with_face": self.frames_with_face,
            **self.rates,
            "repository": str(self.repository),
            "csv": [str(path) for path in self.csv],
            "plots": [str(path) for path in self.plots],
        }


def read_truth(path: Path) -> Labels:
    """Read the truth beside a generated video: (N, columns) by task."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {key: (key,) if task.kind == "one_of" else task.names for key, task in TASKS.items()}
    return {key: np.array([[row[name] for name in names[key]] for row in rows], np.float32) for key in TASKS}


def read_predictions(path: Path) -> Labels:
    """Read the client's CSV: outputs (N, K) by task, NaN where no face was found."""
    blocks = list(CSV.read(path, {key: task.names for key, task in TASKS.items()}))
    return {key: np.concatenate([rows.predictions[key] for rows in blocks]) for key in TASKS}


def compare(judged: Sequence[Judged], rates: Mapping[str, float], repository: Path) -> Comparison:
    """Score the served rows of some videos, and the single-frame model's, against the truth."""
    rows = [_joined(video) for video in judged]
    truth, served, single, smoothed = (
        {key: np.concatenate([part[key] for part in parts]) for key in TASKS} for parts in zip(*rows, strict=True)
    )
    face = np.isfinite(served[VALENCE_AROUSAL.key][:, 0])
    valid = dict.fromkeys(TASKS, face)
    person = np.repeat(np.arange(len(rows)), [len(one[VALENCE_AROUSAL.key]) for one, *_ in rows])
    return Comparison(
        served=score(served, truth, valid),
        single_frame=score(single, truth, valid),
        smoothed=score(smoothed, truth, valid),
        constant=score(constant_guess(truth, valid), truth, valid),
        gain=_gain(truth, served, single, np.where(face, person, -1)),
        people=len(rows),
        frames=len(face),
        frames_with_face=int(face.sum()),
        rates={name: round(rate, 1) for name, rate in rates.items()},
        repository=repository,
        csv=tuple(video.csv for video in judged),
        plots=tuple(plot for video in judged if (plot := video.csv.with_suffix(".png")).exists()),
    )


def _gain(truth: Labels, ours: Labels, theirs: Labels, person: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of the difference of each metric; person: (N,) whose frame it is, -1: not scored."""
    found: dict[str, list[float]] = {}
    for drawn in people_drawn(person, RESAMPLINGS):
        valid = dict.fromkeys(TASKS, np.ones(len(drawn), np.bool_))
        labels = {key: values[drawn] for key, values in truth.items()}
        both = [score({key: v[drawn] for key, v in one.items()}, labels, valid).summary() for one in (ours, theirs)]
        for name, value in both[0].items():
            found.setdefault(name, []).append(value - both[1][name])
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _joined(video: Judged) -> tuple[Labels, Labels, Labels, Labels]:
    """Return truth, served, single-frame and smoothed outputs of one video, row by row; NaN where no face was found."""
    truth, served = read_truth(video.truth), read_predictions(video.csv)
    face = np.isfinite(served[VALENCE_AROUSAL.key][:, 0])
    frames = len(truth[VALENCE_AROUSAL.key])
    if len(face) != frames:
        raise DataError(f"{video.csv} has {len(face)} rows, expected {frames}: one per frame of the video")
    single, smoothed = ({key: np.full_like(values, np.nan) for key, values in served.items()} for _ in range(2))
    for key, values in video.single_frame.items():
        single[key][face] = values
        smoothed[key][face] = smooth(values)
    return truth, served, single, smoothed


def smooth(values: NDArray[np.float32], frames: float = SMOOTHING_FRAMES) -> NDArray[np.float32]:
    """Average each column of (N, K) over time by a Gauss of this standard deviation; at the ends over what there is."""
    apart = np.arange(len(values))[:, None] - np.arange(len(values))  # (N, N)
    weights = np.exp(-0.5 * (apart / frames) ** 2)
    return np.asarray(weights @ values / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def table(comparison: Comparison) -> str:
    """Render the comparison for a terminal."""
    columns = {
        "served": comparison.served.summary(),
        "single frame": comparison.single_frame.summary(),
        "smoothed": comparison.smoothed.summary(),
        "constant": comparison.constant.summary(),
    }
    heading = f"{comparison.people} held-out people"
    lines = [f"{heading:<28}" + "".join(f"{name:>14}" for name in columns) + f"{'served less single frame':>28}"]
    for key, title in metric_titles().items():
        low, high = comparison.gain[key]
        gain = f"{columns['served'][key] - columns['single frame'][key]:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"{title:<28}" + "".join(f"{scores[key]:>14.3f}" for scores in columns.values()) + f"{gain:>28}")
    found = comparison.frames_with_face / comparison.frames
    rates = comparison.rates
    lines += [
        "",
        f"scored on {comparison.frames_with_face} of {comparison.frames} frames (a face was found in {found:.1%})",
        f"{rates['served_crops_per_s']:.0f} face crops/s through the server; {rates['end_to_end_frames_per_s']:.0f} "
        "frames/s from video to CSV",
        f"rows        {comparison.csv[0]}",
        *([f"plot        {comparison.plots[0]}"] if comparison.plots else []),
        f"repository  {comparison.repository}",
    ]
    return "\n".join(lines)


def next_steps(comparison: Comparison, program: str) -> list[str]:
    """Return three commands to try next, as they are to be typed; program: how affserve is called."""
    folder, video = comparison.repository.parent, comparison.csv[0].stem
    clip, repository = (
        shlex.quote(str(path)) for path in (folder / f"corpus/videos/{video}.mp4", comparison.repository)
    )
    look = shlex.quote(str(folder / "look"))
    return [
        f"{program} infer {clip} --repository {repository} --out {look} --overlay {look}",
        f"{program} live {clip} --repository {repository}",
        f"{program} serve {repository}",
    ]
