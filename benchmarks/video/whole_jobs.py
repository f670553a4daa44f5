"""A whole job as a user runs it, `affserve infer` from file to file: decode, detect, encode, head, write.

The video is made as long as asked by playing it over and over. Speed is what the command itself reports, from the open
file to the last row; starting Python and the server is told apart. Decoding and detection run beside the encoder, so
the seconds of the stages overlap and do not add up to the time of the job.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from affserve.benchmarks.measuring.films import loop_film
from affserve.benchmarks.measuring.record import environment
from affserve.benchmarks.measuring.samples import median_interval
from affserve.benchmarks.video.infer_run import run_infer
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.read_ahead import ReadAhead, StageSeconds
from affserve.client.infer.work import WorkSettings
from affserve.train.errors import VideoError

REAL_TIME = 30.0  # frames per second of the bar
DECIMALS = 4


# End-to-end frames/s of others: one clip of 472 frames at 640x360, detection included, on one GPU.
PUBLISHED = {"py-feat 2, batches of 16": 202.5, "py-feat 2, frame by frame": 38.4, "OpenFace 3": 18.3, "LibreFace": 4.7}
PUBLISHED_GPU = "RTX 3090"


def measure_whole_job(
    video: Path, options: Sequence[str], frames: int | None, rounds: int, scratch: Path, croppers: Croppers
) -> dict[str, Any]:
    """Return the speed of `affserve infer` on a video and where its time goes.

    options: infer's own, with the model. croppers: as the options have them.
    """
    shape = video_shape(video)
    film = loop_film(video, frames, scratch / "film.mp4") if frames is not None else video
    runs = [run_infer(film, scratch / "rows.csv", *options) for _ in range(rounds)]
    summaries = [run["summary"] for run in runs]
    times_s = [summary["seconds"] for summary in summaries]
    count = summaries[0]["frames"]
    speed = count / statistics.median(times_s)
    return {
        "video": video.name,
        **shape,
        "frames": count,
        "frames_with_face": summaries[0]["frames_with_face"],
        "engine": summaries[0]["engine"],
        "detector": summaries[0]["detector"],
        "options": list(options),
        "rounds": rounds,
        "times_s": [round(value, DECIMALS) for value in times_s],
        "frames_per_s": round(speed, 2),
        "seconds": median_interval(times_s).rounded(),
        "times_real_time": round(speed / shape["fps"], 3),
        "commands_s": [run["command_s"] for run in runs],
        "limited_by": limit([summary["stages"] for summary in summaries], times_s),
        "front_half": front_half(film, croppers),
        "stages": stages([summary["stages"] for summary in summaries], count),
        "client_peak_mib": max(run["client_peak_mib"] for run in runs),
        "server_peak_mib": max(run["server_peak_mib"] for run in runs),
        "bars": [
            {
                "what": f"frames per second end to end, {shape['width_px']}x{shape['height_px']}",
                "figure": round(speed, 2),
                "at_least": REAL_TIME,
                "met": bool(speed >= REAL_TIME),
            }
        ],
        "published": published(speed, [gpu["name"] for gpu in environment().get("gpus", [])]),
    }


def video_shape(video: Path) -> dict[str, Any]:
    """Return width, height and frame rate as the container announces them."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or Fraction(30))
            return {"width_px": stream.width, "height_px": stream.height, "fps": round(fps, 3)}
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise VideoError(f"{video} cannot be opened as a video: {error}; expected a file that infer reads") from error


def stages(of_runs: Sequence[Mapping[str, float]], frames: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of each stage and how many frames a second it could do alone."""
    medians_s = {name: statistics.median(one[name] for one in of_runs) for name in of_runs[0]}
    return {
        name.removesuffix("_s"): {
            "seconds": round(value, DECIMALS),
            "ms_per_frame": round(1000 * value / frames, DECIMALS),
            **({"frames_per_s": round(frames / value, 1)} if value > 0 else {}),
        }
        for name, value in medians_s.items()
    }


FRONT_STAGES = {"decode_s": "decoding", "detect_s": "faces", "crop_s": "crops"}


def limit(of_runs: Sequence[Mapping[str, float]], times_s: Sequence[float]) -> str:
    """Say which stage the others wait for: the server where frames wait for it, else the slowest stage before it."""
    waiting = statistics.median(one["frames_wait_s"] / time_s for one, time_s in zip(of_runs, times_s, strict=True))
    if waiting < 0.5:
        return "the server"
    slowest = max(FRONT_STAGES, key=lambda name: statistics.median(one[name] for one in of_runs))
    return FRONT_STAGES[slowest]


def front_half(film: Path, croppers: Croppers) -> dict[str, float]:
    """Return how many frames a second decoding, faces and crops deliver without a server: in all, and per core used."""
    work = WorkSettings(croppers=croppers, threads=1)
    work.prepare_process()
    source = work.open(film)
    start, used_s = time.perf_counter(), time.process_time()
    with ReadAhead(source, croppers.cropper(source.already_cropped), StageSeconds()) as chunks:
        frames = sum(len(chunk.frames) for chunk in chunks)
    wall_s, used_s = time.perf_counter() - start, time.process_time() - used_s
    return {"frames_per_s": round(frames / wall_s, 1), "frames_per_s_per_core": round(frames / used_s, 1)}


def published(frames_per_s: float, gpus: Sequence[str]) -> list[dict[str, Any]]:
    """Set others' figures beside ours; a ratio only where the hardware is the same."""
    same = any(PUBLISHED_GPU in name for name in gpus)
    rows = []
    for what, theirs in PUBLISHED.items():
        told = {"what": what, "frames_per_s": theirs, "hardware": PUBLISHED_GPU, "comparable": same}
        rows.append({**told, "times_as_fast": round(frames_per_s / theirs, 2)} if same else told)
    return rows
