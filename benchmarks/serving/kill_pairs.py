"""Does anything go wrong, or stay behind, when two processes of a service are killed shortly after each other?

`affserve serve` again and again, under load from several clients; two of its processes (server, Python process,
guardian, supervisor, possibly the same kind twice) are killed at random moments. Every answer must be right or a clear
error. Afterwards the service answers again or has ended with an error, and once the next one has been started, nothing
is left: no process, no file in /dev/shm, no folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from affserve.benchmarks.measuring.random_models import Progress
from affserve.client.client import AffectClient
from affserve.export.contract import FRAMES
from affserve.export.server.guardian import SHARED_MEMORY
from affserve.train.errors import AffserveError, ServerError
from affserve.train.windows import Outputs

VICTIMS = ("server", "python process", "guardian", "supervisor")
CLIENTS = 3
RETRY_FOR_S = 3.0  # of a client; so short that some calls end in errors, which must be clear ones
LONGEST_START_S, LONGEST_GAP_S = 1.5, 2.0  # before the first kill, and between the two: within a restart or after it
RECOVERY_S = 120.0  # only turns a hang into a failure
POLL_S = 0.05
TOLERANCE = 1e-3  # the order of sums depends on what shares a batch


def measure_kills(
    repository: Path, pairs: int, scratch: Path, *, seed: int = 0, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Return what each pair of kills did, and what all of them did together."""
    chance = random.Random(seed)
    frames = np.random.default_rng(seed).integers(0, 250, (4, *FRAMES.shape), dtype=np.uint8)
    with _service(repository, scratch) as (_, url):
        expected = _ask(url, frames)
    runs = []
    for number in range(pairs):
        victims = (chance.choice(VICTIMS), chance.choice(VICTIMS))
        progress(f"pair {number + 1} of {pairs}: {', then '.join(victims)}")
        moments_s = (chance.uniform(0, LONGEST_START_S), chance.uniform(0, LONGEST_GAP_S))
        runs.append(_run(repository, scratch, frames, expected, victims, moments_s))
    told = Counter(outcome for run in runs for outcome in run["calls"].elements())
    return {
        "pairs": pairs,
        "seed": seed,
        "right_answers": told["right"],
        "clear_errors": told["clear error"],
        "wrong": told["wrong"],
        "answering_again": sum(run["end"] == "answers" for run in runs),
        "ended_with_an_error": sum(run["end"] in ("ended with an error", "killed") for run in runs),
        "left_over": sum(len(run["left"]) for run in runs),
        "passed": all(run["passed"] for run in runs),
        "runs": [{**run, "calls": dict(run["calls"])} for run in runs],
    }


def _run(
    repository: Path,
    scratch: Path,
    frames: Any,
    expected: Outputs,
    victims: tuple[str, str],
    moments_s: tuple[float, float],
) -> dict[str, Any]:
    calls: Counter[str] = Counter()
    seen = _Seen(scratch)
    stop = threading.Event()
    with _service(repository, scratch) as (process, url):
        workers = [threading.Thread(target=_load, args=(url, frames, expected, calls, stop)) for _ in range(CLIENTS)]
        for worker in workers:
            worker.start()
        hit = []
        for victim, moment_s in zip(victims, moments_s, strict=True):
            _watch(process, seen, moment_s)
            hit.append(_kill(process, victim))
        end = _end(process, url, frames, expected, seen, "supervisor" in hit)
        stop.set()
        for worker in workers:
            worker.join()
    with _service(repository, scratch):
        pass  # the next start clears up what nobody was left to clear up
    left = [f"process {one.pid}" for one in seen.processes.values() if _lives(one)]
    left += [str(path) for path in scratch.glob("affserve-*")]
    left += [str(path) for name in seen.identities for path in SHARED_MEMORY.glob(f"{name}*")]
    left += [str(path) for path in SHARED_MEMORY.glob(f"affserve-client-*-{os.getpid()}-*")]
    good = end in ("answers", "ended with an error") or (end == "killed" and "supervisor" in hit)
    return {
        "victims": hit,
        "moments_s": [round(moment_s, 2) for moment_s in moments_s],
        "calls": calls,
        "end": end,
        "left": left,
        "passed": good and not left and not calls["wrong"],
    }


