"""Small video, image and sound files for tests, made with PyAV and OpenCV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

FPS = 30
SOUND_RATE = 16000


def moving_square(frames: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """A red background of (width, height) with a green square that moves one pixel per frame."""
    width, height = size
    images = []
    for k in range(frames):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[..., 0] = 200
        left = k % (width - 8)
        image[8:16, left : left + 8] = (0, 200, 0)
        images.append(image)
    return images


def noise(frames: int) -> list[NDArray[np.uint8]]:
    """Images that do not compress, so that the bytes of a file are its frames and not its index."""
    return list(np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8))


def write_video(
    path: Path,
    images: list[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Encode RGB images at 30 frames per second; pts, in units of 1/30 s, makes the rate variable."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, FPS)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if codec == "libx264":
            stream.codec_context.options = {"g": "10"}
        for k, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = pts[k] if pts else k
            frame.time_base = Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Encode a tenth of a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_crops(folder: Path, numbers: list[int], *, seed: int = 0) -> Path:
    """Write 112x112 images of smooth noise, named as in Aff-Wild2."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in numbers:
        small = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:05d}.png"), cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC))
    return folder


def truncated(path: Path, keep: float) -> Path:
    """Write a copy that ends early; `keep` is the part of the bytes that is left."""
    target = path.with_name(f"truncated_{path.name}")
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return target


def rotated_mp4(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the display matrix (a, b, c, d) of an MP4 file's track, as phones do: the picture is turned when shown."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    start = header + 40  # version 0: the matrix follows 40 bytes of times, identity and layer
    a, b, c, d = (value << 16 for value in matrix)
    for k, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1 << 30)):
        content[start + 4 * k : start + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def write_with_sound(
    path: Path, images: list[NDArray[np.uint8]], *, codec: str = "aac", sound_first_s: float = 0.0, start_s: float = 0.0
) -> Path:
    """Encode RGB images with a tone; the pictures start at `start_s`, the sound `sound_first_s` before them."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=SOUND_RATE)
        audio.layout = "mono"
        container.start_encoding()
        samples = SOUND_RATE * len(images) // FPS
        kind = audio.codec_context.format.name
        tone = 8000 * np.sin(np.arange(samples) / 10)
        for at in range(0, samples, 1024):
            piece = tone[None, at : at + 1024]
            array = (piece / 32768).astype(np.float32) if kind == "fltp" else piece.astype(np.int16)
            sound = av.AudioFrame.from_ndarray(array, format=kind, layout="mono")
            sound.sample_rate = SOUND_RATE
            sound.pts = at + round((start_s - sound_first_s) * SOUND_RATE)
            sound.time_base = Fraction(1, SOUND_RATE)
            container.mux(audio.encode(sound))
        for k, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = k + round(start_s * FPS), Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def write_hdr(path: Path, levels: list[float]) -> Path:
    """Encode grey bands, 16 pixels high, of 10 bits in BT.2020 with the PQ curve; levels: PQ codes, 0 to 1."""
    bands = np.repeat(np.round(np.array(levels) * 65535).astype(np.uint16), 16)
    grey = av.VideoFrame.from_ndarray(np.tile(bands[:, None, None], (1, 64, 3)), "rgb48le")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = len(bands), 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 9, 9, int(ColorTrc.SMPTE2084)
        context.color_range = int(ColorRange.MPEG)
        frame = grey.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = 0, Fraction(1, FPS)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
