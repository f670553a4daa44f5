"""How many cameras one machine carries: live streams are added until the answers come late or frames are dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from affserve.benchmarks.load.slo import highest_rate
from affserve.benchmarks.measuring.samples import counted
from affserve.benchmarks.video.live import LiveJob, measure_live

MOST_DROPPED = 0.01  # of the frames
CONFIRMING = 2.0  # times as long


def measure_cameras(job: LiveJob, limit_ms: float, first: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Return the highest number of streams that was carried twice, and every trial.

    job: of each stream. first: number to begin with.
    limit_ms: of the 95th percentile of the delay from a frame's due time to its answer, over all streams.
    """
    measured: list[dict[str, Any]] = []

    def kept(streams: float, confirming: bool) -> bool:
        longer = replace(job, seconds=job.seconds * (CONFIRMING if confirming else 1))
        told = measure_live(longer, round(streams), processes=True)
        measured.append({**told, "within_limit": within(told, limit_ms)})
        progress(line(measured[-1], limit_ms))
        return bool(measured[-1]["within_limit"])

    found = highest_rate(kept, first=first, whole=True)
    return {
        "film": job.film.name,
        "limit_p95_ms": limit_ms,
        "limit_dropped": MOST_DROPPED,
        "hop_frames": measured[0]["hop_frames"],
        "seconds": job.seconds,
        "cameras": round(found.rate),
        "trials": [asdict(trial) for trial in found.trials],
        "runs": measured,
    }


def within(told: dict[str, Any], limit_ms: float) -> bool:
    """Say whether a number of streams is carried: in time, in full, and without falling further and further behind."""
    p95_ms = told["delay"].get("p95_ms")
    in_time = p95_ms is not None and p95_ms <= limit_ms
    return bool(in_time and told["dropped_share"] < MOST_DROPPED and not told["delay_grows"] and not told["slipped_s"])


def line(told: dict[str, Any], limit_ms: float) -> str:
    """Return one trial as a line for people."""
    delay = told["delay"]
    times = f"p50 {delay['p50_ms']:.0f} p95 {delay['p95_ms']:.0f} ms" if delay["frames"] else "no answer"
    verdict = "carried" if told["within_limit"] else f"too many (limit: p95 {limit_ms:g} ms, 1 % dropped)"
    dropped = f"{100 * told['dropped_share']:.2f} % dropped"
    busy = f"{told['machine_cores']:.1f} cores busy"
    if "server_cores" in told:
        busy += f", {told['server_cores']:.1f} of them by the server"
    return f"{counted(told['streams'], 'camera')}: {times}, {dropped}; {busy}: {verdict}"