@contextlib.contextmanager
def _service(repository: Path, scratch: Path) -> Iterator[tuple[psutil.Popen, str]]:
    """Run `affserve serve` with temporary files in `scratch` and yield it with its address."""
    command = [sys.executable, "-m", "affserve.client", "serve", str(repository), "--grpc-port=0", "--threads=1"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (scratch / "serve.log").open("ab") as log:
        process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        line = process.stdout.readline()
        if "grpc://" not in line:
            raise ServerError(f"affserve serve did not start: {(scratch / 'serve.log').read_text()[-1000:]}")
        yield process, line.partition("grpc://")[2].split()[0].rstrip(":")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(RECOVERY_S)
        except psutil.TimeoutExpired:
            process.kill()
        process.stdout.close()


def _ask(url: str, frames: Any) -> Outputs:
    with AffectClient(url, retry_for_s=RETRY_FOR_S, timeout_s=RETRY_FOR_S) as client:
        return client.affect(frames)


def _load(url: str, frames: Any, expected: Outputs, calls: Counter[str], stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with AffectClient(url, retry_for_s=RETRY_FOR_S, timeout_s=RETRY_FOR_S) as client:
                while not stop.is_set():
                    answer = client.affect(frames)
                    same = all(np.allclose(answer[task], values, atol=TOLERANCE) for task, values in expected.items())
                    calls["right" if same else "wrong"] += 1
        except AffserveError:
            calls["clear error"] += 1
            stop.wait(POLL_S)
        except Exception as error:  # noqa: BLE001 - whatever else it is must not be
            calls["wrong"] += 1
            calls[f"a trace: {error!r}"] += 1
            stop.wait(POLL_S)


def _family(process: psutil.Popen) -> dict[str, list[psutil.Process]]:
    """Return the processes of a service by their kind; some may be gone already."""
    found: dict[str, list[psutil.Process]] = {victim: [] for victim in VICTIMS}
    with contextlib.suppress(psutil.NoSuchProcess):
        found["supervisor"] = [process] if _lives(process) else []
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = " ".join(child.cmdline())
                kind = "guardian" if "guardian.py" in words else "python process"
                found["server" if child.name() == "tritonserver" else kind].append(child)
    return found


class _Seen:
    """All that has belonged to a service, restarts included."""

    def __init__(self, scratch: Path) -> None:
        self.processes: dict[int, psutil.Process] = {}
        self.identities: set[str] = set()  # how the names of its folders and shared memory begin
        self._scratch = scratch

    def look(self, process: psutil.Popen) -> None:
        """Note what belongs to it now."""
        self.processes |= {one.pid: one for members in _family(process).values() for one in members}
        self.identities |= {path.name.rpartition("-")[0] for path in self._scratch.glob("affserve-*")}


def _watch(process: psutil.Popen, seen: _Seen, for_s: float) -> None:
    """Note the processes of a service for a while."""
    until_s = time.monotonic() + for_s
    while True:
        seen.look(process)
        if time.monotonic() > until_s:
            return
        time.sleep(min(POLL_S, max(0.0, until_s - time.monotonic())))


def _kill(process: psutil.Popen, victim: str) -> str:
    """Kill one process of a kind; where there is none now, such as within a restart, another's of the service."""
    family = {kind: members for kind, members in _family(process).items() if members}
    if not family:
        return "nobody: all were gone"
    kind = victim if victim in family else next(iter(family))
    with contextlib.suppress(psutil.NoSuchProcess):
        random.choice(family[kind]).kill()
    return kind


def _end(process: psutil.Popen, url: str, frames: Any, expected: Outputs, seen: _Seen, killed: bool) -> str:
    """Return how it ended: with right answers, with an error, by our own kill, or not at all."""
    until_s = time.monotonic() + RECOVERY_S
    while time.monotonic() < until_s:
        _watch(process, seen, POLL_S)
        if (code := process.poll()) is not None:
            return "killed" if killed else "ended with an error" if code else "ended as if all were well"
        if not killed:
            with contextlib.suppress(AffserveError):
                answer = _ask(url, frames)
                right = all(np.allclose(answer[task], values, atol=TOLERANCE) for task, values in expected.items())
                return "answers" if right else "answers wrongly"
    return "neither answers nor ends"


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
