"""How cost grows with work: longer videos, more clients, more faces; each fitted.

Lengths are compared within one run and in turns: the longest video stands in the middle, the shorter ones are repeated
before and after it, so that what else the machine does meets all alike. Memory is the kernel's high-water mark.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.films import drawn_film, loop_film, mosaic
from affserve.benchmarks.measuring.random_models import CACHE, DEMO, Progress, random_checkpoints, repository_of
from affserve.benchmarks.measuring.samples import fitted
from affserve.benchmarks.serving.clients import measure_clients
from affserve.benchmarks.video.cluster import measure_cluster
from affserve.benchmarks.video.infer_run import run_infer
from affserve.benchmarks.video.kills import measure_kills
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import DataError

LENGTH, CLIENTS, FACES, CLUSTER, KILLS = "length", "clients", "faces", "cluster", "kills"
PARTS = (LENGTH, CLIENTS, FACES)  # unless others are asked for
LENGTHS = (300, 2000, 6000, 20_000)  # frames
SHORT = 2000  # frames: the bar compares the longest with this one
WITHIN = 0.05  # of the time per frame, and of the peak memory, of the shorter
DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """What is scaled, and how far."""

    parts: tuple[str, ...] = PARTS
    repository: Path | None = None  # None: a small model with random weights
    film: Path | None = None  # None: a drawn one
    lengths: tuple[int, ...] = LENGTHS  # frames
    repeats: int = 4  # of every length but the longest
    clients: tuple[int, ...] = (1, 2, 4, 8)
    client_frames: int = 640  # crops that each client sends
    faces: tuple[int, ...] = (1, 2, 3, 4, 5)  # per frame
    face_frames: int = 300
    rounds: int = 3  # of clients and faces
    cache: Path = CACHE

    def __post_init__(self) -> None:
        known = (*PARTS, CLUSTER, KILLS)
        if unknown := set(self.parts) - set(known):
            raise DataError(f"parts are {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
        if min((*self.lengths, *self.clients, *self.faces, self.repeats, self.rounds)) < 1:
            raise DataError("a length, a count or a number of rounds is below 1; expected all above")


def measure_scale(options: ScaleOptions, scratch: Path, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Return every part asked for."""
    repository = options.repository or _small_repository(options, progress)
    measured: dict[str, Any] = {"model": "given" if options.repository else "affserve-demo, random weights"}
    if LENGTH in options.parts:
        measured[LENGTH] = _measure_lengths(options, repository, scratch, progress)
    if CLIENTS in options.parts:
        progress(f"{', '.join(map(str, options.clients))} clients")
        measured[CLIENTS] = measure_clients(repository, options.clients, options.client_frames, options.rounds)
    if FACES in options.parts:
        measured[FACES] = _measure_faces(options, repository, scratch, progress)
    if CLUSTER in options.parts:
        measured[CLUSTER] = measure_cluster(repository, options.film or drawn_film(options.cache), scratch, progress)
    if KILLS in options.parts:
        measured[KILLS] = measure_kills(repository, options.film or drawn_film(options.cache), scratch, progress)
    return measured


def _small_repository(options: ScaleOptions, progress: Progress) -> Path:
    from affserve.train.models.encoder import DEMO_ARCHITECTURE

    checkpoints = random_checkpoints(DEMO_ARCHITECTURE, options.cache, DEMO)
    return repository_of(checkpoints, Precision.FP32, options.cache, progress=progress)


def turns(lengths: Sequence[int], repeats: int) -> list[int]:
    """Return the order of the runs: the longest once, in the middle, half of the others before it and half after."""
    *shorter, longest = sorted(set(lengths))
    before, after = -(-repeats // 2), repeats // 2
    return [*shorter * before, longest, *shorter[::-1] * after]


def _measure_lengths(options: ScaleOptions, repository: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    film = options.film or drawn_film(options.cache)
    runs: dict[int, list[dict[str, Any]]] = {frames: [] for frames in sorted(set(options.lengths))}
    for frames in turns(options.lengths, options.repeats):
        progress(f"a video of {frames} frames")
        video = loop_film(film, frames, scratch / f"{frames}.mp4")
        runs[frames].append(run_infer(video, scratch / "rows.csv", "--repository", str(repository)))
        video.unlink()
    rows = [_length_row(frames, of_length) for frames, of_length in runs.items()]
    fits = fitted([row["frames"] for row in rows], [statistics.median(row["times_s"]) for row in rows])
    return {"film": film.name, "detector": _detector(runs), "rows": rows, **fits, **_compared(rows)}


def _detector(runs: Mapping[int, Sequence[dict[str, Any]]]) -> str:
    """Return what found the faces: the environment chooses it, and it is a good part of the time."""
    return str(next(iter(runs.values()))[0]["summary"]["detector"])


def _length_row(frames: int, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    times_s = [run["summary"]["seconds"] for run in runs]
    memory = {name: [run[name] for run in runs] for name in runs[0] if name.endswith("_mib")}
    return {
        "frames": frames,
        "rows": runs[0]["summary"]["rows"],
        "times_s": [round(value, DECIMALS) for value in times_s],
        "ms_per_frame": round(1000 * statistics.median(times_s) / frames, DECIMALS),
        **{name: round(statistics.median(values), 1) for name, values in memory.items()},
    }


def _compared(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Set the longest video against SHORT, or the shortest."""
    long = rows[-1]
    short = next((row for row in rows if row["frames"] == SHORT), rows[0])
    peaks = [sum(row[f"{who}_peak_mib"] for who in ("client", "server")) for row in (short, long)]
    figures = {"time per frame": long["ms_per_frame"] / short["ms_per_frame"], "peak memory": peaks[1] / peaks[0]}
    bars = [
        {
            "what": f"{what} of {long['frames']} frames to that of {short['frames']}",
            "figure": round(figure, DECIMALS),
            "at_most": 1 + WITHIN,
            "met": bool(figure <= 1 + WITHIN),
        }
        for what, figure in figures.items()
    ]
    return {"bars": bars}


def _measure_faces(options: ScaleOptions, repository: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    film = options.film or drawn_film(options.cache)
    where = ["--repository", str(repository), "--faces", "all"]
    videos = {
        faces: mosaic(film, faces, options.face_frames, scratch / f"{faces}-faces.mp4") for faces in options.faces
    }
    runs: dict[int, list[dict[str, Any]]] = {faces: [] for faces in options.faces}
    for _ in range(options.rounds):
        for faces, video in videos.items():
            progress(f"{faces} faces in a frame")
            runs[faces].append(run_infer(video, scratch / "rows.csv", *where))
    rows = []
    for faces, of_faces in runs.items():
        times_s = [run["summary"]["seconds"] for run in of_faces]
        rows.append(
            {
                "faces": faces,
                "rows_per_frame": round(of_faces[0]["summary"]["rows"] / options.face_frames, 3),
                "people": of_faces[0]["summary"]["people"],
                "times_s": [round(value, DECIMALS) for value in times_s],
                "ms_per_frame": round(1000 * statistics.median(times_s) / options.face_frames, DECIMALS),
            }
        )
    fits = fitted([row["rows_per_frame"] for row in rows], [row["ms_per_frame"] for row in rows])
    return {"frames": options.face_frames, "detector": _detector(runs), "rows": rows, **fits}
