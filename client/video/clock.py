"""The time of a video stream: when each frame is shown, and what a file with the same times needs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MISSING_RATE_FPS = 25  # for a frame without a timestamp in a stream that announces no frame rate either


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """How a video stream counts time: what a file with the same times needs."""

    time_base: Fraction  # seconds per tick
    start_s: float  # of the stream on the container's clock, where its sound is counted from, too
    rate: Fraction  # mean frames per second
    pixel_aspect: Fraction | None  # width / height of a pixel, where it is not 1


def ticks_of(stream: VideoStream) -> Ticks:
    """Read a stream's header."""
    time_base = stream.time_base or Fraction(1, MISSING_RATE_FPS)
    aspect = stream.sample_aspect_ratio
    return Ticks(
        time_base=time_base,
        start_s=float((stream.start_time or 0) * time_base),
        rate=stream.average_rate or stream.guessed_rate or Fraction(MISSING_RATE_FPS),
        pixel_aspect=aspect if aspect is not None and aspect > 0 and aspect != 1 else None,
    )


class Clock:
    """Timestamps of a stream: the container's where there is one, else one frame interval after the frame before."""

    def __init__(self, stream: VideoStream) -> None:
        self._time_base: Fraction = stream.time_base or Fraction(1, MISSING_RATE_FPS)
        self._start = stream.start_time or 0
        rate = stream.average_rate or stream.guessed_rate or Fraction(MISSING_RATE_FPS)
        self._interval_s = float(1 / rate)
        self.end_s = 0.0  # end of the last frame seen

    def timestamp_s(self, frame: VideoFrame) -> float:
        """Seconds from the stream's start to this frame; call it once per frame, in order."""
        now = self.end_s if frame.pts is None else float((frame.pts - self._start) * self._time_base)
        self.end_s = now + (float(frame.duration * self._time_base) if frame.duration else self._interval_s)
        return now
