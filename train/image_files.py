"""Whether an image file is whole: decoders paint what is missing grey, and say nothing."""

from __future__ import annotations

JPEG, PNG, RIFF = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF"
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
PNG_END = b"IEND"


def breaks_off(content: bytes) -> bool:
    """Say whether the end of a JPEG, PNG or WebP file is missing; of other formats nothing is known, hence False."""
    if content.startswith(JPEG):
        return _jpeg_breaks_off(content)
    if content.startswith(PNG):
        return PNG_END not in content
    if content.startswith(RIFF):
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    return False


def _jpeg_breaks_off(content: bytes) -> bool:
    """Look for the end marker behind the start of the picture: a thumbnail before it has an end marker of its own.

    Within the picture the marker cannot occur, because a byte 0xFF is followed by 0 there (ITU-T T.81, B.1.1.5).
    """
    place = len(JPEG)
    while (marker := content[place : place + 2]) != START_OF_SCAN:
        if len(marker) < 2:
            return True
        # A byte 0xFF before a marker is padding; every segment before the picture tells its length.
        starts_here = marker[0] == 0xFF and marker[1] != 0xFF
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big") if starts_here else 1
    return END_OF_IMAGE not in content[place:]
