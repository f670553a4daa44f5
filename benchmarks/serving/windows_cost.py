"""What the paper's way of inference costs: windows of 300 frames, 200 apart, each encoded as a whole.

Ours encodes every frame once and lets the windows share features. Both run through the same server on the same frames,
in turns; the arithmetic is counted in frames that reached the encoder, times what the manifest says one frame takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.random_models import generated_faces, random_checkpoints, repository_of
from affserve.benchmarks.measuring.samples import largest_difference, ratio_interval
from affserve.client.client import AffectClient
from affserve.export.contract import CLIP_ENCODER
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.manifest import read_manifest
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import RepositoryError
from affserve.train.windows import Outputs, OverlapMerger, PredictWindow, segments

LIMIT = 1e-4  # largest difference of any prediction: both are the same arithmetic in another order
LENGTHS = (300, 1000, 5050, 20_000)  # frames; Aff-Wild2's 3 million frames are 594 videos of 5,050
Frames = NDArray[np.uint8]
Encode = Callable[[Frames], NDArray[np.float32]]


class CountingEncoder:
    """Encodes through a client and counts the frames."""

    def __init__(self, client: AffectClient) -> None:
        self._client = client
        self.frames = 0

    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Turn crops (N, 224, 224, 3) into features (N, D)."""
        self.frames += len(frames)
        return self._client.encode(frames)


def measure_paper_way(
    architecture: str, frames: int, rounds: int, threads: int, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Compare both ways on a server of the precision that stands nearest to PyTorch, random weights."""
    precision = Precision.FP32
    repository = repository_of(random_checkpoints(architecture), precision, progress=progress)
    faces = generated_faces()
    video = np.resize(faces, (frames, *faces.shape[1:]))
    progress(f"both ways on {frames} frames")
    config = ServerConfig(repository=repository, threads=threads)
    with TritonServer(config) as server, AffectClient(server.grpc_url) as client:
        measured = measure_windows(client, video, encoder_flops(repository), rounds)
    return {"architecture": architecture, "precision": precision.value, **measured}


def encoder_flops(repository: Path) -> int:
    """Return the floating point operations of one frame, from the manifest."""
    manifest = read_manifest(repository)
    if manifest is None:
        raise RepositoryError(f"{repository} has no manifest; export it again")
    return next(one.flops for one in manifest.versions[manifest.served].artefacts if one.model == CLIP_ENCODER.name)


def measure_windows(client: AffectClient, frames: Frames, encoder_flops: int, rounds: int = 2) -> dict[str, Any]:
    """Compare both ways on a video of crops (N, 224, 224, 3); encoder_flops: of one frame."""
    window, stride = client.describe().window_frames, client.describe().stride_frames
    ways: dict[str, Callable[[CountingEncoder], Outputs]] = {
        "paper": lambda encode: paper_way(frames, encode, client.predict, window, stride),
        "affserve": lambda encode: our_way(frames, encode, client.predict, window, stride),
    }
    times_s: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, int] = {}
    answers: dict[str, Outputs] = {}
    client.encode(frames[:1])
    for _ in range(rounds):
        for name, way in ways.items():
            encoder = CountingEncoder(client)
            started = time.perf_counter()
            answers[name] = way(encoder)
            times_s[name].append(time.perf_counter() - started)
            counts[name] = encoder.frames
    difference = largest_difference(answers["paper"], answers["affserve"])
    return {
        "frames": len(frames),
        "window_frames": window,
        "stride_frames": stride,
        "ways": {
            name: {
                "frames_encoded": counts[name],
                "encoder_gflop": round(counts[name] * encoder_flops / 1e9, 1),
                "times_s": [round(value, 4) for value in times_s[name]],
            }
            for name in ways
        },
        "times_fewer_flops": round(counts["paper"] / counts["affserve"], 4),
        "times_as_fast": ratio_interval(times_s["paper"], times_s["affserve"], in_turns=True).rounded(),
        "largest_difference": difference,
        "limit": LIMIT,
        "equal": bool(difference <= LIMIT),
        "by_length": times_fewer(LENGTHS, window, stride),
        "times_fewer_flops_of_endless_video": window / stride,
    }


def paper_way(frames: Frames, encode: Encode, predict: PredictWindow, window: int, stride: int) -> Outputs:
    """Encode and predict every window by itself and average where they overlap."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts = np.zeros((len(frames), 1))
    for part in segments(len(frames), window, stride):
        for task, values in predict(encode(frames[part])).items():
            sums.setdefault(task, np.zeros((len(frames), values.shape[1])))[part] += values
        counts[part] += 1
    return {task: (values / counts).astype(np.float32) for task, values in sums.items()}


def our_way(frames: Frames, encode: Encode, predict: PredictWindow, window: int, stride: int) -> Outputs:
    """Encode every frame once, as `affserve infer` does."""
    merger = OverlapMerger(predict, window, stride)
    parts = [*merger.push(encode(frames)), *merger.finish()]
    return {task: np.concatenate([part[task] for part in parts]) for task in parts[0]}


def times_fewer(lengths: Sequence[int], window: int, stride: int) -> dict[str, float]:
    """Return, by video length, how many times the paper's way encodes a frame."""
    encoded = {n: sum(part.stop - part.start for part in segments(n, window, stride)) for n in lengths}
    return {str(n): round(count / n, 4) for n, count in encoded.items()}
