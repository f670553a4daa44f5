"""Features on disk: rows of float16 that only grow, and an index that tells whose rows they are.

A store is a folder named for the fingerprint of its encoder, so that two encoders' features never mix:

- `store.json` says what the rows are;
- `shard-000.rows` holds features (M, D) float16, back to back; each process that extracts has a shard of its own;
- `shard-000.index` has one JSON line per run of rows, and one per video that is complete;
- `shard-000.lock` is locked while somebody appends.

The index speaks of rows only after they are on the disk, so whatever a crash leaves behind it is cut off, never read.
"""

from __future__ import annotations

import itertools
import json
import mmap
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError

SCHEMA_VERSION = 1
DESCRIPTION_FILE = "store.json"
MAPPED_AROUND_BYTES = 1 << 16  # Linux maps so much around a page it is asked for
DTYPE = np.dtype("<f2")  # of a stored number


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """What all rows of a store have in common; nothing else may be added to it."""

    width: int  # D, the encoder's feature width
    corpus: str  # whose crops: video names mean nothing elsewhere
    amp: str = "none"  # autocast the encoder computed in: none, bf16 or fp16

    def __post_init__(self) -> None:
        if self.width < 1:
            raise DataError(f"feature width is {self.width}, expected at least 1")

    @property
    def row_bytes(self) -> int:
        """Size of one feature on disk."""
        return self.width * DTYPE.itemsize


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of an index: rows of a video, or that the video is complete."""

    video: str
    first: int = 0  # row of the shard
    runs: tuple[tuple[int, int], ...] = ()  # first and last frame number of each run; rows follow in this order
    crc: int = 0  # CRC-32 of the rows
    complete: bool = False  # every crop of the video is in a record before this one, or unreadable
    unreadable: tuple[int, ...] = ()  # frames whose crops could not be decoded

    @property
    def rows(self) -> int:
        """How many rows the record speaks of."""
        return sum(last - first + 1 for first, last in self.runs)

    def line(self) -> bytes:
        """Render the record as its line of the index."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"

    @staticmethod
    def of_line(line: bytes) -> Record:
        """Understand a line; ValueError where it is not one."""
        try:
            found = json.loads(line)
            runs = tuple((int(first), int(last)) for first, last in found.pop("runs"))
            return Record(runs=runs, unreadable=tuple(found.pop("unreadable")), **found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{line[:80]!r} is no index line") from error


def runs_of(numbers: NDArray[np.integer[Any]]) -> tuple[tuple[int, int], ...]:
    """Return the first and last of each run of consecutive numbers (M,), ascending."""
    if not len(numbers):
        return ()
    cuts = np.flatnonzero(np.diff(numbers) != 1)
    firsts, lasts = numbers[np.concatenate([[0], cuts + 1])], numbers[np.concatenate([cuts, [len(numbers) - 1]])]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The two files of a shard and the part of them that counts."""

    rows_file: Path
    index_file: Path
    records: tuple[Record, ...]
    rows: int  # committed
    index_bytes: int  # committed

    @staticmethod
    def rows_path(folder: Path, number: int) -> Path:
        """Return where a shard's rows lie."""
        return folder / f"shard-{number:03d}.rows"


def read_shard(rows_file: Path, description: StoreDescription) -> Shard:
    """Read a shard's index as far as it was written completely and its rows exist.

    DataError when something before the end of the index cannot be understood.
    """
    index_file = rows_file.with_suffix(".index")
    lines = index_file.read_bytes().splitlines(keepends=True) if index_file.exists() else []
    stored = rows_file.stat().st_size // description.row_bytes if rows_file.exists() else 0
    records: list[Record] = []
    rows = size = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = Record.of_line(line if line.endswith(b"\n") else b"")
        except ValueError as error:
            if number == len(lines):
                break  # the line that was being written when the writer died
            raise DataError(f"{index_file}:{number}: {error}; delete {index_file.parent} and extract again") from error
        if rows + record.rows > stored or (record.runs and record.first != rows):
            break  # its rows are gone with the end of the file, and so is everything after it
        records.append(record)
        rows, size = rows + record.rows, size + len(line)
    return Shard(rows_file=rows_file, index_file=index_file, records=tuple(records), rows=rows, index_bytes=size)


def read_description(folder: Path) -> StoreDescription:
    """Read what a store's rows are; DataError says what to do where there is no store."""
    path = folder / DESCRIPTION_FILE
    try:
        found = json.loads(path.read_text())
        version = found.pop("schema_version")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder} is no feature store: {error}; expected the folder that affserve train features names"
        ) from error
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version is {version}, expected {SCHEMA_VERSION}; extract the features again")
    try:
        return StoreDescription(**found)
    except TypeError as error:
        raise DataError(f"{path}: cannot be understood: {error}; extract the features again") from error


