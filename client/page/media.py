"""Videos for a browser: the file itself where browsers play it, with what its times and pictures need to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from affserve.client.video.source import open_container, open_source

PLAYED_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm"})
PLAYED_CODECS = frozenset({"h264", "vp8", "vp9", "av1"})
PLAYED_PIXELS = frozenset({"yuv420p", "yuvj420p"})


@dataclass(frozen=True, kw_only=True)
class Playing:
    """How a browser reads a file: its upright size, and where its pictures begin on the browser's clock."""

    width: int
    height: int
    offset_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the facts for the page."""
        return vars(self)


def is_played(path: Path) -> bool:
    """Say whether every browser of today plays a file as it is."""
    if path.suffix.lower() not in PLAYED_SUFFIXES or path.is_dir():
        return False
    with open_container(path) as container:
        context = container.streams.video[0].codec_context
        return context.name in PLAYED_CODECS and context.pix_fmt in PLAYED_PIXELS


def playing(path: Path) -> Playing:
    """Read what a page must know of a file that is played."""
    height, width = next(iter(open_source(path))).image.shape[:2]
    with open_container(path) as container:
        stream = container.streams.video[0]
        begin_s = float((stream.start_time or 0) * (stream.time_base or 0))
        return Playing(width=width, height=height, offset_s=begin_s - (container.start_time or 0) / av.time_base)
