"""Does a killed server cost a frame? `affserve infer` again and again, while processes of its server are killed; with a
head that streams, in every second run the live path, one frame at a time (live_rows.py).

In each run the supervised server, or one of its Python processes (encoder, head, JPEG decoder), is killed without
warning at a random moment between the first and the last answer; the CSV is compared byte for byte with that of an
undisturbed run. A run that was over before the moment came is made again, with an earlier one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from affserve.benchmarks.measuring.random_models import Progress
from affserve.client.client import AffectClient
from affserve.export.contract import CLIP_ENCODER
from affserve.export.machine.processes import children_of
from affserve.export.server.config import ServerConfig
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import DataError

SERVER, STUB = "server", "python stub"
INFER, LIVE = "infer", "live"
POLL_S = 0.02
PROBE_TIMEOUT_S = 5.0
FIRST_ANSWER_TIMEOUT_S = 60.0
FIRST_FRAMES = 10  # answered, after which the client surely is at work: the server asks itself for one now and then
ATTEMPTS = 10  # to kill something before a run is over


@dataclass(frozen=True, kw_only=True)
class Run:
    """One analysis of a film."""

    csv: bytes
    seconds: float  # from the first answer to the end
    struck: bool = False  # something was killed before the end


def measure_faults(
    repository: Path, film: Path, kills: int, scratch: Path, *, seed: int = 0, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Return what each kill did: to whom, when, what it cost, and whether the CSV is the same."""
    chance = random.Random(seed)
    progress("undisturbed")
    with _server(repository, []) as server:
        expected = _run(INFER, server.grpc_url, film, scratch / "expected.csv")
        with AffectClient(server.grpc_url) as client:
            paths = (INFER, LIVE) if client.describe().stream is not None else (INFER,)
    runs = []
    for number in range(kills):
        progress(f"kill {number + 1} of {kills}")
        path, victim = paths[number % len(paths)], chance.choice((SERVER, STUB))
        after_s = chance.uniform(0, expected.seconds)
        events: list[Mapping[str, object]] = []
        for _ in range(ATTEMPTS):
            events.clear()
            # A server of its own for each: one that is killed five times within a minute is rightly given up.
            with _server(repository, events) as server:
                pid = server.pid if victim == SERVER else chance.choice(sorted(children_of(server.pid)))
                run = _run(path, server.grpc_url, film, scratch / "disturbed.csv", kill=(pid, after_s))
            if run.struck:
                break
            after_s = min(after_s, run.seconds) * chance.random()
        else:
            raise DataError(f"{film} was over {ATTEMPTS} times before anything was killed; expected a longer film")
        runs.append(
            {
                "path": path,
                "killed": victim,
                "after_s": round(after_s, 3),
                "seconds": round(run.seconds, 2),
                "restarts": sum(event["event"] == "restarting" for event in events),
                "identical": run.csv == expected.csv,
                **({} if run.csv == expected.csv else {"first_difference": _first_difference(expected.csv, run.csv)}),
            }
        )
    return {
        "film": film.name,
        "rows": expected.csv.count(b"\n") - 1,
        "undisturbed_s": round(expected.seconds, 2),
        "kills": kills,
        "identical": sum(run["identical"] for run in runs),
        "passed": all(run["identical"] for run in runs),
        "runs": runs,
    }


@contextmanager
def _server(repository: Path, events: list[Mapping[str, object]]) -> Iterator[SupervisedServer]:
    config = ServerConfig(repository=repository, drain_timeout_s=0)
    with SupervisedServer(config, on_event=events.append) as server:
        yield server


def _run(path: str, url: str, film: Path, csv: Path, kill: tuple[int, float] | None = None) -> Run:
    """Analyse a film in a process of its own; kill: which process, and how long after the first answer, s."""
    command = [sys.executable, "-m", "affserve.benchmarks.serving.live_rows", str(film), url, str(csv)]
    if path == INFER:
        command = [sys.executable, "-m", "affserve.client", "infer", str(film), "--url", url, "--out", str(csv)]
        command += ["--no-plot", "--quiet"]
    with triton.InferenceServerClient(url) as asked:
        before = _answers(asked)
        with subprocess.Popen(command) as process:
            deadline_s = time.monotonic() + FIRST_ANSWER_TIMEOUT_S
            while _answers(asked) < before + FIRST_FRAMES and process.poll() is None:
                if time.monotonic() > deadline_s:
                    process.kill()
                time.sleep(POLL_S)
            began_s = time.monotonic()
            struck = False
            if kill is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(kill[1])
                if struck := process.poll() is None:
                    os.kill(kill[0], signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise DataError(f"{path} of {film} ended with exit code {process.returncode}; its message is above")
    return Run(csv=csv.read_bytes(), seconds=time.monotonic() - began_s, struck=struck)


def _first_difference(expected: bytes, found: bytes) -> list[str]:
    """Return the first line that differs, as it should be and as it is."""
    pairs = itertools.zip_longest(expected.decode().splitlines(), found.decode().splitlines(), fillvalue="")
    return next(([one, other] for one, other in pairs if one != other), [])


def _answers(asked: triton.InferenceServerClient) -> int:
    """Return how many frames the encoder has answered."""
    statistics = asked.get_inference_statistics(CLIP_ENCODER.name, client_timeout=PROBE_TIMEOUT_S)
    return sum(int(model.inference_count) for model in statistics.model_stats)
