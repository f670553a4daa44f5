"""How far are the answers of `affserve live` from those of `affserve infer` on the same frames?

A live answer sees the frames before it, at most 300, and those of its own hop; a whole-video answer also sees what
comes after, and is averaged where windows overlap. Every frame is analysed here, so that only this differs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import FaceCropper
from affserve.client.faces.detector_file import find_detector
from affserve.client.infer.analyze import analyze_stream
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, LiveFrame, now_s
from affserve.client.results.rows import Rows
from affserve.client.video.source import open_source
from affserve.train.evaluation.metrics import ccc
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.windows import Outputs

BATCH_FRAMES = 10  # that are encoded together; it changes nothing but speed
ACTIVE = 0.5  # probability from which an action unit counts as active


def measure_live_answers(
    url: str, videos: Sequence[Path], hops: Sequence[int], face_model: Path | None = None
) -> dict[str, Any]:
    """Return how well live and whole-video answers agree, for each hop, over the frames of all videos."""
    detector = find_detector("auto", face_model)
    whole: list[Outputs] = []
    live: dict[int, list[Outputs]] = {hop: [] for hop in hops}
    truth: list[NDArray[np.float64]] = []
    with AffectClient(url) as client:
        for video in videos:
            rows = list(analyze_stream(open_source(video), client, FaceCropper(detector)))
            seen = np.flatnonzero(np.concatenate([block.track_id for block in rows]) >= 0)
            whole.append(_joined(rows, seen))
            truth.append(_truth(video)[seen])
            for hop in hops:
                analysis = LiveAnalysis(client, lambda: FaceCropper(detector), LiveSettings(hop=hop), LiveCounters())
                live[hop].append(_joined(list(_live_rows(video, analysis)), seen))
    everything = _concatenated(whole)
    true = np.concatenate(truth)
    return {
        "videos": [video.name for video in videos],
        "frames": len(true),
        "whole_video_to_truth": _to_truth(everything, true),
        "live": [
            {
                "hop_frames": hop,
                **agreement(everything, _concatenated(live[hop])),
                "to_truth": _to_truth(_concatenated(live[hop]), true),
            }
            for hop in hops
        ],
    }


def agreement(whole: Outputs, live: Outputs) -> dict[str, float]:
    """Compare outputs (N, K) per task of the same frames."""
    found: dict[str, float] = {}
    if VALENCE_AROUSAL.key in whole:
        a, b = whole[VALENCE_AROUSAL.key], live[VALENCE_AROUSAL.key]
        for k, name in enumerate(VALENCE_AROUSAL.names):
            found[f"{name}_ccc"] = round(ccc(a[:, k], b[:, k]), 4)
            found[f"{name}_mean_difference"] = round(float(np.abs(a[:, k] - b[:, k]).mean()), 4)
    if EXPRESSION.key in whole:
        same = whole[EXPRESSION.key].argmax(axis=1) == live[EXPRESSION.key].argmax(axis=1)
        found["same_expression_share"] = round(float(same.mean()), 4)
    if ACTION_UNITS.key in whole:
        same = (whole[ACTION_UNITS.key] >= ACTIVE) == (live[ACTION_UNITS.key] >= ACTIVE)
        found["same_action_units_share"] = round(float(same.mean()), 4)
    return found


def _live_rows(video: Path, analysis: LiveAnalysis) -> Iterator[Rows]:
    frames = iter(open_source(video))
    while batch := list(islice(frames, BATCH_FRAMES)):
        arrived = [
            LiveFrame(
                index=frame.index,
                timestamp_s=frame.timestamp_s,
                arrived_s=now_s(),
                rgb=partial(getattr, frame, "image"),
            )
            for frame in batch
        ]
        for answer in analysis.push(arrived):
            yield answer.rows
    for answer in analysis.answer():
        yield answer.rows


def _joined(blocks: Sequence[Rows], chosen: NDArray[np.int64]) -> Outputs:
    joined = _concatenated([block.predictions for block in blocks])
    return {task: values[chosen] for task, values in joined.items()}


def _concatenated(parts: Sequence[Outputs]) -> Outputs:
    return {task: np.concatenate([part[task] for part in parts]) for task in parts[0]}


def _truth(video: Path) -> NDArray[np.float64]:
    """Return valence and arousal (N, 2) of every frame of a video of `affserve data synth`."""
    with open(video.with_suffix(".csv"), newline="", encoding="utf-8") as file:
        return np.array([[float(row[name]) for name in VALENCE_AROUSAL.names] for row in csv.DictReader(file)])


def _to_truth(outputs: Outputs, truth: NDArray[np.float64]) -> dict[str, float]:
    values = outputs[VALENCE_AROUSAL.key]
    labelled = (np.abs(truth) <= 1).all(axis=1)
    return {
        f"{name}_ccc": round(ccc(truth[labelled, k], values[labelled, k]), 4)
        for k, name in enumerate(VALENCE_AROUSAL.names)
    }
