"""The first half of the pipeline: frames are decoded, faces found and crops cut ahead of the server.

Each of the three is a thread: FFmpeg and OpenCV let go of Python's lock, so they overlap with one another and with the
server's work. Only the second one has to see the frames in order; what it need not do is done by the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from affserve.client.ahead import Ahead
from affserve.client.faces.face import Cropper, Face
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.video.source import Frame, FrameSource
from affserve.export.contract import CHUNK_FRAMES, IMAGE_SIZE_PX

CHUNKS_AHEAD = 4  # decoded and cropped chunks that may wait for the server, 4.8 MB each
FRAMES_AHEAD = 4  # whole frames that may wait between two stages, 2.8 MB each at 1280x720
CHUNK_WAITS_FRAMES = 4 * CHUNK_FRAMES  # a chunk that few faces fill leaves after so many frames

Item = TypeVar("Item")


@dataclass(kw_only=True)
class StageSeconds:
    """Where the time goes, in seconds. The first three run in threads of their own, beside the others."""

    decode_s: float = 0.0  # and conversion to RGB, and what finding faces needs of every frame
    detect_s: float = 0.0  # finding and following faces
    crop_s: float = 0.0  # aligning and cropping them
    frames_wait_s: float = 0.0  # the server had nothing to do because no chunk was ready
    encode_wait_s: float = 0.0  # waiting for features
    head_s: float = 0.0  # waiting for predictions
    write_s: float = 0.0  # formatting and writing rows

    def timed(self, stage: str, items: Iterable[Item], *, without: str | None = None) -> Iterator[Item]:
        """Yield items; the time that each takes counts for a stage, without what counts for another one meanwhile."""

        def clock_s() -> float:
            return time.perf_counter() - (getattr(self, without) if without else 0.0)

        made = iter(items)
        while True:
            start_s = clock_s()
            item = next(made, None)
            setattr(self, stage, getattr(self, stage) + clock_s() - start_s)
            if item is None:
                return
            yield item


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Crops (n, 224, 224, 3) in the order of frames and their faces, and the frames whose last crop is among them.

    A frame with several faces may begin in one chunk and end in the next, so that chunks are full.
    """

    frames: list[SeenFrame]
    crops: NDArray[np.uint8]


class ReadAhead:
    """Decodes, detects and crops in threads of their own, a bounded number of frames and chunks ahead."""

    def __init__(self, source: FrameSource, cropper: Cropper, seconds: StageSeconds, every: int = 1) -> None:
        self._source = source
        self._cropper = cropper
        self._seconds = seconds
        self._skipping = Skipping(every)
        self._stack = ExitStack()
        self._error: Exception | None = None  # that ended the reading early

    def __enter__(self) -> ReadAhead:
        """Start reading."""
        with ExitStack() as stack:
            decoded = stack.enter_context(Ahead(self._decoded(), FRAMES_AHEAD, "decode"))
            seen = stack.enter_context(Ahead(self._seen(decoded), FRAMES_AHEAD, "faces"))
            self._chunks = stack.enter_context(Ahead(self._cut(seen), CHUNKS_AHEAD, "crops"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading and wait for the threads."""
        self._stack.close()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks until the source ends or breaks off."""
        return self._seconds.timed("frames_wait_s", self._chunks)

    def raise_error(self) -> None:
        """Raise what ended the reading early, if anything did; call it when the chunks have been used up."""
        if self._error is not None:
            raise self._error

    def _decoded(self) -> Iterator[tuple[Frame, Any]]:
        prepared = ((frame, self._cropper.prepare(frame.image)) for frame in self._source)
        return self._seconds.timed("decode_s", prepared)

    def _seen(self, decoded: Ahead[tuple[Frame, Any]]) -> Iterator[tuple[Frame, SeenFrame]]:
        for frame, prepared in decoded:
            start = time.perf_counter()
            faces = tuple(self._cropper.find(frame.image, prepared))
            self._seconds.detect_s += time.perf_counter() - start
            yield frame, SeenFrame(index=frame.index, timestamp_s=frame.timestamp_s, faces=faces)

    def _cut(self, seen: Ahead[tuple[Frame, SeenFrame]]) -> Iterator[Chunk]:
        """Yield full chunks; after an error too, what was read before it is kept."""
        frames: list[SeenFrame] = []
        crops: list[NDArray[np.uint8]] = []
        try:
            for frame, one in seen:
                judged: list[tuple[int, Face]] = []
                skipped = self._skipping.of([track_id for track_id, _ in one.faces])
                for number, (track_id, found) in enumerate(one.faces, start=1):
                    start = time.perf_counter()
                    face, crop = self._cropper.cut(frame.image, found)
                    self._seconds.crop_s += time.perf_counter() - start
                    judged.append((track_id, face))
                    if track_id not in skipped:
                        crops.append(crop)
                    # The frame goes with its last crop.
                    if len(crops) == CHUNK_FRAMES and number < len(one.faces):
                        yield _chunk(frames, crops)
                        frames, crops = [], []
                frames.append(replace(one, faces=tuple(judged), skipped=skipped))
                if len(crops) == CHUNK_FRAMES or len(frames) == CHUNK_WAITS_FRAMES:
                    yield _chunk(frames, crops)
                    frames, crops = [], []
        except Exception as error:  # noqa: BLE001 raised again by raise_error
            self._error = error
        yield _chunk(frames, crops)


class Skipping:
    """Says who is not encoded in a frame: whoever was, in one of the `every - 1` frames before, and seen since."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._left: dict[int, int] = {}  # frames until they are encoded again, by track_id

    def of(self, tracks: Sequence[int]) -> frozenset[int]:
        """Take the people in the next frame; return those who are not encoded in it."""
        left = {track: self._left.get(track, 0) for track in tracks}
        self._left = {track: (frames or self._every) - 1 for track, frames in left.items()}
        return frozenset(track for track, frames in left.items() if frames)


def _chunk(frames: list[SeenFrame], crops: list[NDArray[np.uint8]]) -> Chunk:
    none = np.empty((0, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
    return Chunk(frames=frames, crops=np.stack(crops) if crops else none)
