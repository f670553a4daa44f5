"""What processes hold, and who belongs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from affserve.train.errors import MissingExtraError


def find_psutil() -> Any:
    """Return the module; MissingExtraError when it is not installed."""
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("psutil", "bench") from error
    return psutil


def family(root: int) -> list[int]:
    """Return a process and everything below it; nothing when it has just ended."""
    psutil = find_psutil()
    try:
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def memory_mib(key: str, pid: int | str = "self") -> float:
    """Return what a process holds (VmRSS) or has held at most (VmHWM), in MiB; 0 when it has just ended.

    From the kernel's own file: psutil does not tell the peak.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kib = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), "0")  # a zombie holds nothing
    return round(int(kib) / 1024, 1)


def forget_peak() -> None:
    """Have the kernel count the peak from now on; where it does not allow that, the peak is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
