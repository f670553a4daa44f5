"""Runs tritonserver and makes sure that it never outlives the process that wanted it.

Run as a file by the process that supervises the server (`start_guardian`), with the standard library only, so that it
is up in milliseconds. Standard input is the lifeline: as long as the supervising process lives, it is open. At its end,
whether closed or because that process was killed, the server is drained and stopped, and its processes, shared memory
and folder are removed. One byte on it asks for the same without draining.

A separate process, because a death signal set in a forked child of the supervising process would follow the thread that
forked, and because forking in a process with gRPC threads is not safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
KILL = b"k"
POLL_S = 0.02
LOG_PERIOD_S = 1.0  # between looks at the size of the log
# Triton counts an executing request of the python backend as done; it ends when its model is unloaded. What follows
# (the server's own clean-up) takes a second more and saves nothing.
UNLOADED = b"successfully unloaded '"
_PR_SET_PDEATHSIG = 1


def start_guardian(
    command: list[str],
    *,
    environment: dict[str, str],
    log: Path,
    log_limit_bytes: int,
    folder: Path,
    shm_prefix: str,
    models: int,
    drain_timeout_s: float,
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `command` under a guardian in a session of its own; return the guardian and the process id of `command`.

    log: where `command` writes; copied to `<log>.1` and started over when it exceeds log_limit_bytes.
    folder: removed when the server is stopped. shm_prefix: files below /dev/shm that begin so belong to the server.
    models: how many it serves. drain_timeout_s: how long requests in flight may take when it is stopped.
    """
    settings = {
        "command": command,
        "log": str(log),
        "log_limit_bytes": log_limit_bytes,
        "folder": str(folder),
        "shm_prefix": shm_prefix,
        "models": models,
        "drain_timeout_s": drain_timeout_s,
    }
    with log.open("ab") as output:
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    pid = guardian.stdout.readline() if guardian.stdout is not None else b""
    return guardian, int(pid or 0)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory files of a server that is gone; Triton leaves them behind when it is killed."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def guard(settings: dict[str, Any]) -> int:
    """Run the command of `settings` until it ends or the lifeline does; return its exit code."""
    wake = _wake_on_child()
    log = Path(settings["log"])
    with log.open("ab") as output:
        server = subprocess.Popen(
            settings["command"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_Bond(ctypes.CDLL(None), os.getpid()),
        )
    print(server.pid, flush=True)
    ended_by_us = _wait(server, wake, lambda: limit_log(log, settings["log_limit_bytes"]))
    if ended_by_us and os.read(sys.stdin.fileno(), 1) != KILL:
        _drain(server, log, settings["models"], settings["drain_timeout_s"])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # its stubs, too
    code = server.wait()
    remove_shared_memory(settings["shm_prefix"])
    if ended_by_us:
        shutil.rmtree(settings["folder"], ignore_errors=True)
    return code if code >= 0 else 128 - code


class _Bond:
    """Runs in the server's process before it starts: own process group, and death together with the guardian."""

    def __init__(self, libc: ctypes.CDLL, guardian_pid: int) -> None:
        self._libc = libc
        self._guardian_pid = guardian_pid

    def __call__(self) -> None:
        os.setpgid(0, 0)
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._guardian_pid:
            os._exit(1)


def _wake_on_child() -> int:
    """Return a file descriptor that becomes readable when a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return readable


def _wait(server: subprocess.Popen[bytes], wake: int, now_and_then: Callable[[], None]) -> bool:
    """Wait for the lifeline (True) or for the end of the server (False)."""
    lifeline = sys.stdin.fileno()
    while server.poll() is None:
        ready, _, _ = select.select([lifeline, wake], [], [], LOG_PERIOD_S)
        if lifeline in ready:
            return True
        if wake in ready:
            os.read(wake, 1)
        now_and_then()
    return False


def limit_log(log: Path, limit_bytes: int) -> None:
    """Start the log over when it has grown too large; what is written during the copy may be lost.

    The server keeps its open file, which it only appends to: it goes on at the new end.
    """
    with contextlib.suppress(OSError):  # a full disk must not end the server
        if log.stat().st_size > limit_bytes:
            shutil.copyfile(log, f"{log}.1")
            os.truncate(log, 0)


def _drain(server: subprocess.Popen[bytes], log: Path, models: int, timeout_s: float) -> None:
    """Let the server finish what it has begun."""
    seen = b""
    with log.open("rb") as lines:
        lines.seek(0, os.SEEK_END)
        server.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while server.poll() is None and seen.count(UNLOADED) < models and time.monotonic() < deadline:
            time.sleep(POLL_S)
            seen += lines.read()


if __name__ == "__main__":
    sys.exit(guard(json.loads(sys.argv[1])))
