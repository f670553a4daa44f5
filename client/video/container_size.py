"""How long a container says that it is, in bytes: a file that is shorter has lost its end.

Durations cannot tell that everywhere: Matroska need not announce one per stream, and a lost half second hides in
rounding. Sizes can: Matroska's segment (EBML, RFC 8794 and 9559), MP4's boxes (ISO/IEC 14496-12) and AVI's RIFF chunk
carry theirs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

EBML_MAGIC = b"\x1a\x45\xdf\xa3"
SEGMENT_ID = b"\x18\x53\x80\x67"
MP4_BOXES = frozenset(b"ftyp moov mdat free skip wide styp sidx moof uuid mfra".split())
GIF_PADDING_BYTES = 16  # that writers may leave after the end
MOST_BOXES = 1_000_000  # a fragment has two; damage must not make an endless walk


def announced_bytes(path: Path) -> int | None:
    """Return the size that the container announces; None where it announces none or is of another kind."""
    with open(path, "rb") as file:
        start = file.read(12)
        file.seek(0)
        if start.startswith(EBML_MAGIC):
            return _matroska_end(file)
        if start[4:8] in MP4_BOXES:
            return _mp4_end(file, os.fstat(file.fileno()).st_size)
        if start.startswith(b"RIFF"):  # AVI; a recorder that was switched off leaves 0
            return len(b"RIFFsize") + int.from_bytes(start[4:8], "little")
        if start.startswith(b"GIF8"):
            return _gif_end(file, os.fstat(file.fileno()).st_size)
    return None


def _gif_end(file: BinaryIO, size: int) -> int:
    """Return a byte more than there is where the closing semicolon is missing: GIF says no more than that."""
    file.seek(max(0, size - GIF_PADDING_BYTES))
    return size if b";" in file.read() else size + 1


def _matroska_end(file: BinaryIO) -> int | None:
    """Return where the segment ends: after the EBML header comes the one segment with everything in it."""
    file.read(len(EBML_MAGIC))
    header = _ebml_size(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(len(SEGMENT_ID)) != SEGMENT_ID:
        return None
    size = _ebml_size(file)
    return None if size is None else file.tell() + size


def _ebml_size(file: BinaryIO) -> int | None:
    """Read a size: the leading zero bits count the bytes that follow; all ones mean that it is not known."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - length)) - 1)]) + rest, "big")
    return None if value == (1 << (7 * length)) - 1 or len(rest) < length - 1 else value


def _mp4_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last top-level box ends that begins inside the file; sizes of 64 bits follow a size of 1."""
    at = 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8 or head[4:8] not in MP4_BOXES:
            return at if at else None
        box = int.from_bytes(head[:4], "big")
        if box == 1:
            box = int.from_bytes(head[8:16], "big")
        if box < 8:  # 0: it ends with the file
            return None
        at += box
        if at >= size:
            return at
    return None
