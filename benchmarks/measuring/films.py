"""Videos to measure with: a drawn film, films of any length, and mosaics with one to five people."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.random_models import CACHE
from affserve.client.video.source import open_source
from affserve.client.wire.messages import encode_jpeg
from affserve.client.wire.transport import JPEG_QUALITY
from affserve.export.contract import IMAGE_SIZE_PX

FILM_FRAMES = 300
COLUMNS, ROWS = 3, 2
TILE_PX = 240
BACKGROUND = 96  # grey level of an empty tile
MOST_FACES = COLUMNS * ROWS


def drawn_film(cache: Path = CACHE) -> Path:
    """Return a film of one generated person, 640x360 at 30 frames per second, drawn now unless it was before."""
    from affserve.train.synthetic.corpus import write_corpus
    from affserve.train.synthetic.plan import SyntheticConfig

    path = cache / f"film-{FILM_FRAMES}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = SyntheticConfig(
            videos=2, frames_min=30, frames_max=30, whole_frame_videos=2, whole_frame_frames=FILM_FRAMES
        )
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            write_corpus(Path(folder) / "corpus", config, workers=1)
            films = sorted((Path(folder) / "corpus" / "videos").glob("*.mp4"))
            # The first one is of a variable frame rate.
            films[-1].replace(path)
    return path


def mosaic(film: Path, faces: int, frames: int, target: Path) -> Path:
    """Write a film of `frames` frames in which `faces` people are seen side by side, each at another moment."""
    if not 1 <= faces <= MOST_FACES:
        raise ValueError(f"faces is {faces}, expected 1 to {MOST_FACES}")
    tiles = [_tile(frame.image) for frame in open_source(film)]
    return write_film(_mosaics(tiles, faces, frames), target)


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the middle square of an image as (TILE_PX, TILE_PX, 3)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = image[top : top + side, left : left + side]
    return np.asarray(cv2.resize(middle, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _mosaics(tiles: list[NDArray[np.uint8]], faces: int, frames: int) -> Iterator[av.VideoFrame]:
    apart = len(tiles) // MOST_FACES
    for number in range(frames):
        canvas = np.full((ROWS * TILE_PX, COLUMNS * TILE_PX, 3), BACKGROUND, dtype=np.uint8)
        for face in range(faces):
            top, left = (face // COLUMNS) * TILE_PX, (face % COLUMNS) * TILE_PX
            canvas[top : top + TILE_PX, left : left + TILE_PX] = tiles[(number + face * apart) % len(tiles)]
        yield av.VideoFrame.from_ndarray(canvas, format="rgb24")


FPS = 30


def loop_film(film: Path, frames: int, target: Path) -> Path:
    """Write a film of exactly `frames` frames by playing another one over and over."""
    return write_film(itertools.islice(_played_forever(film), frames), target)


def write_film(frames: Iterable[av.VideoFrame], target: Path) -> Path:
    """Write frames, all as large as the first one, as a film of FPS."""
    with av.open(str(target), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target


def _played_forever(film: Path) -> Iterator[av.VideoFrame]:
    while True:
        with av.open(str(film)) as source:
            yield from source.decode(video=0)


def smooth_jpeg(seed: int = 0) -> bytes:
    """Return a JPEG of smooth random content: white noise would make a file six times as large as a face's."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    large = cv2.resize(small, (IMAGE_SIZE_PX, IMAGE_SIZE_PX), interpolation=cv2.INTER_CUBIC)
    return encode_jpeg(large.astype(np.uint8, copy=False), JPEG_QUALITY)
