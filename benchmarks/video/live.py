"""Does the delay of `affserve live` stay where it is, and how many live streams does one machine carry?

A file is played over and over at its own timestamps, once for each stream. The delay of a frame counts from the moment
it is due, so that nothing which is late goes unseen: not the decoding, and not a stall of the whole machine.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.processes import family, memory_mib
from affserve.benchmarks.measuring.server_side import CpuClock, read_statistics, server_processes, server_split
from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers
from affserve.client.live.analysis import DEFAULT_HOP_FRAMES, LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, now_s
from affserve.client.live.source import SourceSettings, open_live

WARM_UP_S = 11.0  # at the beginning, not counted: until windows of 300 frames are full
LAST_S = 0.5  # before the end: what client and server hold then is what they hold at the end
CAMERA_FPS = 30
BIN_S = 10.0  # one point of the line that is laid through the delays
SHORTEST_S = 120.0  # of a run that tells growth from a passing load of the machine
GROWTH = 0.05  # of the median delay, over the whole run: growth below this is none


@dataclass(frozen=True, kw_only=True)
class LiveJob:
    """What every stream does."""

    url: str  # of a running server
    film: Path
    seconds: float  # that are counted; the warm-up comes before
    hop: int | None  # frames; None: as the head needs it
    crops: bool = False  # frames are face crops
    face_model: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveRun:
    """What one stream did after warming up."""

    at_s: NDArray[np.float64]  # (n,) arrival of each answered frame, seconds since the start
    delay_s: NDArray[np.float64]  # (n,)
    fps: float
    decoded: int
    analysed: int
    dropped: int
    slipped_s: float


def measure_live(job: LiveJob, streams: int = 1, *, processes: bool = False) -> dict[str, Any]:
    """Play a film in real time as `streams` live streams at once; return counts and delays, in milliseconds.

    Beside them, `memory_mib` has what client and server held once warm and at the end.
    processes: a process for each stream instead of threads of this one. `carried` says
    whether all streams were answered without dropping more than one frame in a hundred and without growing delay.
    It takes 11 s more: until windows are full, predictions cost less than they will.
    """
    start_s = now_s() + (5.0 if processes else 0.5)
    # Cameras do not tick together; streams that did would all ask for predictions at the same moment.
    starts_s = [start_s + k / streams * (job.hop or DEFAULT_HOP_FRAMES) / CAMERA_FPS for k in range(streams)]
    with _executor(streams, processes) as executor:
        running = [executor.submit(run_stream, job, one_s) for one_s in starts_s]
        costs = _costs(job.url, running, starts_s[-1] + WARM_UP_S, job.seconds)
        runs = [one.result() for one in running]
    with AffectClient(job.url) as client:
        engine = client.engine()
        hop = LiveSettings(hop=job.hop).hop_of(client.describe())
    return {
        "source": job.film.name,
        "engine": engine,
        "hop_frames": hop,
        "seconds": job.seconds,
        "streams": streams,
        "processes": processes,
        **costs,
        **summarised(runs, job.seconds),
    }


def _costs(url: str, running: Sequence[Future[LiveRun]], warm_s: float, seconds: float) -> dict[str, Any]:
    """Return what client and server hold once warm and at the end, cores that are busy, and Triton's own clocks."""
    server = server_processes(url)
    wait(running, max(0.0, warm_s - now_s()), FIRST_EXCEPTION)
    before, held, clock = read_statistics(url), _memory_mib(server), CpuClock(server)
    wait(running, max(0.0, warm_s + seconds - LAST_S - now_s()), FIRST_EXCEPTION)
    memory = {name: [mib, _memory_mib(server)[name]] for name, mib in held.items()}
    return {"memory_mib": memory, **clock.cores(), "server": server_split(before, read_statistics(url))}


def _memory_mib(server: Sequence[int]) -> dict[str, float]:
    clients = [pid for pid in family(os.getpid()) if pid not in server]
    sides = {"client": clients, "server": server}
    return {name: round(sum(memory_mib("VmRSS", pid) for pid in pids), 1) for name, pids in sides.items()}


