"""A file played in real time, at its own timestamps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from affserve.client.live.frames import LiveCounters, LiveFrame, now_s
from affserve.client.video.source import FOLDER_FPS, Frame, FrameSource
from affserve.train.errors import VideoError, printable

LATEST_S = 1.0  # how far decoding may fall behind the timestamps before the file's clock is put back
FIRST_FRAMES = 10  # whose timestamps tell the frame rate


class FileInRealTime:
    """A video, image or folder whose frames arrive when their timestamps say, whether anyone is ready or not.

    loop: play it over and over, numbers and timestamps going on.
    """

    def __init__(self, source: FrameSource, *, loop: bool = False) -> None:
        self._source = source
        self._loop = loop
        self.name = printable(source.path.name)
        self.fps = _rate_of(source)

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterator[LiveFrame]:
        """Yield each frame when it is due; a VideoError at the end says that the file broke off."""
        began_s = now_s()
        for index, (timestamp_s, frame) in enumerate(self._played()):
            late_s = now_s() - (began_s + timestamp_s)
            if late_s > LATEST_S:
                # Without this a file that decodes too slowly would be ever further behind, and so would every answer.
                began_s += late_s
                counters.slipped_s += late_s
            elif stop.wait(max(0.0, -late_s)):
                return
            yield LiveFrame(
                index=index,
                timestamp_s=timestamp_s,
                arrived_s=began_s + timestamp_s,
                rgb=partial(getattr, frame, "image"),
            )

    def _played(self) -> Iterator[tuple[float, Frame]]:
        """Yield the frames of the file, or of all its repetitions, with ascending timestamps."""
        start_s = last_s = 0.0
        while True:
            for frame in self._source:
                last_s = start_s + frame.timestamp_s
                yield last_s, frame
            if not self._loop:
                return
            start_s = last_s + 1 / self.fps


def _rate_of(source: FrameSource) -> float:
    """Return frames per second, from the first timestamps; that of a folder where one frame is all there is."""
    seen: list[float] = []
    with suppress(VideoError):  # a damaged file says so when it is played
        seen.extend(frame.timestamp_s for frame in islice(source, FIRST_FRAMES))
    span_s = seen[-1] - seen[0] if seen else 0.0
    return (len(seen) - 1) / span_s if span_s > 0 else FOLDER_FPS
