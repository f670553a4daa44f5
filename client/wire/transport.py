"""How frames travel: as they are, through memory that both sides share, or as JPEG; and when which is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

JPEG_QUALITY = 95
# Making and opening JPEGs takes a chunk of 32 about as long as 5 MB take at this speed; gigabit Ethernet is slower.
JPEG_BELOW_MB_PER_S = 150.0
# Fewer bytes say more about delay than about speed.
SMALLEST_MEASURE_BYTES = 1_000_000


class Transport(str, Enum):
    """How frames travel."""

    AUTO = "auto"  # shm if the server is on this machine, else raw, or jpeg once the link has shown to be slow
    RAW = "raw"  # pixels as they are in the message
    SHM = "shm"  # memory that client and server share
    JPEG = "jpeg"  # one file for each frame; a tenth of the bytes, and not quite the same pixels


@dataclass(frozen=True, kw_only=True)
class Link:
    """What one chunk of raw frames told about the way to the server."""

    sent_bytes: int
    call_s: float  # from sending to the answer
    server_s: float  # of that, in the server: queue and computation

    @property
    def mb_per_s(self) -> float:
        """Speed of the link; infinite where the difference is too small to see."""
        travel_s = self.call_s - self.server_s
        return self.sent_bytes / travel_s / 1e6 if travel_s > 0 else float("inf")

    @property
    def is_slow(self) -> bool:
        """Whether the link, not the server, decides how many frames a second there are, and JPEG would help."""
        return self.call_s - self.server_s > self.server_s and self.mb_per_s < JPEG_BELOW_MB_PER_S
