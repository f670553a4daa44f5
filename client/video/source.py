"""Videos, images and folders of crops as one stream of upright RGB frames with true timestamps.

In comes a path, out come frames in order, one at a time, each exactly once; nothing is sought and nothing is kept, so a
ten-hour file needs the memory of a ten-second one. Timestamps are the container's own (pts x time base, counted from
the stream's announced start) and never computed from a frame rate, because phones and GIFs have none.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from affserve.client.video.clock import Clock, Ticks, ticks_of
from affserve.client.video.container_size import announced_bytes
from affserve.train.crops import CROP_SIZE_PX
from affserve.train.errors import VideoError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
FOLDER_FPS = 30.0  # frames per second of a folder of crops, which carries no clock of its own
TRUNCATION_SLACK_S = 0.5  # a stream that ends this much before its announced end has lost its tail
MAX_REFUSALS = 1000  # damaged places in a row, after which the rest of a file is given up
MOST_PIXELS = 100_000_000  # of a picture: one of 20,000 x 20,000 takes 2.4 GiB and a minute
# What may be inside a file, whatever its name: containers that hold their pictures themselves. Lists of other files
# (ffconcat, HLS, DASH, SDP) are not among them: who analyses a file wants nothing of what lies beside it.
FORMATS = (
    *("3gp", "amv", "apng", "asf", "av1", "avi", "avif", "dv", "flv", "gif", "gxf", "h261", "h263", "h264", "hevc"),
    *("ivf", "m4v", "matroska", "mjpeg", "mov", "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1"),
    *("vvc", "webp", "wtv", "yuv4mpegpipe"),
    *("aac", "flac", "mp3", "wav"),  # which have no pictures, and are told so
)
SPARSEST_NUMBERING = 100  # numbers per image in a folder, above which the names are no frame numbers


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded frame.

    index: 0, 1, 2, ... in a video; in a folder the number that the file name carries.
    timestamp_s: seconds since the start of the video stream.
    image: (H, W, 3) uint8, RGB, upright.
    """

    index: int
    timestamp_s: float
    image: NDArray[np.uint8]


Progress = Callable[[int, int | None], None]
"""Called with the number of frames done so far and the number that the container announces, if it does."""


class FrameSource(Protocol):
    """Something that yields frames in order, from the beginning each time that it is iterated.

    frames_hint is what the container announces (None when it says nothing): for a progress bar only, since announced
    and decoded counts differ in practice. already_cropped says that the images are face crops.
    """

    path: Path
    frames_hint: int | None
    already_cropped: bool

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame; a VideoError at the end says that the file broke off, after all readable frames."""
        ...


def open_source(
    path: str | os.PathLike[str], *, fps: float = FOLDER_FPS, threads: int = 0, most_pixels: int = MOST_PIXELS
) -> FrameSource:
    """Open a video file, a still image (one frame at 0 s) or a folder of numbered images.

    fps: clock of a folder of images, unused otherwise. threads: for decoding, 0 lets the decoder choose. most_pixels:
    of a picture; larger ones are refused before they are decoded.
    VideoError: the path is missing, empty, not a video, or has no video stream.
    """
    path = Path(path)
    if not path.exists():
        if glob.has_magic(str(path)):
            raise VideoError(f"no file matches {path}; expected a pattern of videos, as 'clips/**/*.mp4'")
        raise VideoError(f"{path} does not exist; expected a video, an image or a folder of numbered images")
    if path.is_dir():
        return FolderSource(path, fps=fps, most_pixels=most_pixels)
    if path.stat().st_size == 0 and path.is_file():
        raise VideoError(f"{path} is empty (0 bytes); expected a video or an image")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, most_pixels=most_pixels)
    return VideoSource(path, threads=threads, most_pixels=most_pixels)


def check_size(path: Path, width: int, height: int, most_pixels: int) -> None:
    """Refuse a picture that is too large to be decoded."""
    if width * height > most_pixels:
        raise VideoError(
            f"{path} has {width} x {height} pixels, expected at most {most_pixels / 1e6:g} million: where there is "
            "memory and time for it (6 bytes a pixel), allow more with --max-megapixels"
        )


def read_image(path: Path, most_pixels: int = MOST_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB: 8 bits, EXIF rotation applied, transparency dropped."""
    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror or error}") from error
    content = encoded.tobytes()
    check_size(path, *_size_of_image(content), most_pixels)
    if _is_animated(content):
        raise VideoError(
            f"{path} is animated, and of such images only the first picture could be read: convert it to a video first"
        )
    try:
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error as error:
        raise VideoError(f"{path} cannot be decoded as an image: {error.err}") from error
    if decoded is None:
        raise VideoError(f"{path} cannot be decoded as an image ({encoded.size} bytes); is it complete?")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _size_of_image(content: bytes) -> tuple[int, int]:
    """Return width and height as the head of an image file tells them; 0, 0 where it does not."""
    # The readers themselves, since Image.open has limits of its own.
    readers: dict[bytes, Callable[[io.BytesIO], Any]] = {
        b"\x89PNG": PngImageFile,
        b"\xff\xd8": JpegImageFile,
        b"BM": BmpImageFile,
        b"RIFF": WebPImageFile,
    }
    with suppress(OSError, ValueError, SyntaxError, IndexError, StopIteration):  # as they say that it is damaged
        reader = next(reader for magic, reader in readers.items() if content.startswith(magic))
        with reader(io.BytesIO(content)) as image:
            return int(image.size[0]), int(image.size[1])
    return 0, 0


