"""The sound of a source into another file, in step with its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import av
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from affserve.client.video_clock import Ticks

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
        container = stack.enter_context(av.open(str(path), metadata_errors="replace"))
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
