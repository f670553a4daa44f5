"""Cameras and streams from the network: FFmpeg's options for little delay, and what happens when one is lost.

A lost stream is opened again, with growing pauses, until it has been silent for too long; a lost camera is an error.
Frame numbers and timestamps go on through the break and tell its length. FFmpeg's options are those of version 5 and
newer (PyAV 14 carries 7, PyAV 18 carries 8): what was RTSP's `stimeout` is `timeout`, the other protocols of the
network have `rw_timeout`; both are in microseconds.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from affserve.client.live.frames import LiveCounters, LiveFrame, now_s
from affserve.client.video.source import Pixels
from affserve.train.errors import VideoError, printable

ASSUMED_FPS = 30.0
PLAUSIBLE_FPS = (1.0, 240.0)  # an MPEG-TS may announce 90,000
LONGEST_STEP_S = 1.0  # between two timestamps of a stream; anything else is a break
SHORTEST_STEP_S = 1e-3
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
SILENCE_S = 5.0  # after which a stream counts as lost
PROBE_S = 1.0  # of a stream's beginning at most, to find out what it holds
MAX_REFUSALS = 300  # damaged packets in a row, after which a stream counts as lost


@dataclass(frozen=True, kw_only=True)
class CameraInput:
    """A camera of this machine, by V4L2 on Linux or AVFoundation on macOS."""

    advice = "is it in use by another program, may this user read it, and does it know --camera-size and --fps?"
    name: str  # number or device
    size: str | None = None  # WIDTHxHEIGHT in pixels
    fps: float | None = None
    is_download = False

    @property
    def device(self) -> str:
        """What FFmpeg calls the camera."""
        if sys.platform == "darwin":
            return f"{self.name}:none"  # picture:sound
        return f"/dev/video{self.name}" if self.name.isdecimal() else self.name

    def open(self) -> InputContainer:
        """Open the device; FFmpegError or OSError where that fails."""
        formats = {"linux": "v4l2", "darwin": "avfoundation"}
        if sys.platform not in formats:
            raise VideoError(
                f"cameras are read on Linux and macOS, not on {sys.platform}: stream it from there, as rtsp://"
            )
        asked = {"video_size": self.size, "framerate": f"{self.fps:g}" if self.fps is not None else None}
        if sys.platform == "darwin":
            # AVFoundation refuses a camera whose rate is not named exactly.
            asked["framerate"] = asked["framerate"] or f"{ASSUMED_FPS:g}"
        options = {name: value for name, value in asked.items() if value is not None}
        return av.open(self.device, format=formats[sys.platform], options={**options, "fflags": "nobuffer"})


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """A URL of any protocol that FFmpeg reads."""

    advice = "is the address right, and is something sending there?"
    url: str

    @property
    def name(self) -> str:
        """The URL without user and password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

    @property
    def is_download(self) -> bool:
        """Whether this is HTTP, by which files come too, as fast as they can."""
        return self.url.lower().startswith("http")

    def open(self) -> InputContainer:
        """Connect; FFmpegError or OSError where that fails."""
        microseconds = str(round(SILENCE_S * 1e6))
        # RTP over RTSP's own connection: no port to open in a firewall, and no half-lost pictures.
        rtsp = {"rtsp_transport": "tcp", "timeout": microseconds}
        protocol = rtsp if self.url.lower().startswith("rtsp") else {"rw_timeout": microseconds}
        probe = {"fflags": "nobuffer", "analyzeduration": str(round(PROBE_S * 1e6))}
        return av.open(self.url, options={**protocol, **probe})


