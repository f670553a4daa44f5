"""The graph of heads that stream: made, compared with PyTorch frame by frame, and in the faster precision that passes.

It is served by ONNX Runtime on a CPU for every engine set. INT8 is for the weights: a frame alone reads all of them and
computes little. Scales are constants and each frame's products have the same shape in every run, so that INT8, too,
gives the same bits one frame at a time and three hundred together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file compares by it
from numpy.typing import NDArray

from affserve.export.artefacts import parity
from affserve.export.artefacts.choice import Chosen, passing
from affserve.export.artefacts.comparing import fault, output_checks
from affserve.export.artefacts.material import Material
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.sessions import open_graph
from affserve.export.artefacts.timing import TIMED_ROUNDS, in_turns
from affserve.export.contract import CPU, FEATURE_WIDTH, FEATURES, NEXT_STATE, STATE, TEMPORAL_STREAM
from affserve.export.graphs.onnx_file import export_stream
from affserve.export.machine.cores import usable_cores
from affserve.export.precision.int8 import Feed, calibrate, quantize
from affserve.export.precision.tolerances import TOLERANCES, Precision
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

ALONE_FRAMES = 40  # of a window that go one at a time, before the rest goes at once
CALIBRATION_FRAMES = 300
CALIBRATION_STEP_FRAMES = 60
TIMED_CALLS = 20  # of one frame

Floats = NDArray[np.float32]


def make_stream(
    encoder: ClipEncoder,
    truth: parity.Truth,
    late: int,
    folder: Path,
    material: Material,
    asked: Precision | None,
    progress: Callable[[str], None],
) -> Chosen:
    """Write the stream graph of the heads of `truth` below `folder`; ParityError when no precision passes.

    late: the heads' look-ahead, frames. asked: a precision that a CPU has, or else both are tried.
    """
    progress(f"{TEMPORAL_STREAM.name} in {Precision.FP32.value}")
    plain = folder / f"{TEMPORAL_STREAM.name}.fp32.onnx"
    export_stream(truth.graph, plain)
    made = {Precision.FP32: _judged(plain, Precision.FP32, truth, late)}
    if asked is not Precision.FP32 and len(material.calibration):
        progress(f"{TEMPORAL_STREAM.name} in {Precision.INT8.value}")
        small = folder / f"{TEMPORAL_STREAM.name}.int8.onnx"
        quantize(calibrate(plain, _feeds(plain, encoder, material)), small)
        made[Precision.INT8] = _judged(small, Precision.INT8, truth, late)
    return _chosen(made, Precision.INT8 if asked is Precision.INT8 else None)


def _judged(path: Path, precision: Precision, truth: parity.Truth, late: int) -> Artefact:
    window, expected = truth.windows[-1], truth.outputs[-1]
    answer = streamed(open_graph(path, usable_cores()), window, ALONE_FRAMES, late)
    checks = output_checks(WINDOW_FRAMES, expected, answer, TOLERANCES[precision])
    return Artefact(model=TEMPORAL_STREAM.name, precision=precision, path=path, checks=checks)


def streamed(session: ort.InferenceSession, features: Floats, alone: int, late: int = 0) -> dict[str, Floats]:
    """Return the answers (T, K) by task to features (1, T, D) that go through a stream graph.

    alone: how many of the first frames go one at a time; the rest goes at once. late: the look-ahead, frames; the last
    frame is held for as long.
    """
    held = np.concatenate([features, np.repeat(features[:, -1:], late, axis=1)], axis=1)  # (1, T + L, D)
    names = [output.name for output in session.get_outputs()]
    parts: list[dict[str, Floats]] = []
    state = nothing(session)
    bounds = [*range(alone), *range(alone, held.shape[1], WINDOW_FRAMES), held.shape[1]]
    for start, end in pairwise(bounds):
        feed = {FEATURES.name: held[:, start:end], STATE.name: state}
        parts.append(dict(zip(names, session.run(names, feed), strict=True)))
        state = parts[-1].pop(NEXT_STATE.name)
    return {name: np.concatenate([part[name][0] for part in parts])[late:] for name in parts[0]}


def nothing(session: ort.InferenceSession) -> Floats:
    """Return the state (S,) of a stream before its first frame."""
    (shape,) = (one.shape for one in session.get_inputs() if one.name == STATE.name)
    return np.zeros(shape, dtype=np.float32)


def _feeds(path: Path, encoder: ClipEncoder, material: Material) -> Iterator[Feed]:
    """Steps of a stream of the calibration crops' features, with the states that they meet."""
    step = -(-len(material.calibration) // CALIBRATION_FRAMES)
    features = parity.encode(encoder, material.calibration[::step])
    features = np.resize(features, (CALIBRATION_FRAMES, FEATURE_WIDTH))
    session = open_graph(path, usable_cores())
    state = nothing(session)
    for start in range(0, CALIBRATION_FRAMES, CALIBRATION_STEP_FRAMES):
        feed: dict[str, NDArray[Any]] = {
            FEATURES.name: features[None, start : start + CALIBRATION_STEP_FRAMES],
            STATE.name: state,
        }
        yield feed
        (state,) = session.run([NEXT_STATE.name], feed)


def _chosen(made: Mapping[Precision, Artefact], asked: Precision | None) -> Chosen:
    passed = passing([one for one in made.values() if asked in (None, one.precision)])
    if len(passed) > 1:
        times_s = in_turns([partial(_run_often, *_opened(one.path)) for one in passed], TIMED_ROUNDS)
        passed = [replace(one, run_s=median(times) / TIMED_CALLS) for one, times in zip(passed, times_s, strict=True)]
    best = min(passed, key=lambda one: one.run_s)
    notes = tuple(
        f"{best.model} is {best.precision.value}, not {one.precision.value}: {fault(one.checks)}"
        for one in made.values()
        if not one.passed
    )
    return Chosen(use=CPU, artefact=best, notes=notes)


def _opened(path: Path) -> tuple[ort.InferenceSession, dict[str, Floats]]:
    session = open_graph(path, usable_cores())
    frame = np.random.default_rng(0).standard_normal((1, 1, FEATURE_WIDTH)).astype(np.float32)
    return session, {FEATURES.name: frame, STATE.name: nothing(session)}


def _run_often(session: ort.InferenceSession, feed: dict[str, Floats]) -> None:
    for _ in range(TIMED_CALLS):
        session.run(None, feed)