def _is_animated(content: bytes) -> bool:
    """Say whether an image file holds several: a WebP with the flag for it, or a PNG with a chunk that counts them."""
    if content.startswith(b"RIFF"):
        return content[12:16] == b"VP8X" and bool(content[20:21] > b"" and content[20] & 2)
    return content.startswith(b"\x89PNG") and b"acTL" in content[: max(0, content.find(b"IDAT"))]


class ImageSource:
    """A still image: one frame at 0 s."""

    def __init__(self, path: Path, *, most_pixels: int = MOST_PIXELS) -> None:
        self.path = path
        self._most_pixels = most_pixels
        self.frames_hint: int | None = 1
        self.already_cropped = read_image(path, most_pixels).shape[:2] == (CROP_SIZE_PX, CROP_SIZE_PX)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the image."""
        yield Frame(index=0, timestamp_s=0.0, image=read_image(self.path, self._most_pixels))


class FolderSource:
    """A folder of images named by frame number, as Aff-Wild2's `cropped_aligned/<video>/00001.jpg`; gaps are normal.

    A few images of other names may lie beside them and are no frames.

    Frame 1 is at 0 s (frame 0, in a folder that has one), and the others follow at the given rate.
    """

    def __init__(self, path: Path, *, fps: float, most_pixels: int = MOST_PIXELS) -> None:
        if not fps > 0:
            raise VideoError(f"frame rate is {fps:g}, expected more than 0 frames per second")
        self.path = path
        self._fps = fps
        self._most_pixels = most_pixels
        files = _numbered_images(path)
        self.frames_hint: int | None = len(files)
        self.already_cropped = _first_shape(files, path, most_pixels) == (CROP_SIZE_PX, CROP_SIZE_PX)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the images in the order of their numbers; those that cannot be decoded are told at the end."""
        failures: list[VideoError] = []
        files = _numbered_images(self.path)
        first = min(1, files[0][0])
        for number, file in files:
            try:
                image = read_image(file, self._most_pixels)
            except VideoError as error:
                failures.append(error)
                continue
            yield Frame(index=number, timestamp_s=(number - first) / self._fps, image=image)
        if failures:
            raise VideoError(f"{len(failures)} of {len(files)} images were left out; the first: {failures[0]}")


def _first_shape(files: list[tuple[int, Path]], folder: Path, most_pixels: int) -> tuple[int, ...]:
    """Return height and width of the first image that can be read; the others are told of while iterating."""
    for _, file in files:
        with suppress(VideoError):
            return read_image(file, most_pixels).shape[:2]
    raise VideoError(f"{folder}: none of the {len(files)} images can be decoded; are they complete?")


def _numbered_images(folder: Path) -> list[tuple[int, Path]]:
    images = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise VideoError(f"{folder} holds no images ({kinds}) and no videos; expected files like 00001.jpg")
    if not is_sequence(images):
        raise VideoError(
            f"{folder} holds {len(images)} images that are not the frames of one video, such as {min(images).name}: "
            "their names are no frame numbers; expected names like 00001.jpg, or each image as a source of its own"
        )
    numbered = sorted((number, file) for file in images if (number := frame_number(file)) is not None)
    distinct = len({number for number, _ in numbered})
    if distinct < len(numbered):
        raise VideoError(f"{folder} holds {len(numbered)} images for {distinct} frame numbers; expected one image each")
    return numbered


def frame_number(image: Path) -> int | None:
    """Return the number that an image is named by; None for another name."""
    return int(image.stem) if image.stem.isascii() and image.stem.isdigit() else None


def is_sequence(images: Sequence[Path]) -> bool:
    """Say whether the images of a folder are frames of one video: most are named by numbers, and those lie close."""
    numbers = [number for image in images if (number := frame_number(image)) is not None]
    return 2 * len(numbers) > len(images) and max(numbers) - min(numbers) < SPARSEST_NUMBERING * len(numbers)


