"""Runs tritonserver and makes sure that it never outlives the process that wanted it.

Run as a file by the process that supervises the server (`start_guardian`), with the standard library only, so that it
is up in milliseconds. Standard input is the lifeline: as long as the supervising process lives, it is open. At its end,
whether closed or because that process was killed, the server is drained and stopped, and its processes, shared memory
and folder are removed. One byte on it asks for the same without draining.

A separate process, because a death signal set in a forked child of the supervising process would follow the thread that
forked, and because forking in a process with gRPC threads is not safe.

What the server makes is for its user alone: its shared memory holds everybody's frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SHARED_MEMORY = Path("/dev/shm")
KILL = b"k"
POLL_S = 0.02
LOG_PERIOD_S = 1.0  # between looks at the size of the log
# Triton counts an executing request of the python backend as done; it ends when its model is unloaded. What follows
# (the server's own clean-up) takes a second more and saves nothing.
UNLOADED = b"successfully unloaded '"
PRIVATE_UMASK = 0o077
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2  # else older kernels slow the whole process down
# What the kernel calls the machine, and its numbers of the calls seccomp and fchmod (linux/audit.h, asm/unistd.h).
_KERNEL_NUMBERS = {"x86_64": (0xC000003E, 317, 91), "aarch64": (0xC00000B7, 277, 52)}


class Guarded(NamedTuple):
    """What a guardian runs, and what belongs to it."""

    command: list[str]
    log: str  # where it writes
    log_limit_bytes: int  # then the log is copied to `<log>.1` and started over
    folder: str  # removed when the server is stopped
    shm_prefix: str  # files below /dev/shm that begin so belong to the server
    models: int  # how many it serves
    drain_timeout_s: float  # how long requests in flight may take when it is stopped


def start_guardian(guarded: Guarded, *, environment: dict[str, str], lock: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command under a guardian in a session of its own; return the guardian and the process id of the command.

    lock: on the folder; the guardian keeps it open, too.
    """
    with open(guarded.log, "ab") as output:
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(guarded)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=guarded.folder,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
    pid = guardian.stdout.readline() if guardian.stdout is not None else b""
    return guardian, int(pid or 0)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory files of a server that is gone; Triton leaves them behind when it is killed."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def close_shared_memory(prefix: str) -> None:
    """Take the shared memory files of a server from all other users."""
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            file.chmod(0o600)


def guard(guarded: Guarded) -> int:
    """Run a command until it ends or the lifeline does; return its exit code."""
    wake = _wake_on_child()
    log = Path(guarded.log)
    with log.open("ab") as output:
        server = subprocess.Popen(
            guarded.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_Bond(ctypes.CDLL(None), os.getpid()),
        )
    print(server.pid, flush=True)
    ended_by_us = _wait(server, wake, lambda: limit_log(log, guarded.log_limit_bytes))
    if ended_by_us and os.read(sys.stdin.fileno(), 1) != KILL:
        _drain(server, log, guarded.models, guarded.drain_timeout_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # its stubs, too
    code = server.wait()
    remove_shared_memory(guarded.shm_prefix)
    if ended_by_us:
        shutil.rmtree(guarded.folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


class _Bond:
    """Runs in the server's process before it starts: own process group, own files, and death with the guardian."""

    def __init__(self, libc: ctypes.CDLL, guardian_pid: int) -> None:
        self._libc = libc
        self._guardian_pid = guardian_pid

    def __call__(self) -> None:
        os.setpgid(0, 0)
        os.umask(PRIVATE_UMASK)
        _refuse_to_open_files(self._libc)
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._guardian_pid:
            os._exit(1)


def _refuse_to_open_files(libc: ctypes.CDLL) -> None:
    """Have the kernel answer `fchmod(file, 0644)` of this process and its children with success, and do nothing.

    The python backend's library (Boost) makes its shared memory and then calls just that, whatever the umask. A
    correction afterwards would come too late: who has opened a file by then reads it for as long as it is there.
    Where the kernel cannot do so, the correction is all there is.
    """
    if (name := os.uname().machine) not in _KERNEL_NUMBERS:
        return
    machine, seccomp, fchmod = _KERNEL_NUMBERS[name]
    load, equal, answer = 0x20, 0x15, 0x06  # of the kernel's packet filter: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    steps = [
        # instruction, steps to skip if true, if false, operand; loaded from struct seccomp_data
        (load, 0, 0, 4),
        (equal, 0, 5, machine),
        (load, 0, 0, 0),
        (equal, 0, 3, fchmod),
        (load, 0, 0, 24),  # the lower half of the second argument
        (equal, 0, 1, 0o644),
        (answer, 0, 0, 0x00050000),  # SECCOMP_RET_ERRNO, 0: done
        (answer, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HP", len(steps), ctypes.addressof(code))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, program)


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
    sys.exit(guard(Guarded(*json.loads(sys.argv[1]))))
