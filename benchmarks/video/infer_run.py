"""One run of `affserve infer` in a process of its own, with the memory of client and server.

Peaks are the kernel's own high-water marks (VmHWM), which catch every short-lived buffer and so rise a little with the
number of occasions; medians of the resident size tell whether anything stays.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.processes import family, memory_mib

POLL_S = 0.1
Sample = dict[int, tuple[float, float]]  # by process: resident now and at most, MiB


def run_infer(video: Path, csv: Path, *options: str) -> dict[str, Any]:
    """Run `affserve infer` and return the memory of client and server in MiB, its own summary, and the time it took."""
    command = [sys.executable, "-m", "affserve.client", "infer", str(video), "--out", str(csv), "--no-plot", "--json"]
    started = time.monotonic()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    seen: list[Sample] = []
    # The summary is one line, far below what a pipe holds: nobody needs to read while the command runs.
    while process.poll() is None:
        seen.append({pid: (memory_mib("VmRSS", pid), memory_mib("VmHWM", pid)) for pid in family(process.pid)})
        time.sleep(POLL_S)
    told, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [*command, *options])
    return {
        **_figures("client", seen, lambda pid: pid == process.pid),
        **_figures("server", seen, lambda pid: pid != process.pid),
        "command_s": round(time.monotonic() - started, 3),
        "summary": json.loads(told),
    }


def _figures(name: str, seen: list[Sample], chosen: Callable[[int], bool]) -> dict[str, float]:
    """Return what a group of processes held, in MiB: typically, in the second half of the run, and at most."""
    typical = statistics.median(
        sum(now for pid, (now, _) in sample.items() if chosen(pid)) for sample in seen[len(seen) // 2 :]
    )
    peaks: dict[int, float] = {}
    for sample in seen:
        peaks |= {pid: max(peaks.get(pid, 0), most) for pid, (_, most) in sample.items() if chosen(pid)}
    return {f"{name}_median_mib": round(typical, 1), f"{name}_peak_mib": round(sum(peaks.values()), 1)}
