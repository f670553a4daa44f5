"""Features kept in a file: what an encoder made of each face of a video, with all that rows tell of the face itself.

With them a head answers again, and no frame is decoded or encoded. The file is NumPy's `.npz`, for who trains heads:

- `features` (m, D) float32: one for each face that was encoded, in the order of `faces`;
- `faces` (n,): frame, track_id, box_px, face_score, yaw_deg, roll_deg, sharpness, encoded;
- `frames` (f,): frame, timestamp_s, number of faces;
- `about`: JSON: the provenance of the rows, with the encoder's fingerprint.

Features lie in a file without a name while they come, and are read a block at a time: memory holds but the tables.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.face import Face
from affserve.client.faces.quality import Quality
from affserve.client.results.output_file import staged
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.video.source import Frame
from affserve.export.contract import FEATURE_WIDTH
from affserve.train.errors import OutputError, VideoError
from affserve.train.windows import WINDOW_FRAMES

npy: Any = np.lib.format  # which has no types
SUFFIX = ".features.npz"
FRAME = np.dtype([("frame", "<i8"), ("timestamp_s", "<f8"), ("faces", "<i8")])
QUALITY = [(name, "<f8") for name in ("face_score", "yaw_deg", "roll_deg", "sharpness")]
FACE = np.dtype([("frame", "<i8"), ("track_id", "<i8"), ("box_px", "<f8", (4,)), *QUALITY, ("encoded", "?")])
NO_LANDMARKS = np.empty((0, 2), dtype=np.float32)
Block = tuple[Sequence[SeenFrame], NDArray[np.float32]]
"""Frames in order, and the features (n, D) of those of their faces that are encoded."""


def is_kept(source: Path | str) -> bool:
    """Say whether a source is a file of kept features."""
    return str(source).endswith(SUFFIX)


class FeatureKeeper:
    """Takes a copy of what passes, and writes it at the end; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: list[tuple[NDArray[Any], NDArray[Any]]] = [(np.empty(0, FRAME), np.empty(0, FACE))]

    def __enter__(self) -> FeatureKeeper:
        """Open a place for the features; OutputError where that cannot be."""
        with self._told():
            self._features: IO[bytes] = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was not written."""
        self._features.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def passed(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Yield the blocks as they are."""
        for frames, features in blocks:
            faces = [
                (one.index, track, face.box_px, face.score, *astuple(face.quality), track not in one.skipped)
                for one in frames
                for track, face in one.faces
            ]
            seen = [(one.index, one.timestamp_s, len(one.faces)) for one in frames]
            self._tables.append((np.array(seen, FRAME), np.array(faces, FACE)))
            with self._told():
                self._features.write(features.astype("<f4").tobytes())
            yield frames, features

    def write(self, about: Mapping[str, Any]) -> None:
        """Write all that has passed; about: see `KeptFeatures.about`."""
        frames, faces = map(np.concatenate, zip(*self._tables, strict=True))
        header = {"descr": "<f4", "fortran_order": False, "shape": (int(faces["encoded"].sum()), FEATURE_WIDTH)}
        with staged(self._path) as part, self._told():
            with part.open("wb") as file:
                np.savez(file, frames=frames, faces=faces, about=np.array(json.dumps(about)))
            with zipfile.ZipFile(part, "a") as archive, archive.open("features.npy", "w", force_zip64=True) as member:
                npy.write_array_header_1_0(member, header)
                self._features.seek(0)
                shutil.copyfileobj(self._features, member)


class KeptFeatures:
    """Such a file, in the place of a video; VideoError where it is none or is damaged."""

    already_cropped = True  # nobody looks for faces

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames_hint: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Yield no frame: there is none."""
        raise VideoError(f"{self.path} holds features, and no pictures: name the video")

    @cached_property
    def about(self) -> dict[str, Any]:
        """`source` (name of the video), `patience_frames`, `every`, `error` (why it broke off) and `provenance`."""
        with self._opened() as archive:
            about: dict[str, Any] = json.loads(str(_array(archive, "about")))
            return about

    def check(self, encoder: str) -> None:
        """Raise a VideoError unless the features are those of this encoder, told by its fingerprint."""
        kept = self.about["provenance"]["encoder"]
        if kept != encoder or encoder == "unknown":
            raise VideoError(
                f"{self.path} holds features of the encoder {kept}, and the repository's is {encoder}: give one with "
                "a head for the former, or the video"
            )

    def blocks(self) -> Iterator[Block]:
        """Yield what has passed, in blocks of a window."""
        with self._opened() as archive:
            frames, faces = _array(archive, "frames").tolist(), _array(archive, "faces")
            starts = np.cumsum([0, *(count for _, _, count in frames)])
            with archive.open("features.npy") as member:
                npy.read_magic(member)
                npy.read_array_header_1_0(member)
                for first in range(0, len(frames), WINDOW_FRAMES):
                    block = range(first, min(first + WINDOW_FRAMES, len(frames)))
                    seen = [_seen_frame(frames[k], faces[starts[k] : starts[k + 1]]) for k in block]
                    encoded = sum(frame.encoded for frame in seen)
                    features = np.frombuffer(member.read(4 * FEATURE_WIDTH * encoded), "<f4")
                    yield seen, features.reshape(encoded, FEATURE_WIDTH)

    def raise_error(self) -> None:
        """Raise what ended the reading of the video early, if anything did."""
        if self.about["error"]:
            raise VideoError(self.about["error"])

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise VideoError(f"{self.path} cannot be read as kept features: {error}; make it again") from error


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        return np.asarray(npy.read_array(member, allow_pickle=False))


def _seen_frame(record: tuple[Any, ...], faces: NDArray[Any]) -> SeenFrame:
    index, timestamp_s, _ = record
    found = []
    for _, track_id, (x, y, width, height), score, yaw_deg, roll_deg, sharpness, _ in faces.tolist():
        quality = Quality(yaw_deg=yaw_deg, roll_deg=roll_deg, sharpness=sharpness)
        face = Face(box_px=(x, y, width, height), score=score, landmarks_px=NO_LANDMARKS, quality=quality)
        found.append((track_id, face))
    skipped = frozenset(faces["track_id"][~faces["encoded"]].tolist())
    return SeenFrame(index=index, timestamp_s=timestamp_s, faces=tuple(found), skipped=skipped)
