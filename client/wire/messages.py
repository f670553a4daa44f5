"""Frames and features as Triton's inputs: chunks of any size in, messages of a good size out, answers joined again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from affserve.export.contract import CHUNK_FRAMES, JPEG


def raw_tensor(name: str, datatype: str, array: NDArray[Any]) -> triton.InferInput:
    """Return an input that carries an array."""
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


def jpeg_tensor(frames: NDArray[np.uint8], quality: int) -> triton.InferInput:
    """Return an input that carries each of the frames (N, 224, 224, 3) RGB as a JPEG file."""
    files = np.array([[encode_jpeg(frame, quality)] for frame in frames], dtype=np.object_)  # (N, 1)
    return raw_tensor(JPEG.name, JPEG.datatype, files)


def encode_jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    """Return a frame (H, W, 3) RGB as a JPEG file with colour at full resolution."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, file = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    return file.tobytes()


@dataclass(frozen=True, eq=False)
class Message:
    """A part of a chunk that travels by itself."""

    frames: NDArray[np.uint8]  # (n, 224, 224, 3), n <= CHUNK_FRAMES
    ends_chunk: bool


def messages(chunk: NDArray[np.uint8]) -> Iterator[Message]:
    """Cut a chunk (N, 224, 224, 3); one of no frames is one message of none."""
    for start in range(0, max(len(chunk), 1), CHUNK_FRAMES):
        yield Message(chunk[start : start + CHUNK_FRAMES], ends_chunk=start + CHUNK_FRAMES >= len(chunk))


class Joiner:
    """Collects the answers to messages until a chunk is complete."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float32]] = []

    def join(self, message: Message, features: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Take the features (n, 512) of the next message; return those of its chunk (N, 512) if it ends one."""
        self._parts.append(features)
        if not message.ends_chunk:
            return []
        whole = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        self._parts = []
        return [whole]
