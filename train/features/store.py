"""Features on disk: one `.npy` per video, whole or not there, and compared with its checksum before it is used.

A store is a folder named for the fingerprint of its encoder, so that two encoders' features never mix:

- `store.json` says what the features are;
- `VIDEO.npy` holds the features (M, D) float16 of a video's crops, as numpy.load reads them; behind them follow the
  crops' frame numbers (M,) int32, a second array, and the CRC-32 of the file's name and of all that is before it.

A file gets its name when it is complete. So any number of processes may write, and nobody who reads needs a lock.
None is forced to the disk: one that a power cut spoils is found like any other that is damaged, and made again.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import NO_SPACE, DataError, OutputError
from affserve.train.files import staged_file, write_file

SCHEMA_VERSION = 2
DESCRIPTION_FILE = "store.json"
DTYPE = np.dtype("<f2")  # of a stored number
CRC_BYTES = 4
BLOCK_BYTES = 1 << 20  # read at once to compare a checksum
LEFT_BEHIND_S = 3600  # nobody writes one video for so long: a file aside that is older is a killed process's


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """What all features of a store have in common; no others may be added to it."""

    width: int  # D, the encoder's feature width
    corpus: str  # whose crops: video names mean nothing elsewhere
    amp: str = "none"  # autocast the encoder computed in: none, bf16 or fp16

    @property
    def row_bytes(self) -> int:
        """Size of one feature on disk."""
        return self.width * DTYPE.itemsize


def read_description(folder: Path) -> StoreDescription:
    """Read what a store's features are; DataError says what to do where there is no store."""
    path = folder / DESCRIPTION_FILE
    again = f"delete {folder} and run affserve train features again"
    try:
        found = json.loads(path.read_text())
        version = found.pop("schema_version")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder} is no feature store: {error}; expected the folder that affserve train features names"
        ) from error
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version is {version}, expected {SCHEMA_VERSION}; {again}")
    try:
        return StoreDescription(**found)
    except TypeError as error:
        raise DataError(f"{path}: cannot be understood: {error}; {again}") from error


def seal(file: BinaryIO, name: str, numbers: NDArray[np.integer[Any]]) -> None:
    """Append to the file of a video, which has its features alone, their frame numbers (M,) and the checksum."""
    file.seek(0, os.SEEK_END)
    np.save(file, numbers.astype("<i4"))
    size = file.tell()
    file.write(_checksum(file, name, size))


def _checksum(file: BinaryIO, name: str, size: int) -> bytes:
    """Return the CRC-32 of a file's first bytes and leave it behind them; the name, so that exchanged files differ."""
    crc = zlib.crc32(os.fsencode(name))
    file.seek(0)
    while size > 0 and (block := file.read(min(BLOCK_BYTES, size))):
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc.to_bytes(CRC_BYTES, "little")


_State = tuple[int, int]  # of a file: when it was last changed, in ns, and its size in bytes


def _state(found: os.stat_result) -> _State:
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True, kw_only=True)
class StoredCrops:
    """The features of one video in a store; they stay on disk until somebody asks for their rows."""

    path: Path
    numbers: NDArray[np.int32]  # (M,) frame numbers from 1, ascending
    width: int  # D, the width of a feature
    start: int  # bytes before the first feature
    state: _State  # of the file that was compared with its checksum

    def read(self, positions: slice = slice(None)) -> NDArray[np.float16]:
        """Return the features (m, D) of the crops at a range of positions in `numbers`.

        Read, not mapped: a map holds a file open (a corpus has more videos than a process may have files), keeps what
        it has read resident, and ends the process where the file became shorter.
        """
        first, end, _ = positions.indices(len(self.numbers))
        count = max(0, end - first) * self.width
        try:
            with self.path.open("rb") as file:
                state = _state(os.fstat(file.fileno()))
                rows = np.fromfile(file, DTYPE, count, offset=self.start + first * self.width * DTYPE.itemsize)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read any more: {error}; run the same command again") from error
        if state != self.state or len(rows) != count:
            raise DataError(f"{self.path} was changed after it had been checked; run the same command again")
        return rows.reshape(-1, self.width)


