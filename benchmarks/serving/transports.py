"""Raw, shared memory and JPEG side by side: time per chunk, bytes on the wire, and what JPEG does to the answers.

Transport is measured on a small encoder, so that it is not hidden behind computation; one chunk at a time gives the
latency, the client's usual two in flight the throughput. Bytes are those of the requests. What JPEG changes is measured
on drawn faces by quality.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from affserve.benchmarks.measuring.random_models import Progress, generated_faces
from affserve.client.client import AffectClient
from affserve.client.wire.messages import encode_jpeg
from affserve.client.wire.transport import JPEG_QUALITY, Transport
from affserve.export.artefacts.material import parity_only
from affserve.export.artefacts.timing import in_turns
from affserve.export.contract import CHUNK_FRAMES, CLIP_ENCODER, CLIP_ENCODER_JPEG, FEATURE_WIDTH, FRAMES, IMAGE_SIZE_PX
from affserve.export.repository.exporting import CPU_FP32, export_repository
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.windows import Outputs

WAYS = (Transport.RAW.value, Transport.SHM.value, Transport.JPEG.value)
QUALITIES = (75, 85, 90, 95, 98, 100)
# The smallest tower open_clip takes that still looks at every pixel.
LIGHT_TOWER = {"image_size": IMAGE_SIZE_PX, "layers": 1, "width": 32, "head_width": 32, "patch_size": 32}
REGION = f"affserve-client-{0:012d}-{0:07d}-{0:032x}"  # as long as a real name
IN_FLIGHT = {"one_at_a_time": 1, "two_in_flight": 2}


def measure_transports(
    frames: int, rounds: int, scratch: Path, *, repository: Path | None = None, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Return time and bytes of each transport for so many frames, and the exactness of JPEG by quality.

    repository: whose answers JPEG changes; without it that is measured on the small random model, too.
    """
    progress("a small encoder")
    light = _light_repository(scratch)
    faces = np.resize(generated_faces(), (frames, *FRAMES.shape))
    with TritonServer(ServerConfig(repository=light)) as server:
        progress("time")
        times = {
            name: _times(server.grpc_url, faces, rounds, in_flight=in_flight) for name, in_flight in IN_FLIGHT.items()
        }
    sent = {way: _sent_bytes(way, faces) for way in WAYS}
    progress("what JPEG changes")
    with TritonServer(ServerConfig(repository=repository or light)) as server:
        exactness = _exactness(server.grpc_url, faces[: 2 * CHUNK_FRAMES])
    chunks = -(-frames // CHUNK_FRAMES)
    return {
        "encoder": f"{LIGHT_TOWER}, FP32, random weights",
        "frames": frames,
        "rounds": rounds,
        "inputs": "generated faces",
        "ms_per_chunk_of_32": {
            name: {way: round(1000 * seconds / chunks, 2) for way, seconds in medians.items()}
            for name, medians in times.items()
        },
        "megabytes_on_the_wire": {way: round(count / 1e6, 3) for way, count in sent.items()},
        "jpeg_quality_default": JPEG_QUALITY,
        "jpeg_of": str(repository) if repository is not None else "the small encoder",
        "jpeg": exactness,
    }


def _light_repository(scratch: Path) -> Path:
    """Export an encoder that takes a few milliseconds a chunk."""
    import torch

    from affserve.train.models.checkpoint import save_encoder, save_head
    from affserve.train.models.encoder import ClipEncoder, EncoderConfig
    from affserve.train.models.temporal_head import TemporalHead, demo_head_config
    from affserve.train.provenance import Provenance

    torch.manual_seed(0)
    encoder = ClipEncoder(EncoderConfig(architecture="light", embed_dim=FEATURE_WIDTH, vision_cfg=LIGHT_TOWER)).eval()
    provenance = Provenance(trained_on="nothing (random weights)")
    fingerprint = save_encoder(scratch / "encoder", encoder, provenance)
    save_head(scratch / "head", TemporalHead(demo_head_config()), replace(provenance, encoder=fingerprint))
    export_repository(
        scratch / "encoder",
        [scratch / "head"],
        scratch / "repository",
        material=parity_only(generated_faces()[:CHUNK_FRAMES]),
        options=CPU_FP32,
    )
    return scratch / "repository"


def _times(url: str, faces: NDArray[np.uint8], rounds: int, *, in_flight: int) -> dict[str, float]:
    """Return the median seconds of encoding all faces, by transport, measured in turns."""
    with ExitStack() as stack:
        clients = [stack.enter_context(AffectClient(url, transport=way, chunks_in_flight=in_flight)) for way in WAYS]
        measured = in_turns([_encoding(client, faces) for client in clients], rounds)
    return {way: statistics.median(times_s) for way, times_s in zip(WAYS, measured, strict=True)}


def _encoding(client: AffectClient, faces: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: client.encode(faces)


def _sent_bytes(way: str, faces: NDArray[np.uint8]) -> int:
    """Return the bytes of the requests that encode all faces."""
    model = CLIP_ENCODER_JPEG if way == Transport.JPEG else CLIP_ENCODER
    spec = model.inputs[0]
    total = 0
    for start in range(0, len(faces), CHUNK_FRAMES):
        chunk = faces[start : start + CHUNK_FRAMES]
        message = service_pb2.ModelInferRequest(model_name=model.name)
        tensor = message.inputs.add(name=spec.name, datatype=spec.datatype, shape=(len(chunk), *spec.shape))
        if way == Transport.SHM:
            tensor.parameters["shared_memory_region"].string_param = REGION
            tensor.parameters["shared_memory_byte_size"].int64_param = chunk.nbytes
        elif way == Transport.JPEG:
            files = [encode_jpeg(face, JPEG_QUALITY) for face in chunk]
            message.raw_input_contents.append(b"".join(len(file).to_bytes(4, "little") + file for file in files))
        else:
            message.raw_input_contents.append(chunk.tobytes())
        total += message.ByteSize()
    return total


def _exactness(url: str, faces: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Return, for each quality, the size of a face and how far features and answers are from those of raw frames."""
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
