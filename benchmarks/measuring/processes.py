"""What processes hold: resident memory now and at most, children, from /proc."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.05


def memory_figures(
    name: str, seen: list[dict[int, tuple[int, int]]], chosen: Callable[[int], bool]
) -> dict[str, float]:
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


def family(root: int) -> list[int]:
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


def resident_kib(pid: int) -> tuple[int, int]:
    """Return what a process holds now and has held at most; zeros when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in status.splitlines())
    now, most = (int(values.get(key, "0 kB").split()[0]) for key in ("VmRSS", "VmHWM"))
    return now, most


def resident_bytes() -> int:
    """Return the memory this process has in use now."""
    return _status_kib("VmRSS") * 1024


def peak_resident_bytes() -> int:
    """Return the most it had in use since `forget_peak`."""
    return _status_kib("VmHWM") * 1024


def forget_peak() -> None:
    """Have the kernel count the peak from now on; where it does not allow that, the peak is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def anonymous_kib(pid: int) -> int:
    """Return the memory of a process that no file backs, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def memory_mib(key: str) -> float:
    """Return what this process holds (VmRSS) or has held at most (VmHWM), in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(key)