class StreamClock:
    """Timestamps and numbers of frames: the stream's own steps in time, and across its breaks those of this machine."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._last: tuple[float | None, float] | None = None  # pts and time of arrival of the frame before, seconds
        self._broken = False
        self.timestamp_s = 0.0
        self.index = 0

    def tick(self, pts_s: float | None, arrived_s: float) -> None:
        """Go on to the next frame."""
        if self._last is not None:
            last_pts_s, last_arrived_s = self._last
            has_clock = pts_s is not None and last_pts_s is not None
            step_s = pts_s - last_pts_s if pts_s is not None and last_pts_s is not None else 0.0
            steady = 0 < step_s <= LONGEST_STEP_S and not self._broken
            if not steady:
                step_s = max(arrived_s - last_arrived_s, SHORTEST_STEP_S)
            missed = self._broken or (has_clock and not steady)
            self.index += max(1, round(step_s * self._fps)) if missed else 1
            self.timestamp_s += step_s
        self._last = (pts_s, arrived_s)
        self._broken = False

    def interrupt(self) -> None:
        """Say that the connection was lost: the stream's clock may start anew."""
        self._broken = True


class StreamSource:
    """Frames of a camera or a stream as they arrive.

    reconnect_for_s: seconds without a frame after which it is given up; 0 when the first loss is an error.
    """

    def __init__(self, source: CameraInput | NetworkInput, *, reconnect_for_s: float) -> None:
        self._input = source
        self._reconnect_for_s = reconnect_for_s
        self.name = printable(source.name)
        self._container: InputContainer | None = self._connected()
        self.fps = _rate_of(self._container)

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterator[LiveFrame]:
        """Yield the frames until `stop` is set; VideoError when the source is lost for good."""
        clock, pixels = StreamClock(self.fps), Pixels()
        seen_s = now_s()
        while not stop.is_set():
            lost = ""
            try:
                for picture in self._pictures():
                    seen_s = now_s()
                    clock.tick(picture.time, seen_s)
                    counters.trouble = ""
                    yield LiveFrame(
                        index=clock.index,
                        timestamp_s=clock.timestamp_s,
                        arrived_s=seen_s,
                        rgb=partial(pixels.upright_rgb, picture),
                    )
                lost = "it ended"
            except (av.error.FFmpegError, OSError) as error:
                lost = str(error.strerror)
            clock.interrupt()
            if self._reconnect_for_s == 0 and not stop.is_set():
                raise VideoError(f"{self.name} was lost ({lost}): {self._input.advice}")
            if stop.is_set() or not self._reopen(lost, seen_s, stop, counters):
                return

    def _pictures(self) -> Iterator[VideoFrame]:
        """Yield the pictures of one connection; a damaged packet costs its own pictures only."""
        if self._container is None:
            return
        with self._container as container:
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # threads that work on several frames would hold each of them back
            refusals = 0
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                    refusals = 0
                except av.error.InvalidDataError:
                    refusals += 1
                    if refusals > MAX_REFUSALS:
                        raise

    def _reopen(self, lost: str, seen_s: float, stop: threading.Event, counters: LiveCounters) -> bool:
        """Connect again and return True; False when stopped; VideoError when it takes too long."""
        pause_s = FIRST_PAUSE_S
        while True:
            counters.trouble = f"{self.name} was lost: {lost}"
            if now_s() - seen_s + pause_s > self._reconnect_for_s:
                raise VideoError(
                    f"{self.name} was lost ({lost}) and gave no frame for {now_s() - seen_s:.1f} s, --reconnect-for "
                    f"allows {self._reconnect_for_s:g} s: {self._input.advice}"
                )
            if stop.wait(pause_s):
                return False
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                self._container = self._connected()
            except VideoError as error:
                lost = str(error)
                continue
            counters.reconnects += 1
            return True

    def _connected(self) -> InputContainer:
        try:
            container = self._input.open()
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name} cannot be opened ({error.strerror}): {self._input.advice}") from error
        problem = None if container.streams.video else "sends no picture; expected a video stream"
        if problem is None and self._input.is_download and container.duration:
            problem = (
                f"is a file of {container.duration / av.time_base:.1f} s, no live stream: download it and play that"
            )
        if problem is not None:
            container.close()
            raise VideoError(f"{self.name} {problem}")
        return container


def _rate_of(container: InputContainer) -> float:
    stream = container.streams.video[0]
    lowest, highest = PLAUSIBLE_FPS
    rates = (float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate is not None)
    return next((rate for rate in rates if lowest <= rate <= highest), ASSUMED_FPS)
