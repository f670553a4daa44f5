"""The gate before anything is served: does an artefact compute what the PyTorch model computes?

Compared on real frames and windows plus inputs meant to hurt (black, white, noise, one frame, T = 1, T = 299). Every
check has a figure, a limit and the reason for the limit; one failed check and nothing is placed.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file compares with it
import torch  # noqa: TID253 - this file compares with it
from numpy.typing import NDArray

from affserve.export.contract import CHUNK_FRAMES, FEATURES, FRAMES, IMAGE_SIZE_PX
from affserve.export.graphs import HeadGraph
from affserve.train.affwild2 import VALIDATION, Corpus, open_corpus
from affserve.train.alignment import to_encoder_input
from affserve.train.clip_encoder import ClipEncoder
from affserve.train.errors import ParityError
from affserve.train.finetune import read_crop
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS
from affserve.train.metrics import AU_THRESHOLD
from affserve.train.windows import WINDOW_FRAMES

PARITY_VIDEOS = 4  # people whose crops are compared
SEGMENT_LENGTHS = (1, 2, WINDOW_FRAMES - 1, WINDOW_FRAMES)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Limits of one precision. FP32 differs from PyTorch only by the order of sums, a few units in the sixth digit."""

    feature_difference: float  # largest absolute difference, in units of the largest feature magnitude (at least 1)
    feature_cosine: float  # of the worst frame
    output_difference: float  # largest absolute difference of any served value
    agreement: float  # fraction of frames with the same expression, and of action units on the same side of 0.5


FP32 = Tolerance(feature_difference=1e-4, feature_cosine=0.999999, output_difference=1e-4, agreement=0.999)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the parity table."""

    what: str
    figure: float
    limit: float
    at_least: bool  # whether the figure must not fall below the limit, rather than not exceed it

    @property
    def passed(self) -> bool:
        """Say whether the figure keeps to the limit; a NaN never does."""
        return bool((operator.ge if self.at_least else operator.le)(self.figure, self.limit))

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.what:<46} {self.figure:.3g}  (limit {sign} {self.limit:g})"


def require(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as plain records for the manifest; ParityError with the whole table when one failed."""
    if not all(check.passed for check in checks):
        table = "\n".join(f"  {check}" for check in checks)
        raise ParityError(
            f"the exported graphs do not compute what PyTorch computes; nothing was placed:\n{table}\n"
            "expected every line within its limit; export again after fixing the graph, or report this table"
        )
    return [asdict(check) for check in checks]


def adversarial_frames(seed: int = 0) -> NDArray[np.uint8]:
    """Return (3, 224, 224, 3): black, white and noise."""
    shape = (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def check_encoder(
    encoder: ClipEncoder, path: Path, frames: NDArray[np.uint8], limits: Tolerance = FP32
) -> tuple[list[Check], NDArray[np.float32]]:
    """Compare the encoder graph with the module on frames (N, 224, 224, 3); also return PyTorch's features (N, D)."""
    session = _session(path)
    everything = np.concatenate([frames, adversarial_frames()])
    truth = _in_chunks(lambda chunk: _run_torch(encoder, chunk)[0], everything)
    answer = _in_chunks(lambda chunk: _run_onnx(session, FRAMES.name, chunk)[0], everything)
    alone = _run_onnx(session, FRAMES.name, everything[:1])[0]
    scale = max(1.0, float(np.abs(truth).max()))
    checks = [
        Check(
            what=f"features, largest difference over {len(everything)} frames",
            figure=float(np.abs(answer - truth).max()) / scale,
            limit=limits.feature_difference,
            at_least=False,
        ),
        Check(
            what="features, cosine of the worst frame",
            figure=float(_cosine(answer, truth).min()),
            limit=limits.feature_cosine,
            at_least=True,
        ),
        Check(
            what="features of a frame alone and in a batch",
            figure=float(np.abs(alone - answer[:1]).max()) / scale,
            limit=limits.feature_difference,
            at_least=False,
        ),
    ]
    return checks, truth[: len(frames)]


def check_head(graph: HeadGraph, path: Path, features: NDArray[np.float32], limits: Tolerance = FP32) -> list[Check]:
    """Compare the head graph with the module on segments cut from features (N, D), repeated where N is too small."""
    session = _session(path)
    long_enough = np.resize(features, (WINDOW_FRAMES, features.shape[1]))
    checks: list[Check] = []
    for length in SEGMENT_LENGTHS:
        segment = long_enough[None, :length]
        truth = dict(zip(graph.tasks, _run_torch(graph, segment), strict=True))
        answer = dict(zip(graph.tasks, _run_onnx(session, FEATURES.name, segment), strict=True))
        checks += [_difference(key, length, truth[key], answer[key], limits) for key in graph.tasks]
        checks += [_agreement(key, length, truth[key], answer[key], limits) for key in graph.tasks if key in _DECISIONS]
    return checks


_DECISIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    EXPRESSION.key: lambda values: values.argmax(axis=-1),
    ACTION_UNITS.key: lambda values: values >= AU_THRESHOLD,
}


def _difference(
    key: str, length: int, truth: NDArray[np.float32], answer: NDArray[np.float32], limits: Tolerance
) -> Check:
    figure = float(np.abs(answer - truth).max()) if answer.shape == truth.shape else float("nan")
    what = f"{key}, T = {length}, largest difference"
    return Check(what=what, figure=figure, limit=limits.output_difference, at_least=False)


def _agreement(
    key: str, length: int, truth: NDArray[np.float32], answer: NDArray[np.float32], limits: Tolerance
) -> Check:
    decide = _DECISIONS[key]
    figure = float(np.mean(decide(truth) == decide(answer))) if answer.shape == truth.shape else float("nan")
    return Check(what=f"{key}, T = {length}, agreement", figure=figure, limit=limits.agreement, at_least=True)


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run_onnx(session: ort.InferenceSession, name: str, values: NDArray[Any]) -> list[NDArray[np.float32]]:
    return list(session.run(None, {name: np.ascontiguousarray(values)}))


def _run_torch(module: torch.nn.Module, values: NDArray[Any]) -> list[NDArray[np.float32]]:
    with torch.inference_mode():
        answer = module.eval()(torch.from_numpy(np.ascontiguousarray(values)))
    return [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]


def _in_chunks(run: Any, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([run(frames[start : start + CHUNK_FRAMES]) for start in range(0, len(frames), CHUNK_FRAMES)])


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    dot = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    return np.asarray(dot / np.maximum(lengths, 1e-12))


def sample_frames(corpus: Corpus, count: int) -> NDArray[np.uint8]:
    """Return (count, 224, 224, 3) crops of validation videos, consecutive ones from a few people."""
    videos = corpus.part_videos(list(TASKS.values()), VALIDATION)
    share = -(-count // min(len(videos), PARITY_VIDEOS))
    paths = [path for video in videos[:PARITY_VIDEOS] for path in list(corpus.crops(video).values())[:share]]
    return np.stack([to_encoder_input(read_crop(path)) for path in paths[:count]])


def generated_frames(count: int) -> NDArray[np.uint8]:
    """Return (count, 224, 224, 3) crops of generated faces, for who has no corpus at hand."""
    from affserve.train.synthetic import SyntheticConfig, write_corpus

    # A gap or a late start takes up to half of a short video.
    per_video = max(60, 2 * -(-count // 2))
    config = SyntheticConfig(
        videos=4, validation_share=0.5, frames_min=per_video, frames_max=per_video, whole_frame_videos=0
    )
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "corpus", config, workers=1)
        return sample_frames(open_corpus(Path(folder) / "corpus"), count)
