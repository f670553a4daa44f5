"""Chunks of any size in, messages of a good size out, and their answers put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.export.contract import CHUNK_FRAMES


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