def checksum(rows: NDArray[np.float16]) -> int:
    """Return the CRC-32 of rows (M, D)."""
    return zlib.crc32(np.ascontiguousarray(rows, DTYPE).view(np.uint8).data)


class FeatureStore:
    """A store opened for reading: a few bytes a frame in memory, the rows on disk.

    What is appended later is not seen. Instances can be pickled and shared between processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.description = read_description(folder)
        self._shards = [read_shard(path, self.description) for path in sorted(folder.glob("shard-*.rows"))]
        # Rows are counted over all shards; the gap of one keeps a run of rows from reaching into the next shard.
        self._starts = np.cumsum([0, *(shard.rows + 1 for shard in self._shards)])
        self._maps: dict[int, mmap.mmap] = {}
        self._runs: dict[str, list[tuple[int, int, int]]] = {}  # by video: first and last frame, row of the first
        self._complete: dict[str, Record] = {}
        for start, shard in zip(self._starts.tolist(), self._shards, strict=False):
            self._take_in(shard, start)

    def _take_in(self, shard: Shard, start: int) -> None:
        for record in shard.records:
            row = start + record.first
            runs = self._runs.setdefault(record.video, [])
            for first, last in record.runs:
                runs.append((first, last, row))
                row += last - first + 1
            if record.complete:
                self._complete[record.video] = record

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # pickling a map would copy the whole file

    @property
    def videos(self) -> list[str]:
        """The names of the videos that have rows or are complete, sorted."""
        return sorted(self._runs)

    @property
    def frames(self) -> int:
        """How many rows all shards hold."""
        return sum(shard.rows for shard in self._shards)

    def is_complete(self, video: str) -> bool:
        """Say whether every crop that a video had when it was extracted has been dealt with."""
        return video in self._complete

    def unreadable(self, video: str) -> tuple[int, ...]:
        """Return the frames whose crops could not be decoded when the video was completed."""
        return self._complete[video].unreadable if video in self._complete else ()

    def check_complete(self, videos: Iterable[str]) -> None:
        """Raise a DataError that names videos without all their features."""
        missing = [video for video in videos if not self.is_complete(video)]
        if missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"{self.folder} lacks features of {len(missing)} videos ({named}); run affserve train features again, "
                "it goes on where it stopped"
            )

    def crops(self, video: str) -> StoredCrops:
        """Return the features of a video; none for one that the store has never seen."""
        runs = self._runs.get(video, [])
        numbers = np.concatenate([np.arange(first, last + 1) for first, last, _ in runs] or [np.zeros(0, np.int64)])
        rows = np.concatenate(
            [np.arange(row, row + last - first + 1) for first, last, row in runs] or [np.zeros(0, np.int64)]
        )
        # A frame that two processes computed is there twice, with the same feature.
        numbers, order = np.unique(numbers, return_index=True)
        return StoredCrops(store=self, numbers=numbers.astype(np.int32), rows=rows[order])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the features (m, D) of some rows, counted over all shards."""
        features = np.empty((len(rows), self.description.width), DTYPE)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                self._copy_run(int(rows[start]), features[start:stop])
        return features

    def _copy_run(self, row: int, out: NDArray[np.float16]) -> None:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        mapped, first = self._map(number), (row - int(self._starts[number])) * self.description.row_bytes
        out[:] = np.frombuffer(mapped, DTYPE, out.size, first).reshape(out.shape)
        # Let go of the pages, and of those the system mapped around them: they stay in its cache, but a map that keeps
        # them is resident as a whole after an epoch.
        start = max(0, first - MAPPED_AROUND_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(len(mapped), first + out.nbytes + MAPPED_AROUND_BYTES)
        mapped.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            shard = self._shards[number]
            with shard.rows_file.open("rb") as file:
                length = shard.rows * self.description.row_bytes
                self._maps[number] = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        return self._maps[number]


@dataclass(frozen=True, kw_only=True)
class StoredCrops:
    """The features of one video in a store."""

    store: FeatureStore
    numbers: NDArray[np.int32]  # (M,) frame numbers from 1, ascending
    rows: NDArray[np.int64]  # (M,) where their features are

    @property
    def width(self) -> int:
        """D, the width of a feature."""
        return self.store.description.width

    def read(self, positions: slice = slice(None)) -> NDArray[np.float16]:
        """Return the features (m, D) of the crops at a range of positions in `numbers`."""
        return self.store.read(self.rows[positions])
