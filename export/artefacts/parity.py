"""The gate before anything is served: does an artefact compute what the PyTorch model computes?

Compared on real frames and windows plus inputs meant to hurt (black, white, noise, one frame, T = 1, T = 299). Every
check has a figure, a limit and, where there is one, the worst frame; the limits and their reasons are in `precision`.
PyTorch's answers are computed once, as `Truth`, and serve every artefact.
Answers come from the engine that would serve the artefact: another one rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file compares with it
from numpy.typing import NDArray

from affserve.export.artefacts.comparing import Check, Features, Floats, Outputs, feature_checks, output_checks
from affserve.export.artefacts.sessions import Candidate, open_session
from affserve.export.contract import CHUNK_FRAMES, CLIP_ENCODER, FEATURES, FRAMES, IMAGE_SIZE_PX
from affserve.export.engine_sets import ONNX_RUNTIME
from affserve.export.graphs.head import HeadGraph
from affserve.export.precision.tolerances import TOLERANCES, Precision, Tolerance
from affserve.train.models.encoder import ClipEncoder
from affserve.train.windows import WINDOW_FRAMES

SEGMENT_LENGTHS = (1, 2, WINDOW_FRAMES - 1, WINDOW_FRAMES)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What PyTorch computes."""

    frames: NDArray[np.uint8]  # (N + 3, 224, 224, 3): faces, then ADVERSARIAL
    features: Features  # of those frames
    windows: tuple[Floats, ...]  # (1, T, D) each, of SEGMENT_LENGTHS
    outputs: tuple[Outputs, ...]  # of each window
    graph: HeadGraph


def establish(encoder: ClipEncoder, graph: HeadGraph, frames: NDArray[np.uint8]) -> Truth:
    """Compute PyTorch's answers on faces (N, 224, 224, 3), consecutive ones of each person, and on inputs that hurt."""
    everything = np.concatenate([frames, adversarial_frames()])
    features = encode(encoder, everything)
    faces = features[: len(frames)]
    windows = _windows(faces)
    return Truth(
        frames=everything,
        features=Features(values=features, faces=len(faces), middle=faces.mean(axis=0)),
        windows=windows,
        outputs=tuple(_head_outputs(graph, window) for window in windows),
        graph=graph,
    )


def encode(encoder: ClipEncoder, frames: NDArray[np.uint8]) -> Floats:
    """Return PyTorch's features (N, D) of frames (N, 224, 224, 3)."""
    return _in_chunks(lambda chunk: _run_torch(encoder, chunk)[0], frames)


def adversarial_frames() -> NDArray[np.uint8]:
    """Return (3, 224, 224, 3): black, white and noise."""
    shape = (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def check_encoder(truth: Truth, path: Path, precision: Precision, engine: str = ONNX_RUNTIME) -> list[Check]:
    """Compare an encoder graph with PyTorch: its features, and what PyTorch's head makes of them."""
    limits = TOLERANCES[precision]
    session = open_session(path, Candidate(precision, engine))

    def run(frames: NDArray[np.uint8]) -> Floats:
        return session({FRAMES.name: frames})[CLIP_ENCODER.outputs[0].name]

    # From small batches to large ones, as a server sees them: OpenVINO 2026.4 computes a large one wrongly after a
    # small one in some graphs with a free axis (our head in float32, T = 300 after T = 2).
    alike = _batch_check(truth, run, limits)
    answer = _in_chunks(run, truth.frames)
    checks = [*feature_checks(truth.features, answer, limits), alike]
    windows = _windows(answer[: truth.features.faces])
    for length, window, expected in zip(SEGMENT_LENGTHS, windows, truth.outputs, strict=True):
        checks += output_checks(length, expected, _head_outputs(truth.graph, window), limits)
    return checks


def check_head(truth: Truth, path: Path, precision: Precision, engine: str = ONNX_RUNTIME) -> list[Check]:
    """Compare a head graph with PyTorch on PyTorch's features."""
    session, limits = open_session(path, Candidate(precision, engine)), TOLERANCES[precision]
    checks: list[Check] = []
    for length, window, expected in zip(SEGMENT_LENGTHS, truth.windows, truth.outputs, strict=True):
        answer = {name: values[0] for name, values in session({FEATURES.name: window}).items()}
        checks += output_checks(length, expected, answer, limits)
    return checks


def _batch_check(truth: Truth, run: Callable[[NDArray[np.uint8]], Floats], limits: Tolerance) -> Check:
    """A face alone and beside the inputs that hurt most: what shares a batch comes from other clients."""
    batch = np.concatenate([truth.frames[:1], truth.frames[truth.features.faces :]])
    alone = run(truth.frames[:1])
    figure = float(np.abs(run(batch)[:1] - alone).max()) / truth.features.scale
    what = "features of a frame alone and in a batch"
    return Check(what=what, figure=figure, limit=limits.batch_difference, at_least=False)


def _windows(features: Floats) -> tuple[Floats, ...]:
    """Return segments (1, T, D) cut from features (N, D), played over where N is too small."""
    long_enough = np.resize(features, (WINDOW_FRAMES, features.shape[1]))
    return tuple(np.ascontiguousarray(long_enough[None, :length]) for length in SEGMENT_LENGTHS)


def _head_outputs(graph: HeadGraph, window: Floats) -> dict[str, Floats]:
    return {key: value[0] for key, value in zip(graph.tasks, _run_torch(graph, window), strict=True)}


def _run_torch(module: torch.nn.Module, values: NDArray[Any]) -> list[Floats]:
    with torch.inference_mode():
        answer = module.eval()(torch.from_numpy(np.ascontiguousarray(values)))
    return [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]


def _in_chunks(run: Callable[[NDArray[np.uint8]], Floats], frames: NDArray[np.uint8]) -> Floats:
    return np.concatenate([run(frames[start : start + CHUNK_FRAMES]) for start in range(0, len(frames), CHUNK_FRAMES)])


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """One ONNX file and what is known about it."""

    model: str  # contract name: clip_encoder or temporal_head
    precision: Precision
    engine: str = ONNX_RUNTIME  # that gave the answers
    path: Path
    checks: list[Check]
    notes: tuple[str, ...] = ()  # what a reader should know, such as layers left in float32 and why
    run_s: float = 0.0  # of one run on this CPU, measured in turns with others of the model; 0: not measured

    @property
    def candidate(self) -> Candidate:
        """How it is computed."""
        return Candidate(self.precision, self.engine)

    @property
    def passed(self) -> bool:
        """Say whether every figure keeps to its limit."""
        return all(check.passed for check in self.checks)