@functools.cache  # a run compares a file once, however many times it is opened
def _checked(path: Path, state: _State) -> StoredCrops | None:
    """Compare the file of a video with its checksum; None where it is damaged."""
    with path.open("rb") as file:
        if _checksum(file, path.name, state[1] - CRC_BYTES) != file.read():
            return None
        features = np.load(path, mmap_mode="r")
        file.seek(features.offset + features.nbytes)
        numbers = np.load(file)
    return StoredCrops(path=path, numbers=numbers, width=features.shape[1], start=features.offset, state=state)


class FeatureStore:
    """The features of a corpus by one encoder: a few bytes a frame in memory, the features on disk."""

    def __init__(self, folder: Path) -> None:
        """Open what there is; a DataError says what to do where it is no store."""
        self.folder = folder
        self.description = read_description(folder)

    @staticmethod
    def create(folder: Path, description: StoreDescription) -> FeatureStore:
        """Open a store, made where there is none; DataError where it holds other features."""
        path = folder / DESCRIPTION_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_file(
                    path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(description)}, indent=1).encode()
                )
        except OSError as error:
            raise _explained(folder, error) from error
        store = FeatureStore(folder)
        found, wanted = asdict(store.description), asdict(description)
        if other := [f"{key} {value}, not {wanted[key]}" for key, value in found.items() if value != wanted[key]]:
            raise DataError(f"{folder} holds other features ({'; '.join(other)}); choose another folder")
        _remove_left_behind(folder)
        return store

    def path(self, video: str) -> Path:
        """Return where a video's features lie or would lie."""
        return self.folder / f"{video}.npy"

    def find(self, video: str) -> StoredCrops | None:
        """Return the features of a video; None where there are none or they are damaged."""
        path = self.path(video)
        try:
            return _checked(path, _state(path.stat()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}; delete it, run affserve train features again") from error

    def crops(self, video: str) -> StoredCrops:
        """Return the features of a video; DataError where there are none or they are damaged."""
        found = self.find(video)
        if found is None:
            raise self._unusable([video])
        return found

    def check_complete(self, videos: Iterable[str]) -> None:
        """Raise a DataError that names videos without features and those whose features are damaged."""
        if unusable := [video for video in videos if self.find(video) is None]:
            raise self._unusable(unusable)

    def damaged(self, videos: Iterable[str]) -> list[str]:
        """Return those of some videos whose file is not what was written."""
        return [v for v in videos if self.path(v).exists() and self.find(v) is None]

    def _unusable(self, videos: Sequence[str]) -> DataError:
        damaged = self.damaged(videos)
        missing = [video for video in videos if video not in damaged]
        found = [
            f"{what} of {len(names)} videos ({listed(names)})"
            for what, names in (("lacks features", missing), ("holds damaged features", damaged))
            if names
        ]
        return DataError(
            f"{self.folder} {' and '.join(found)}; run affserve train features again, it computes what is missing or "
            "damaged and nothing else"
        )

    def write(self, video: str, numbers: NDArray[np.integer[Any]], features: NDArray[np.float16]) -> None:
        """Put the features (M, D) of a video's frames (M,), ascending, in the place of those it had.

        DataError where float16 cannot hold them, OutputError where they cannot be written: then nothing has changed.
        """
        width = self.description.width
        if features.shape != (len(numbers), width):
            raise DataError(f"{self.folder} takes features ({len(numbers)}, {width}), got {features.shape}")
        if not np.isfinite(features).all():
            raise DataError(f"{video}: the encoder's features are not finite in float16; the encoder is not usable")
        try:
            with staged_file(self.path(video)) as file:
                np.save(file, np.asarray(features, DTYPE))
                seal(file, self.path(video).name, numbers)
        except OSError as error:
            raise _explained(self.folder, error) from error


def listed(names: Sequence[str], most: int = 5) -> str:
    """Name the first of some things and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _explained(folder: Path, error: OSError) -> OutputError:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(folder).free
        return OutputError(
            f"{folder}: no room for more features ({error.strerror}, {free / 1e9:.2f} GB free); the videos that are "
            "complete are kept: make room and run the same command again"
        )
    return OutputError(f"{folder}: features cannot be written: {error}; run the same command again")


def _remove_left_behind(folder: Path) -> None:
    """Remove what processes that were killed had written aside."""
    for path in folder.glob(".*.npy.*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                path.unlink()
