"""Which of several graphs is fastest on this machine, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.sessions import open_session
from affserve.export.contract import CLIP_ENCODER, FEATURE_WIDTH, FEATURES, FRAMES
from affserve.train.windows import WINDOW_FRAMES

TIMED_BATCH_FRAMES = 8
TIMED_ROUNDS = 5


def with_times(artefacts: Sequence[Artefact]) -> list[Artefact]:
    """Return artefacts of one model with how long their engines take for each on this CPU."""
    times_s = in_turns([_runner(artefact) for artefact in artefacts], TIMED_ROUNDS)
    return [replace(one, run_s=statistics.median(times)) for one, times in zip(artefacts, times_s, strict=True)]


def _timed_feed(model: str) -> dict[str, NDArray[Any]]:
    """Return inputs of a usual size: a batch of frames, or a whole window."""
    rng = np.random.default_rng(0)
    if model == CLIP_ENCODER.name:
        return {FRAMES.name: rng.integers(0, 256, (TIMED_BATCH_FRAMES, *FRAMES.shape), dtype=np.uint8)}
    return {FEATURES.name: rng.standard_normal((1, WINDOW_FRAMES, FEATURE_WIDTH)).astype(np.float32)}


def _runner(artefact: Artefact) -> Callable[[], object]:
    """Open an artefact as the server does and return a call that runs it once."""
    session, feed = open_session(artefact.path, artefact.candidate), _timed_feed(artefact.model)
    return lambda: session(feed)


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
