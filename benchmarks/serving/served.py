"""What the server costs: the client's stream of chunks against the same graph in one's own process, in turns.

In-process is one loop around ONNX Runtime with the server's threads and session options, the fastest that code without
a server can be. Served is `AffectClient.encode_stream` on the same frames, client and server on the same cores. Figures
are medians over rounds; a round runs each way once, so that whatever else the machine does disturbs all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.random_models import Progress, generated_faces, random_checkpoints, repository_of
from affserve.client.client import AffectClient
from affserve.client.wire.transport import Transport
from affserve.export.artefacts.sessions import Candidate, open_session
from affserve.export.artefacts.timing import in_turns
from affserve.export.contract import CHUNK_FRAMES, CLIP_ENCODER, FRAMES
from affserve.export.engine_sets import ONNX_FILE
from affserve.export.machine.cores import usable_cores
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.placement import LocalTarget, require_manifest
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer

IN_PROCESS = "in_process"
BARS = {Transport.SHM.value: 0.97, Transport.RAW.value: 0.95}  # of the frames per second in-process


def measure_served(
    architecture: str,
    precision: Precision,
    threads: int | None,
    *,
    rounds: int,
    chunks: int,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Return frames per second in-process and served, and their ratios; weights are random."""
    threads = threads or usable_cores()
    repository = repository_of(random_checkpoints(architecture), precision, progress=progress)
    frames = np.ascontiguousarray(generated_faces()[:CHUNK_FRAMES])
    progress("speed")
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(ServerConfig(repository=repository, threads=threads)))
        clients = {
            name: stack.enter_context(AffectClient(server.grpc_url, transport=name))
            for name in (Transport.SHM.value, Transport.RAW.value)
        }
        runs = {IN_PROCESS: _in_process(repository, frames, threads, chunks)}
        runs |= {name: _served(client, frames, chunks) for name, client in clients.items()}
        times_s = in_turns(list(runs.values()), rounds)
        engine = server.engine
    return {
        "architecture": architecture,
        "precision": precision.value,
        "weights": "random",
        "threads": threads,
        "engine": engine,
        "chunk_frames": CHUNK_FRAMES,
        "chunks_per_run": chunks,
        "rounds": rounds,
        **compared(dict(zip(runs, times_s, strict=True)), CHUNK_FRAMES * chunks),
    }


def _in_process(repository: Path, frames: NDArray[np.uint8], threads: int, chunks: int) -> Callable[[], None]:
    """Return a call that encodes the chunks one after the other in this process."""
    run = open_session(repository / CLIP_ENCODER.name / "1" / ONNX_FILE, _encoder_of(repository), threads)

    def encode() -> None:
        for _ in range(chunks):
            run({FRAMES.name: frames})

    return encode


def _encoder_of(repository: Path) -> Candidate:
    """Return how the repository computes its encoder on a CPU."""
    manifest = require_manifest(LocalTarget(repository))
    engine, precision = manifest.versions[manifest.served].computed_by()[CLIP_ENCODER.name]
    return Candidate(Precision(precision), engine)


def _served(client: AffectClient, frames: NDArray[np.uint8], chunks: int) -> Callable[[], None]:
    def encode() -> None:
        for _ in client.encode_stream(frames for _ in range(chunks)):
            pass

    return encode


def compared(times_s: Mapping[str, Sequence[float]], frames: int) -> dict[str, Any]:
    """Return the speed of each way over runs of so many frames, and the ratios that the bars are about."""
    medians_s = {name: statistics.median(times) for name, times in times_s.items()}
    ratios = {name: round(medians_s[IN_PROCESS] / medians_s[name], 4) for name in BARS}
    return {
        "frames_per_second": {name: round(frames / median_s, 2) for name, median_s in medians_s.items()},
        "of_in_process": ratios,
        "bars": BARS,
        "passed": all(ratios[name] >= bar for name, bar in BARS.items()),
        "run_s": {name: [round(one, 4) for one in times] for name, times in times_s.items()},
    }
