"""Videos for a browser: the file itself where browsers play it, else a temporary MP4 with the same times.

Frames are told apart by their times alone, so a copy may be smaller, but no frame may be missing or moved in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from affserve.client.page.library import Entry, Library
from affserve.client.results.output_file import staged
from affserve.client.video.source import Frame, FrameSource, VideoSource, open_container, open_source
from affserve.client.video.writer import VideoWriter
from affserve.train.errors import AffserveError, VideoError

PLAYED_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm"})
PLAYED_CODECS = frozenset({"h264", "vp8", "vp9", "av1"})
PLAYED_PIXELS = frozenset({"yuv420p", "yuvj420p"})
LONGEST_SIDE_PX = 1280  # of a copy
KEYFRAME_EVERY = 24  # frames of a copy: a seek decodes half of these


@dataclass(kw_only=True)
class Playable:
    """A file for the browser, or how far it has come. width, height: of the upright pictures that boxes count in."""

    state: str = "preparing"  # preparing, ready or failed
    path: Path | None = None
    width: int = 0
    height: int = 0
    offset_s: float = 0.0  # of the first picture on the browser's clock
    done: int = 0  # frames that are copied
    total: int | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what the page is told."""
        return {name: value for name, value in vars(self).items() if name != "path"}


@dataclass(kw_only=True)
class Media:
    """The playable files of a library's videos; copies are made in threads of their own, one at a time."""

    library: Library
    temporary: Path
    longest_side_px: int = LONGEST_SIDE_PX  # of copies
    _made: dict[tuple[str, bool], Playable] = field(default_factory=dict)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def playable(self, entry: Entry, *, copied: bool = False) -> Playable | None:
        """Return the file to play, preparing it when it is asked for first; copied: a browser refused the file itself.

        None: the entry has no video.
        """
        if entry.video is None:
            return None
        key = (entry.id, copied)
        if key not in self._made:
            self._made[key] = self._prepared(entry, entry.video, copied)
        return self._made[key]

    def _prepared(self, entry: Entry, video: Path, copied: bool) -> Playable:
        try:
            source = open_source(video)
            height, width = next(iter(source)).image.shape[:2]
            made = Playable(width=width, height=height, total=source.frames_hint)
            if not copied and _is_played(video):
                _ready(made, video)
            else:
                target = self.temporary / f"{entry.id}.mp4"
                threading.Thread(target=self._copy, args=(entry, source, target, made), daemon=True).start()
            return made
        except AffserveError as error:
            return Playable(state="failed", error=str(error))

    def _copy(self, entry: Entry, source: FrameSource, target: Path, made: Playable) -> None:
        try:
            with self._one_at_a_time:
                times = self._times(entry) if not isinstance(source, VideoSource) else {}
                with staged(target) as part:
                    _write_copy(source, times, part, made, self.longest_side_px)
            _ready(made, target)
        except (AffserveError, OSError) as error:
            made.state, made.error = "failed", str(error)

    def _times(self, entry: Entry) -> Mapping[int, float]:
        """Return the times of the numbered images of a folder, which have none of their own but in the result."""
        if entry.result is None:
            return {}
        table = self.library.table(entry)
        return dict(zip(table["frame"].tolist(), table["timestamp_s"].tolist(), strict=True))


def _is_played(path: Path) -> bool:
    """Say whether every browser of today plays a file as it is."""
    if path.suffix.lower() not in PLAYED_SUFFIXES or path.is_dir():
        return False
    with open_container(path) as container:
        context = container.streams.video[0].codec_context
        return context.name in PLAYED_CODECS and context.pix_fmt in PLAYED_PIXELS


def _ready(made: Playable, path: Path) -> None:
    """Read where the pictures begin: a browser counts as the file does, but from the first packet if it is before 0."""
    try:
        with open_container(path) as container:
            stream = container.streams.video[0]
            begin_s = float((stream.start_time or 0) * (stream.time_base or 0))
            made.offset_s = begin_s - min(0, container.start_time or 0) / av.time_base
    except av.error.FFmpegError as error:
        raise VideoError(f"{path} cannot be read as a video: {error.strerror}") from error
    made.path, made.state = path, "ready"


def _write_copy(
    source: FrameSource, times: Mapping[int, float], part: Path, made: Playable, longest_side_px: int
) -> None:
    scale = min(1.0, longest_side_px / max(made.width, made.height))
    size = (max(2, round(made.width * scale)), max(2, round(made.height * scale)))
    with VideoWriter(part, ".mp4", source, keyframe_every=KEYFRAME_EVERY) as writer:
        for frame in _readable(source):
            image = frame.image if scale == 1 else np.asarray(cv2.resize(frame.image, size), dtype=np.uint8)
            time_s = times.get(frame.index, frame.timestamp_s)
            writer.write(Frame(index=frame.index, timestamp_s=time_s, image=image))
            made.done += 1


def _readable(source: FrameSource) -> Iterator[Frame]:
    """Yield the frames of a source that may break off: the result ends there, too."""
    with suppress(VideoError):
        yield from source
