"""What `affserve live` looks at: a camera, a stream from the network, or a file played in real time.

In comes what the command line says, out come frames at the moment they happen. Timestamps and frame numbers go on
through a lost connection.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from affserve.client.live.file import FileInRealTime
from affserve.client.live.frames import LiveSource
from affserve.client.live.stream import CameraInput, NetworkInput, StreamSource
from affserve.client.video.source import FOLDER_FPS, FrameSource, open_source
from affserve.train.errors import VideoError

CAMERA_PATH = "/dev/video"
URL = re.compile(r"[a-z][a-z0-9+.]*://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Which source, and how it is to be read."""

    source: str  # number or device of a camera, URL, or path of a file
    camera_size: str | None = None  # WIDTHxHEIGHT in pixels, asked of a camera; None: its own choice
    fps: float | None = None  # frames per second, asked of a camera; also the clock of a folder of images
    reconnect_for_s: float = 60.0  # seconds without a frame after which a lost stream is given up; 0: at once
    loop: bool = False  # play a file over and over
    threads: int = 0  # of decoding; 0: FFmpeg decides

    def __post_init__(self) -> None:
        if self.camera_size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.camera_size):
            raise VideoError(f"camera size is {self.camera_size!r}, expected WIDTHxHEIGHT in pixels, as 640x480")
        for name, value, good in (
            ("fps", self.fps, self.fps is None or self.fps > 0),
            ("reconnect_for_s", self.reconnect_for_s, self.reconnect_for_s >= 0),
        ):
            if not good:
                raise VideoError(f"{name} is {value}, expected a positive number")

    @property
    def is_camera(self) -> bool:
        """Whether the source is a camera of this machine."""
        return self.source.isdecimal() or self.source.startswith(CAMERA_PATH)

    @property
    def is_network(self) -> bool:
        """Whether the source is a URL."""
        return URL.match(self.source) is not None

    @property
    def is_file(self) -> bool:
        """Whether the source has an end and no clock of its own."""
        return not (self.is_camera or self.is_network)


def open_file(settings: SourceSettings) -> FrameSource | None:
    """Open the source if it is a file; VideoError where that, or a camera, is missing: before anything is started."""
    if settings.is_file:
        return open_source(settings.source, fps=settings.fps or FOLDER_FPS, threads=settings.threads)
    if settings.is_camera and sys.platform.startswith("linux") and not Path(_camera(settings).device).exists():
        present = sorted(str(path) for path in Path("/dev").glob("video*"))
        raise VideoError(
            f"there is no camera {_camera(settings).device}; found: {', '.join(present) or 'none'}; expected the "
            "number or the device of a camera, a URL, or a file"
        )
    return None


def open_live(settings: SourceSettings, file: FrameSource | None = None) -> LiveSource:
    """Connect to a source; VideoError says why that is not possible. file: what `open_file` has opened already."""
    if settings.is_camera:
        return StreamSource(_camera(settings), reconnect_for_s=0.0)
    if settings.is_network:
        return StreamSource(NetworkInput(url=settings.source), reconnect_for_s=settings.reconnect_for_s)
    file = file or open_source(settings.source, fps=settings.fps or FOLDER_FPS, threads=settings.threads)
    return FileInRealTime(file, loop=settings.loop)


def _camera(settings: SourceSettings) -> CameraInput:
    return CameraInput(name=settings.source, size=settings.camera_size, fps=settings.fps)
