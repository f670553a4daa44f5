"""What JPEG costs in exactness and saves in bytes, by quality, on drawn faces; `bench load` times the transports."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.random_models import generated_faces
from affserve.client.client import AffectClient
from affserve.client.wire.messages import encode_jpeg
from affserve.client.wire.transport import JPEG_QUALITY, Transport
from affserve.export.contract import CHUNK_FRAMES, FRAMES
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.windows import Outputs

QUALITIES = (75, 85, 90, 95, 98, 100)


def measure_jpeg(repository: Path) -> dict[str, Any]:
    """Return, for each quality, the size of a face and how far features and answers are from those of raw frames."""
    faces = generated_faces()[: 2 * CHUNK_FRAMES]
    with TritonServer(ServerConfig(repository=repository)) as server:
        rows = _by_quality(server.grpc_url, faces)
    return {
        "jpeg_of": str(repository),
        "inputs": "generated faces",
        "jpeg_quality_default": JPEG_QUALITY,
        "raw_kilobytes_per_face": round(float(np.prod(FRAMES.shape)) / 1000, 2),
        "jpeg": rows,
    }


def _by_quality(url: str, faces: NDArray[np.uint8]) -> list[dict[str, Any]]:
    with AffectClient(url, transport=Transport.RAW) as client:
        exact, answers = client.encode(faces), client.analyze(faces)
    rows = []
    for quality in QUALITIES:
        with AffectClient(url, transport=Transport.JPEG, jpeg_quality=quality) as client:
            features, found = client.encode(faces), client.analyze(faces)
        sizes = [len(encode_jpeg(face, quality)) for face in faces]
        rows.append(
            {
                "quality": quality,
                "kilobytes_per_face": round(statistics.mean(sizes) / 1000, 2),
                "worst_centred_cosine": round(_worst_centred_cosine(exact, features), 5),
                "largest_change": _changes(answers, found, np.max),
                "mean_change": _changes(answers, found, np.mean),
            }
        )
    return rows


def _worst_centred_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the smallest cosine of two sets of features (N, D), each less the mean of the first."""
    a, b = a - a.mean(axis=0), b - a.mean(axis=0)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())


def _changes(a: Outputs, b: Outputs, over: Callable[..., Any]) -> dict[str, float]:
    """Return how much answers differ, by task."""
    return {task: round(float(over(np.abs(a[task] - b[task]))), 5) for task in a}
