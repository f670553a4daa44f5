"""One GPU, the other one, and both: how much faster does a second one make the service?

Every GPU has a server of its own, which sees only that GPU; one client sends to one of them or, behind round robin, to
all. All servers stand ready during the whole run and take turns, so that heat and clocks are alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.gpus import VISIBLE, server_on
from affserve.benchmarks.measuring.random_models import Progress, generated_faces
from affserve.benchmarks.measuring.server_side import GpuWatch
from affserve.client.client import AffectClient
from affserve.export.contract import CHUNK_FRAMES

CHUNKS_IN_FLIGHT = 4  # for each server
ALL = "all"


def measure_gpus(
    repository: Path, engine: str, gpus: Sequence[int], frames: int, rounds: int, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Return frames/s of each GPU by itself and of all together, the scaling factor, and power where it is told."""
    faces = generated_faces()[:CHUNK_FRAMES]
    crops = np.resize(faces, (frames, *faces.shape[1:]))
    with ExitStack() as stack:
        urls = [stack.enter_context(server_on({VISIBLE: str(gpu)}, repository, engine)) for gpu in gpus]
        sides = {str(gpu): url for gpu, url in zip(gpus, urls, strict=True)}
        if len(gpus) > 1:
            sides[ALL] = ",".join(urls)
        clients = {
            name: stack.enter_context(AffectClient(url, chunks_in_flight=CHUNKS_IN_FLIGHT * len(url.split(","))))
            for name, url in sides.items()
        }
        for name, client in clients.items():
            progress(f"GPU {name}: warming up")
            client.encode(crops)
        rows = _in_turns(clients, crops, rounds, progress)
    measured = {"engine": engine, "frames": frames, "rounds": rounds, "gpus": rows}
    if len(gpus) > 1:
        alone = statistics.mean(rows[str(gpu)]["frames_per_s"] for gpu in gpus)
        measured["scaling_factor"] = round(rows[ALL]["frames_per_s"] / alone, 3)
    return measured


def _in_turns(
    clients: Mapping[str, AffectClient], crops: NDArray[np.uint8], rounds: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    times_s: dict[str, list[float]] = {name: [] for name in clients}
    watched: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for name, client in clients.items():
            with GpuWatch() as watch:
                started = time.perf_counter()
                client.encode(crops)
                times_s[name].append(time.perf_counter() - started)
            watched[name] = watch.figures()  # of the last round: what stands warm
    return {
        name: {
            "frames_per_s": round(len(crops) / statistics.median(values), 1),
            "times_s": [round(value, 4) for value in values],
            **({"watched": watched[name]} if watched[name] else {}),
        }
        for name, values in times_s.items()
    }
