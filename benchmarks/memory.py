"""Does the memory of `affserve infer` grow with the length of a video?

The same generated film is played once and again until the length asked for, so that only length changes. Peaks are the
kernel's own high-water marks (VmHWM), which catch every short-lived buffer and so rise a little with the number of
occasions; medians of the resident size tell whether anything stays.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

POLL_S = 0.05
FPS = 30


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


def loop_film(film: Path, frames: int, target: Path) -> Path:
    """Write a film of exactly `frames` frames by playing another one over and over."""
    return write_film(itertools.islice(_played_forever(film), frames), target)


def write_film(frames: Iterable[av.VideoFrame], target: Path) -> Path:
    """Write frames, all as large as the first one, as a film of FPS."""
    with av.open(str(target), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target


def _played_forever(film: Path) -> Iterator[av.VideoFrame]:
    while True:
        with av.open(str(film)) as source:
            yield from source.decode(video=0)


def run_infer(video: Path, csv: Path, *options: str) -> dict[str, Any]:
    """Run `affserve infer` and return the memory of client and server in MiB, its own summary, and the time it took."""
    command = [sys.executable, "-m", "affserve.client", "infer", str(video), "--out", str(csv), "--no-plot", "--json"]
    started = time.monotonic()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    seen: list[dict[int, tuple[int, int]]] = []  # by process: resident now and at most, KiB
    # The summary is one line, far below what a pipe holds: nobody needs to read while the command runs.
    while process.poll() is None:
        seen.append({pid: _resident_kib(pid) for pid in _family(process.pid)})
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


def _figures(name: str, seen: list[dict[int, tuple[int, int]]], chosen: Callable[[int], bool]) -> dict[str, float]:
    """Return what a group of processes held, in MiB: typically, in the second half of the run, and at most."""
    typical = statistics.median(
        sum(now for pid, (now, _) in sample.items() if chosen(pid)) for sample in seen[len(seen) // 2 :]
    )
    peaks: dict[int, int] = {}
    for sample in seen:
        for pid, (_, most) in sample.items():
            peaks[pid] = max(peaks.get(pid, 0), most)
    peak = sum(most for pid, most in peaks.items() if chosen(pid))
    return {f"{name}_median_mib": round(typical / 1024, 1), f"{name}_peak_mib": round(peak / 1024, 1)}


def _family(root: int) -> list[int]:
    """Return a process and everything below it."""
    family = [root]
    for pid in family:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            threads = Path(f"/proc/{pid}/task").iterdir()
            for thread in threads:
                children += (thread / "children").read_text().split()
        except OSError:
            continue  # it has just ended
        family += [int(child) for child in dict.fromkeys(children) if int(child) not in family]
    return family


def _resident_kib(pid: int) -> tuple[int, int]:
    """Return what a process holds now and has held at most; zeros when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in status.splitlines())
    now, most = (int(values.get(key, "0 kB").split()[0]) for key in ("VmRSS", "VmHWM"))
    return now, most
