"""Which of several graphs is fastest on this machine, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file measures with it
from numpy.typing import NDArray

from affserve.export.artefacts.parity import Artefact
from affserve.export.contract import CLIP_ENCODER, FEATURE_WIDTH, FEATURES, FRAMES
from affserve.export.machine.cores import usable_cores
from affserve.train.errors import ExportError
from affserve.train.windows import WINDOW_FRAMES

TIMED_BATCH_FRAMES = 8
TIMED_ROUNDS = 5


def with_times(artefacts: Sequence[Artefact], threads: int | None = None) -> list[Artefact]:
    """Return artefacts of one model with how long ONNX Runtime takes for each on this CPU.

    threads: as the server will have them; the physical cores unless given.
    """
    runs = [runner(artefact.path, timed_feed(artefact.model), threads) for artefact in artefacts]
    times_s = in_turns(runs, TIMED_ROUNDS)
    return [replace(one, run_s=statistics.median(times)) for one, times in zip(artefacts, times_s, strict=True)]


def timed_feed(model: str, batch: int = TIMED_BATCH_FRAMES) -> dict[str, NDArray[Any]]:
    """Return inputs of a usual size: a batch of frames, or a whole window."""
    rng = np.random.default_rng(0)
    if model == CLIP_ENCODER.name:
        return {FRAMES.name: rng.integers(0, 256, (batch, *FRAMES.shape), dtype=np.uint8)}
    return {FEATURES.name: rng.standard_normal((1, WINDOW_FRAMES, FEATURE_WIDTH)).astype(np.float32)}


def open_as_served(path: Path, threads: int, provider: str = "CPUExecutionProvider") -> ort.InferenceSession:
    """Open a graph with the options of backends/onnxruntime; ExportError when `provider` cannot be used."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    session = ort.InferenceSession(str(path), options, providers=[*dict.fromkeys((provider, "CPUExecutionProvider"))])
    if session.get_providers()[0] != provider:
        raise ExportError(f"ONNX Runtime could not use {provider} for {path}; its own message is above")
    return session


def runner(path: Path, feed: Mapping[str, NDArray[Any]], threads: int | None = None) -> Callable[[], None]:
    """Open a graph as the server does and return a call that runs it once."""
    session = open_as_served(path, threads or usable_cores())
    return lambda: session.run(None, dict(feed)) and None


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call, run after run in every round: what disturbs one disturbs all."""
    for run in runs:
        run()
    times_s: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, times_s, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return times_s
