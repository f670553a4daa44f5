"""Frames on their way to the encoder: a thread finds faces and cuts crops while the server computes the frames before.

Each frame is looked at as soon as it is there. What is ready when the server is free goes to it together, so that a
frame which took longer delays the next ones and drops none. Only when more wait than can be answered within the limit
of `Pace` are frames thinned out (frames.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Cropper
from affserve.client.live.frames import LiveFrame, NewestFrames, Pace, now_s
from affserve.client.sequences.seen_frame import SeenFrame

POLL_S = 0.1  # how often a quiet source is left to see whether anyone wants to stop


@dataclass(frozen=True, kw_only=True, eq=False)
class LookedAt:
    """A frame whose faces have been found."""

    seen: SeenFrame
    crops: list[NDArray[np.uint8]]  # (224, 224, 3), of its faces
    arrived_s: float


class Looker:
    """Finds the faces of one source's frames, in order; room: frames after which a break makes everybody new."""

    def __init__(self, make_cropper: Callable[[], Cropper], room: int) -> None:
        self._make_cropper = make_cropper
        self.cropper = make_cropper()
        self._room = room
        self._newest = -1  # frame number
        self._shape: tuple[int, ...] | None = None  # of the last image
        self._tracks = 0  # that earlier croppers have numbered
        self._highest = -1  # track_id so far

    def look(self, frame: LiveFrame) -> LookedAt:
        """Find the faces of the next frame and cut them out."""
        image = frame.rgb()
        is_late = self._newest >= 0 and frame.index - self._newest >= self._room
        if is_late or image.shape != (self._shape or image.shape):
            # After so long a break, or in a picture of another size, whoever is seen is a new person.
            self.cropper, self._tracks = self._make_cropper(), self._highest + 1
        self._newest, self._shape = frame.index, image.shape
        found = self.cropper.crop(image)
        faces = tuple((self._tracks + one.track_id, one.face) for one in found)
        self._highest = max([self._highest, *(track for track, _ in faces)])
        return LookedAt(
            seen=SeenFrame(index=frame.index, timestamp_s=frame.timestamp_s, faces=faces),
            crops=[one.pixels for one in found],
            arrived_s=frame.arrived_s,
        )


class LookedAhead(AbstractContextManager["LookedAhead"]):
    """Looks at the newest frames in a thread of its own for as long as the context lasts."""

    def __init__(self, newest: NewestFrames, look: Callable[[LiveFrame], LookedAt], pace: Pace) -> None:
        self._newest = newest
        self._look = look
        self._pace = pace
        self._ready: list[LookedAt] = []
        self._taken: tuple[int, float] = (0, 0.0)  # how many frames, and when
        self._changed = threading.Condition()
        self._stopped = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="affserve-live-faces")
        self._done: Future[None]

    def __enter__(self) -> LookedAhead:
        """Start looking."""
        self._done = self._executor.submit(self._run)
        self._done.add_done_callback(self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking and wait for the thread."""
        self._stopped = True
        self._tell()
        self._executor.shutdown()

    def take(self, timeout_s: float) -> list[LookedAt] | None:
        """Return what is ready, nothing when the time is up, or None when the source has ended.

        The time since the last ones were taken is what the server needed for them. Whatever broke the source off is
        raised once its last frames have been taken.
        """
        count, taken_s = self._taken
        with self._changed:
            if count:
                self._pace.saw(count, now_s() - taken_s)
            self._changed.wait_for(lambda: self._ready or self._done.done(), timeout_s)
            frames, self._ready = self._ready, []
            self._changed.notify_all()
        self._taken = len(frames), now_s()
        if not frames and self._done.done():
            self._done.result()
            return None
        return frames

    def _run(self) -> None:
        while (room := self._room()) and (frames := self._newest.take(room, POLL_S)) is not None:
            for frame in frames:
                looked = self._look(frame)
                with self._changed:
                    self._ready.append(looked)
                    self._changed.notify_all()

    def _room(self) -> int:
        """Return how many more frames may be ready, waiting until one may; 0 when nobody wants any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._pace.most)
            return 0 if self._stopped else self._pace.most - len(self._ready)

    def _tell(self, _: object = None) -> None:
        with self._changed:
            self._changed.notify_all()
