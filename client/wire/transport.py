"""How frames travel: as they are, through memory that both sides share, or as JPEG."""

from __future__ import annotations

from enum import Enum

JPEG_QUALITY = 95


class Transport(str, Enum):
    """How frames travel."""

    AUTO = "auto"  # shm if the server is on this machine, else raw
    RAW = "raw"  # pixels as they are in the message
    SHM = "shm"  # memory that client and server share
    JPEG = "jpeg"  # one file for each frame; a tenth of the bytes, and not quite the same pixels
