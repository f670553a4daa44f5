"""Other processes of this machine, as /proc tells of them."""

from __future__ import annotations

from pathlib import Path


def children_of(pid: int) -> dict[int, str]:
    """Return the child processes of `pid` and when each was started (in the kernel's ticks)."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (status := _status(int(entry.name))) is not None and status[1] == str(pid):
            children[int(entry.name)] = status[19]
    return children


def dead_child(pid: int) -> int | None:
    """Return a child of `pid` that has ended and was not asked about yet, None where there is none."""
    return next((child for child, started in children_of(pid).items() if not is_running(child, started)), None)


def is_running(pid: int, started: str) -> bool:
    """Say whether `pid` is still the process that was started then; a zombie is not running."""
    status = _status(pid)
    return status is not None and status[0] not in ("Z", "X") and status[19] == started


def _status(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the state (field 3) on: state, parent, ..., start time at index 19."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
