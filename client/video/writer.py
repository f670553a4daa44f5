"""Frames to a video file with the times and the sound of the source they came from.

Presentation times are the source's own ticks, so variable rates stay variable. Sound is copied packet by packet where
the container takes its codec, else it becomes AAC.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from affserve.client.video.clock import Ticks
from affserve.client.video.source import Frame, FrameSource, VideoSource, open_container
from affserve.train.errors import OutputError

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
ENCODERS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qmin": "2", "qmax": "5"}}  # the best comes first
MPEG4_TICKS_PER_S = 60000  # it cannot count finer than 65535
FOLDER_TICKS_PER_S = 90000


class VideoWriter:
    """Writes frames in order; use it as a context manager.

    part: the file to write, whatever its name. suffix: of the final name, which says the container. keyframe_every:
    frames, for quick and exact seeks; the encoder's own choice unless given.
    """

    def __init__(
        self,
        part: Path,
        suffix: str,
        source: FrameSource,
        *,
        encoder: str | None = None,
        keyframe_every: int | None = None,
    ) -> None:
        self.notices: tuple[str, ...] = ()
        self._keyframe_every = keyframe_every
        self._encoder = encoder or next(name for name in ENCODERS if name in av.codecs_available)
        self._source = source
        self._ticks = source.ticks if isinstance(source, VideoSource) else _folder_ticks()
        self._part = part
        self._format = CONTAINERS[suffix.lower()]
        self._stack = ExitStack()
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._audio: AudioCopy | None = None
        self._last_pts = -1

    def __enter__(self) -> VideoWriter:
        """Return the writer; the file is begun with the first frame, which tells the size."""
        return self

    def write(self, frame: Frame) -> None:
        """Append a frame."""
        try:
            stream = self._stream or self._begin(frame)
            if self._audio is not None:
                self._audio.copy_until(frame.timestamp_s)
            self._mux(stream, self._encodable(frame, stream))
        except (av.error.FFmpegError, OSError) as error:
            raise self._error(error) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left and close the file."""
        try:
            if kind is None and self._stream is not None:
                self._mux(self._stream, None)
                if self._audio is not None:
                    self._audio.copy_until(None)
                    self.notices = self._audio.notices
            self._stack.close()
        except (av.error.FFmpegError, OSError) as failure:
            if kind is None:
                raise self._error(failure) from failure

    def _begin(self, frame: Frame) -> VideoStream:
        options = {"movflags": "faststart"} if self._format != "matroska" else {}
        container = av.open(str(self._part), "w", format=self._format, options=options)
        self._container = self._stack.enter_context(container)
        stream = cast(VideoStream, container.add_stream(self._encoder, rate=self._ticks.rate))
        height, width = frame.image.shape[:2]
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context  # its options are read when the first frame is encoded
        context.options = dict(ENCODERS[self._encoder])
        context.time_base = self._time_base
        if self._keyframe_every is not None:
            context.gop_size = self._keyframe_every
            context.max_b_frames = 0  # MP4 has durations in decoding order: only so are they those of the pictures
        context.colorspace, context.color_range = int(Colorspace.ITU709), int(ColorRange.MPEG)
        context.color_primaries, context.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
        if self._ticks.pixel_aspect is not None and width >= height:
            context.sample_aspect_ratio = self._ticks.pixel_aspect
        if isinstance(self._source, VideoSource):
            self._audio = AudioCopy.of(self._source.path, container, self._ticks, self._stack)
        self._stream = stream
        return stream

    @property
    def _time_base(self) -> Fraction:
        wanted = self._ticks.time_base
        return wanted if self._encoder != "mpeg4" or wanted.denominator <= 65535 else Fraction(1, MPEG4_TICKS_PER_S)

    def _encodable(self, frame: Frame, stream: VideoStream) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(_even(frame.image), "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        lead = self._audio.video_lead_s if self._audio is not None else 0.0
        # A damaged container may step back in time; a file may not.
        self._last_pts = max(round((frame.timestamp_s + lead) / self._time_base), self._last_pts + 1)
        picture.pts, picture.time_base = self._last_pts, self._time_base
        return picture

    def _mux(self, stream: VideoStream, picture: av.VideoFrame | None) -> None:
        if self._container is not None:
            self._container.mux(stream.encode(picture))

    def _error(self, error: av.error.FFmpegError | OSError) -> OutputError:
        return OutputError(f"the overlay cannot be written: {error.strerror or error}; choose another place")


def _folder_ticks() -> Ticks:
    return Ticks(time_base=Fraction(1, FOLDER_TICKS_PER_S), start_s=0.0, rate=Fraction(30), pixel_aspect=None)


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column where their number is odd: 4:2:0 pictures have even sides."""
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8)


COPIED_CODECS = frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "flac"})  # that players find in MP4 too
AAC_FORMAT = "fltp"


class AudioCopy:
    """Copies the first audio stream of a source; re-encodes to AAC what the container does not take."""

    def __init__(self, container: InputContainer, output: OutputContainer, ticks: Ticks) -> None:
        self.notices: tuple[str, ...] = ()
        self._output = output
        self._stream: AudioStream = container.streams.audio[0]
        begin_s = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        # The earlier of both starts the new file; the other one keeps its distance.
        self._zero_s = min(begin_s, ticks.start_s)
        self._start_s = ticks.start_s
        self.video_lead_s = ticks.start_s - self._zero_s
        codec = self._stream.codec_context.codec.canonical_name
        copied = codec in output.supported_codecs and (codec in COPIED_CODECS or output.format.name == "matroska")
        self._resampler: AudioResampler | None = None
        if copied:
            self._target: AudioStream = output.add_stream_from_template(self._stream)
        else:
            self._target = output.add_stream("aac", rate=self._stream.sample_rate)
            self._resampler = AudioResampler(AAC_FORMAT, self._stream.layout, self._stream.sample_rate)
            self.notices = (f"the overlay's sound was converted from {codec} to AAC, which its container holds",)
        self._packets = self._demuxed(container)
        self._waiting: Packet[AudioStream] | None = None

    @classmethod
    def of(cls, path: Path, output: OutputContainer, ticks: Ticks, stack: ExitStack) -> AudioCopy | None:
        """Open the sound of a file; None where it has none."""
        container = stack.enter_context(open_container(path))
        return cls(container, output, ticks) if container.streams.audio else None

    def copy_until(self, timestamp_s: float | None) -> None:
        """Copy what is heard up to a time of the video stream, or all that is left."""
        limit_s = None if timestamp_s is None else timestamp_s + self._start_s
        while (packet := self._waiting or next(self._packets, None)) is not None:
            self._waiting = packet
            if limit_s is not None and float((packet.dts or 0) * packet.time_base) > limit_s:
                return
            self._copy(packet)
            self._waiting = None
        if limit_s is None and self._resampler is not None:
            self._encode(None)

    def _copy(self, packet: Packet[AudioStream]) -> None:
        if self._resampler is not None:
            for frame in packet.decode():
                self._encode(frame)
            return
        shift = round(self._zero_s / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = self._target
        self._output.mux(packet)

    def _encode(self, frame: av.AudioFrame | None) -> None:
        if self._resampler is None:
            return
        if frame is not None and frame.pts is not None and frame.time_base is not None:
            frame.pts -= round(self._zero_s / frame.time_base)
        for piece in self._resampler.resample(frame):
            self._output.mux(self._target.encode(piece))
        if frame is None:
            self._output.mux(self._target.encode(None))

    def _demuxed(self, container: InputContainer) -> Iterator[Packet[AudioStream]]:
        """Yield the packets that say when they are heard; damage ends the sound, not the pictures."""
        try:
            for packet in container.demux(self._stream):
                if packet.dts is not None:
                    yield packet
        except av.error.FFmpegError as error:
            self.notices += (f"the overlay's sound ends early: {error.strerror}",)