class VideoSource:
    """A video file, decoded front to back by FFmpeg."""

    def __init__(self, path: Path, *, threads: int, most_pixels: int = MOST_PIXELS) -> None:
        self.path = path
        self._threads = threads
        self._most_pixels = most_pixels
        self.already_cropped = False
        with _opened(path, most_pixels) as (container, stream):
            self.frames_hint: int | None = _announced_frames(container, stream)
            self.ticks: Ticks = ticks_of(stream)

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded; damaged packets in the middle are stepped over."""
        with _opened(self.path, self._most_pixels) as (container, stream):
            stream.thread_type = "AUTO"
            # The header's size is checked; a stream may change it.
            stream.codec_context.options = {"max_pixels": str(self._most_pixels)}
            stream.codec_context.thread_count = self._threads
            clock, pixels = Clock(stream), Pixels()
            index = -1
            for index, frame in enumerate(_decoded(container, stream)):
                yield Frame(index=index, timestamp_s=clock.timestamp_s(frame), image=pixels.upright_rgb(frame))
            if index < 0:
                raise VideoError(f"{self.path} has a video stream of which no frame could be decoded; is it complete?")
            self._check_end(clock.end_s, _announced_end_s(container, stream), index + 1)

    def _check_end(self, end_s: float, announced_s: float | None, frames: int) -> None:
        announced, size = announced_bytes(self.path), self.path.stat().st_size
        if announced is not None and size < announced:
            lost = f"has {size} bytes although it announces {announced}"
        elif announced_s is not None and end_s < announced_s - TRUNCATION_SLACK_S:
            lost = f"announces {announced_s:.2f} s"
        else:
            return
        raise VideoError(
            f"{self.path} breaks off at {end_s:.2f} s and {lost}: it is truncated; the {frames} frames that could be "
            "decoded are in the result"
        )


def open_container(path: Path, most_pixels: int = MOST_PIXELS) -> InputContainer:
    """Open a file that is what it holds; FFmpegError for anything else, lists of other files included."""
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "max_pixels": str(most_pixels)}
    # Without `file:` a name such as `concat:other.mp4` would be read as a protocol; titles are in any encoding.
    return av.open(f"file:{os.fspath(path)}", options=options, metadata_errors="replace")


@contextmanager
def _opened(path: Path, most_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream; everything FFmpeg refuses inside the block becomes a VideoError."""
    try:
        with open_container(path, most_pixels) as container:
            # A picture of the cover is a stream, too.
            videos = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not videos:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
                raise VideoError(f"{path} holds no video stream (found: {kinds}); expected a video with faces")
            stream = videos[0]
            if getattr(stream, "codec_context", None) is None:  # its stubs promise one
                raise VideoError(f"{path} holds a video in a codec that FFmpeg does not know; is its header damaged?")
            check_size(path, stream.codec_context.width, stream.codec_context.height, most_pixels)
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} cannot be read as a video ({error.strerror}); expected a complete file that holds its pictures "
            f"itself, none of more than {most_pixels / 1e6:g} million pixels, or an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))})"
        ) from error


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the stream's frames; a packet that FFmpeg refuses costs its own frames, never those after it."""
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    refusals = 0
    packets = container.demux(stream)
    while refusals < MAX_REFUSALS:
        try:
            packet = next(packets, None)
        except av.error.InvalidDataError:
            # The demuxer has stepped over the damage; a generator that raised is finished, so take a new one.
            refusals += 1
            packets = container.demux(stream)
            continue
        if packet is None:
            return
        refusals = 0
        yield packet


def _announced_frames(container: InputContainer, stream: VideoStream) -> int | None:
    if stream.frames:
        return stream.frames
    duration_s = _announced_end_s(container, stream)
    rate = stream.average_rate or stream.guessed_rate
    return round(duration_s * rate) if duration_s and rate else None


def _announced_end_s(container: InputContainer, stream: VideoStream) -> float | None:
    """Length of the video stream as announced; the container's only where no other stream can be the longer one."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


class Pixels:
    """Converts the frames of one stream; keeps the tables that swscale makes for it."""

    def __init__(self) -> None:
        self._converter = VideoReformatter()  # a new one for each frame would make its tables and threads anew

    def upright_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert a frame to (H, W, 3) uint8 RGB and undo the rotation that the container asks for.

        High dynamic range (PQ, HLG) is mapped to what a standard screen shows: read as it stands, it is grey and flat.
        """
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as np.rot90 counts
        if frame.color_trc in HDR_CURVES:
            frame = self._converter.reformat(
                frame,
                format="rgb24",
                dst_color_trc=ColorTrc.IEC61966_2_1,
                dst_color_primaries=ColorPrimaries.BT709,
                threads=1,
            )
        image = np.asarray(self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8)
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
