"""One run of `affserve infer` in a process of its own, with the memory of client and server.

Peaks are the kernel's own high-water marks (VmHWM), which catch every short-lived buffer and so rise a little with the
number of occasions; medians of the resident size tell whether anything stays.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.films import loop_film
from affserve.benchmarks.measuring.processes import POLL_S, family, memory_figures, resident_kib


def measure_memory(repository: Path, film: Path, lengths: list[int], scratch: Path) -> dict[str, Any]:
    """Return, for each length in frames, the resident memory in MiB of client and server and the time taken."""
    rows = []
    for frames in lengths:
        video = loop_film(film, frames, scratch / f"{frames}.mp4")
        run = run_infer(video, scratch / f"{frames}.csv", "--repository", str(repository))
        peaks = {name: value for name, value in run.items() if name.endswith("_mib")}
        rows.append({"frames": frames, "seconds": round(run["command_s"], 1), **peaks})
        video.unlink()
    first, last = rows[0], rows[-1]
    growth = {key: round(last[key] / first[key], 3) for key in first if key.endswith("_mib")}
    return {"film": film.name, "rows": rows, "last_to_first": growth}


def run_infer(video: Path, csv: Path, *options: str) -> dict[str, Any]:
    """Run `affserve infer` and return the memory of client and server in MiB, its own summary, and the time it took."""
    command = [sys.executable, "-m", "affserve.client", "infer", str(video), "--out", str(csv), "--no-plot", "--json"]
    started = time.monotonic()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    seen: list[dict[int, tuple[int, int]]] = []  # by process: resident now and at most, KiB
    # The summary is one line, far below what a pipe holds: nobody needs to read while the command runs.
    while process.poll() is None:
        seen.append({pid: resident_kib(pid) for pid in family(process.pid)})
        time.sleep(POLL_S)
    told, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [*command, *options])
    return {
        **memory_figures("client", seen, lambda pid: pid == process.pid),
        **memory_figures("server", seen, lambda pid: pid != process.pid),
        "command_s": round(time.monotonic() - started, 3),
        "summary": json.loads(told),
    }
