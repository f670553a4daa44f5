"""Does the memory of `affserve infer` grow with the length of a video?

The same generated film is played once and again until the length asked for, so that only length changes. Peaks are the
kernel's own high-water marks (VmHWM) of the client and of the server's processes, read while they run.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

POLL_S = 0.05
FPS = 30
HIGH_WATER = "VmHWM:"


def measure_memory(repository: Path, film: Path, lengths: list[int], scratch: Path) -> dict[str, Any]:
    """Return, for each length in frames, the peak resident memory in MiB of client and server and the time taken."""
    rows = []
    for frames in lengths:
        video = loop_film(film, frames, scratch / f"{frames}.mp4")
        started = time.monotonic()
        peaks = _run_infer(video, repository, scratch / f"{frames}.csv")
        rows.append({"frames": frames, "seconds": round(time.monotonic() - started, 1), **peaks})
        video.unlink()
    first, last = rows[0], rows[-1]
    growth = {key: round(last[key] / first[key], 3) for key in ("client_peak_mib", "server_peak_mib")}
    return {"film": film.name, "rows": rows, "last_to_first": growth}


def loop_film(film: Path, frames: int, target: Path) -> Path:
    """Write a film of exactly `frames` frames by playing another one over and over."""
    with av.open(str(target), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        for number, frame in enumerate(itertools.islice(_played_forever(film), frames)):
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


def _run_infer(video: Path, repository: Path, csv: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "affserve.client", "infer", str(video), "--repository", str(repository)]
    process = subprocess.Popen([*command, "--out", str(csv), "--no-plot", "--quiet"])
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in _family(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), _high_water_kib(pid))
        time.sleep(POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    client = peaks.pop(process.pid)
    return {"client_peak_mib": round(client / 1024, 1), "server_peak_mib": round(sum(peaks.values()) / 1024, 1)}


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


def _high_water_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(HIGH_WATER)), 0)
