"""The first half of the pipeline: a thread decodes, finds faces and cuts crops, a few chunks ahead of the server."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Cropper, FaceCrop
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.video.source import FrameSource
from affserve.export.contract import CHUNK_FRAMES, IMAGE_SIZE_PX

CHUNKS_AHEAD = 4  # decoded and cropped chunks that may wait for the server, 4.8 MB each
CHUNK_WAITS_FRAMES = 4 * CHUNK_FRAMES  # a chunk that few faces fill leaves after so many frames
STOP_POLL_S = 0.1


@dataclass(kw_only=True)
class StageSeconds:
    """Where the time goes, in seconds. The first two run in their own thread, beside the others."""

    decode_s: float = 0.0
    detect_s: float = 0.0  # finding, aligning and cropping faces
    frames_wait_s: float = 0.0  # the server had nothing to do because no chunk was ready
    encode_wait_s: float = 0.0  # waiting for features
    head_s: float = 0.0  # waiting for predictions
    write_s: float = 0.0  # formatting and writing rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Crops (n, 224, 224, 3) in the order of frames and their faces, and the frames whose last crop is among them.

    A frame with several faces may begin in one chunk and end in the next, so that chunks are full.
    """

    frames: list[SeenFrame]
    crops: NDArray[np.uint8]


class ReadAhead:
    """Decodes, detects and crops in a thread of its own, a bounded number of chunks ahead."""

    def __init__(self, source: FrameSource, cropper: Cropper, seconds: StageSeconds) -> None:
        self._source = source
        self._cropper = cropper
        self._seconds = seconds
        self._queue: queue.Queue[Chunk | None] = queue.Queue(maxsize=CHUNKS_AHEAD)
        self._stop = threading.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="affserve-frames")
        self._done: Future[None] | None = None
        self._frames: list[SeenFrame] = []  # of the chunk that is being filled
        self._crops: list[NDArray[np.uint8]] = []

    def __enter__(self) -> ReadAhead:
        """Start reading."""
        self._done = self._executor.submit(self._produce)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading and wait for the thread."""
        self._stop.set()
        self._executor.shutdown(wait=True)

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks until the source ends or breaks off."""
        while True:
            start = time.perf_counter()
            chunk = self._queue.get()
            self._seconds.frames_wait_s += time.perf_counter() - start
            if chunk is None:
                return
            yield chunk

    def raise_error(self) -> None:
        """Raise what ended the reading early, if anything did; call it when the chunks have been used up."""
        if self._done is not None:
            self._done.result()

    def _produce(self) -> None:
        try:
            for frame, found in self._look_at_each():
                for one in found:
                    self._crops.append(one.pixels)
                    # The frame goes with its last crop.
                    if len(self._crops) == CHUNK_FRAMES and one is not found[-1]:
                        self._put(self._chunk())
                self._frames.append(frame)
                if len(self._crops) == CHUNK_FRAMES or len(self._frames) == CHUNK_WAITS_FRAMES:
                    self._put(self._chunk())
                if self._stop.is_set():
                    return
        finally:
            # After an error too: what was read before it is kept.
            self._put(self._chunk())
            self._put(None)

    def _look_at_each(self) -> Iterator[tuple[SeenFrame, list[FaceCrop]]]:
        source = iter(self._source)
        while True:
            start = time.perf_counter()
            frame = next(source, None)
            decoded = time.perf_counter()
            self._seconds.decode_s += decoded - start
            if frame is None:
                return
            found = self._cropper.crop(frame.image)
            self._seconds.detect_s += time.perf_counter() - decoded
            faces = tuple((one.track_id, one.face) for one in found)
            yield SeenFrame(index=frame.index, timestamp_s=frame.timestamp_s, faces=faces), found

    def _put(self, chunk: Chunk | None) -> None:
        """Queue a chunk; give up when nobody is going to take it."""
        while not self._stop.is_set():
            try:
                return self._queue.put(chunk, timeout=STOP_POLL_S)
            except queue.Full:
                continue
        return None

    def _chunk(self) -> Chunk:
        none = np.empty((0, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
        chunk = Chunk(frames=self._frames, crops=np.stack(self._crops) if self._crops else none)
        self._frames, self._crops = [], []
        return chunk