def _executor(streams: int, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(streams, thread_name_prefix="affserve-stream")
    return ProcessPoolExecutor(streams, mp_context=multiprocessing.get_context("spawn"))


def run_stream(job: LiveJob, start_s: float) -> LiveRun:
    """Analyse one stream; start_s: when to begin, by time.monotonic(), one clock for all processes of a machine."""
    counters = LiveCounters()
    source = open_live(SourceSettings(source=str(job.film), loop=True, threads=1))
    croppers = Croppers(crops=job.crops, face_model=job.face_model)
    at_s: list[float] = []
    delay_s: list[float] = []
    with AffectClient(job.url) as client:
        analysis = LiveAnalysis(client, lambda: croppers.cropper(job.crops), LiveSettings(hop=job.hop), counters)
        time.sleep(max(0.0, start_s - now_s()))
        began_s = now_s()
        before: tuple[int, int, int] | None = None
        for answer in analysis.run(source, lambda: now_s() - began_s > job.seconds + WARM_UP_S):
            at = now_s() - began_s
            if before is None and at >= WARM_UP_S:
                before = counters.decoded, counters.analysed, counters.dropped
            firsts = np.unique(answer.rows.frame, return_index=True)[1]  # a frame with several faces counts once
            delay_s.extend(answer.delay_s[firsts].tolist())
            at_s.extend((at - answer.delay_s[firsts]).tolist())
    decoded, analysed, dropped = before or (0, 0, 0)
    at_array = np.array(at_s) - WARM_UP_S
    return LiveRun(
        at_s=at_array[at_array >= 0],
        delay_s=np.array(delay_s)[at_array >= 0],
        fps=source.fps,
        decoded=counters.decoded - decoded,
        analysed=counters.analysed - analysed,
        dropped=counters.dropped - dropped,
        slipped_s=counters.slipped_s,
    )


def summarised(runs: Sequence[LiveRun], seconds: float) -> dict[str, Any]:
    """Return the figures of all streams together, of each minute, and of each stream."""
    at_s = np.concatenate([run.at_s for run in runs])
    delay_s = np.concatenate([run.delay_s for run in runs])
    totals = {name: sum(getattr(run, name) for run in runs) for name in ("decoded", "analysed", "dropped")}
    line = slope(at_s, delay_s)
    growing = line is not None and seconds >= SHORTEST_S and grows(line, delay_s, seconds)
    slipped_s = sum(run.slipped_s for run in runs)
    return {
        **totals,
        "dropped_share": round(totals["dropped"] / max(totals["decoded"], 1), 5),
        "slipped_s": round(slipped_s, 2),
        "delay": delays_ms(delay_s),
        "delay_slope_ms_per_minute": None if line is None else round(60e3 * line[0], 3),
        "delay_slope_error_ms_per_minute": None if line is None else round(60e3 * line[1], 3),
        "delay_grows": growing,
        "carried": not growing and totals["dropped"] <= totals["decoded"] / 100 and slipped_s == 0,
        "minutes": [
            {"minute": minute, **delays_ms(delay_s[(at_s >= 60 * minute) & (at_s < 60 * (minute + 1))])}
            for minute in range(int(np.ceil(seconds / 60)))
        ],
        "each_stream": [
            {
                "fps_in": round(run.decoded / seconds, 2),
                "fps_analysed": round(run.analysed / seconds, 2),
                "dropped": run.dropped,
                **delays_ms(run.delay_s),
            }
            for run in runs
        ],
    }


def delays_ms(delay_s: NDArray[np.float64]) -> dict[str, Any]:
    """Return number, p50, p95, p99 and maximum of delays (n,) in seconds, as milliseconds."""
    if not len(delay_s):
        return {"frames": 0}
    p50, p95, p99 = (round(1000 * float(value), 1) for value in np.percentile(delay_s, (50, 95, 99)))
    largest = round(1000 * float(delay_s.max()), 1)
    return {"frames": len(delay_s), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": largest}


def slope(at_s: NDArray[np.float64], delay_s: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the slope of delay over time and its standard error, in seconds per second; None for a short run.

    A line through the medians of ten seconds each: delays within a hop rise and fall like the teeth of a saw, so that
    single frames are no independent points.
    """
    bins = (at_s // BIN_S).astype(np.int64)
    points = [(BIN_S * (k + 0.5), float(np.median(delay_s[bins == k]))) for k in np.unique(bins)]
    if len(points) < 4:
        return None
    x, y = np.array(points[:-1] if len(points) > 4 else points).T  # the last bin may be a rest of few frames
    x = x - x.mean()
    gradient = float((x * y).sum() / (x * x).sum())
    residuals = y - y.mean() - gradient * x
    error = float(np.sqrt((residuals @ residuals) / (len(x) - 2) / (x * x).sum()))
    return gradient, error


def grows(line: tuple[float, float], delay_s: NDArray[np.float64], seconds: float) -> bool:
    """Say whether the delay surely (two standard errors) grew by more than a small share of itself."""
    gradient, error = line
    return (gradient - 2 * error) * seconds > GROWTH * float(np.median(delay_s))
