"""Appending to a feature store so that a process may die at any moment.

Rows go to the disk first, then the index speaks of them. Whoever opens the shard next cuts off what the index does not
speak of, so a row is either right or absent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import zlib
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError, OutputError
from affserve.train.features.store import (
    DESCRIPTION_FILE,
    DTYPE,
    SCHEMA_VERSION,
    Record,
    Shard,
    StoreDescription,
    checksum,
    read_description,
    read_shard,
    runs_of,
)
from affserve.train.files import write_file

COMMIT_S = 2.0  # a killed process loses at most the work of about so long
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FeatureWriter:
    """Appends the features of videos to one shard; a context manager that commits what it was given."""

    def __init__(self, folder: Path, description: StoreDescription, shard: int = 0) -> None:
        self.folder = folder
        self._description = description
        folder.mkdir(parents=True, exist_ok=True)
        rows_file = Shard.rows_path(folder, shard)
        self._lock = _lock(rows_file.with_suffix(".lock"))
        try:
            _agree(folder, description)
            found = _cut_torn_end(rows_file, description)
            self._rows_fd = os.open(found.rows_file, os.O_WRONLY | os.O_APPEND)
            self._index_fd = os.open(found.index_file, os.O_WRONLY | os.O_APPEND)
        except BaseException:
            os.close(self._lock)
            raise
        self._next_row = found.rows
        self._pending: list[Record] = []
        self._committed_s = time.monotonic()

    def append(self, video: str, numbers: NDArray[np.integer[Any]], features: NDArray[np.float16]) -> None:
        """Add the features (m, D) of a video's frames (m,), ascending; DataError where float16 cannot hold them."""
        if features.shape != (len(numbers), self._description.width):
            raise DataError(
                f"{self.folder} takes features ({len(numbers)}, {self._description.width}), got {features.shape}"
            )
        if not np.isfinite(features).all():
            raise DataError(f"{video}: the encoder's features are not finite in float16; the encoder is not usable")
        rows = np.ascontiguousarray(features, DTYPE)
        self._write(self._rows_fd, rows.view(np.uint8).data)
        record = Record(video=video, first=self._next_row, runs=runs_of(numbers), crc=checksum(rows))
        self._pending.append(record)
        self._next_row += len(rows)
        if time.monotonic() - self._committed_s > COMMIT_S:
            self.commit()

    def complete(self, video: str, unreadable: tuple[int, ...] = ()) -> None:
        """Say that nothing of a video is missing but the crops that cannot be decoded."""
        self._pending.append(Record(video=video, complete=True, unreadable=unreadable))

    def commit(self) -> None:
        """Make everything added so far survive whatever comes."""
        pending, self._pending = self._pending, []
        if pending:
            self._sync(self._rows_fd)
            self._write(self._index_fd, memoryview(b"".join(record.line() for record in pending)))
            self._sync(self._index_fd)
        self._committed_s = time.monotonic()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # After a full disk too: the rows before the one that did not fit are whole.
            with suppress(OutputError) if isinstance(error, OutputError) else nullcontext():
                self.commit()
        finally:
            for descriptor in (self._rows_fd, self._index_fd, self._lock):
                os.close(descriptor)

    def _write(self, descriptor: int, content: memoryview) -> None:
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        except OSError as error:
            raise self._explained(error) from error

    def _sync(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> OutputError:
        if error.errno in NO_SPACE:
            free = shutil.disk_usage(self.folder).free
            return OutputError(
                f"{self.folder}: no room for more features ({error.strerror}, {free / 1e9:.2f} GB free); what was "
                "committed is kept: make room and run the same command again"
            )
        return OutputError(f"{self.folder}: features cannot be written: {error}; run the same command again")


def _lock(path: Path) -> int:
    """Lock a shard until the returned descriptor is closed, by whatever end of the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise DataError(
            f"{path.with_suffix('.rows')} is being written by process {holder}; wait for it, or share the work: start "
            "each process with a rank of its own and the number of all of them"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _agree(folder: Path, description: StoreDescription) -> None:
    """Write the description of a new store; DataError where the store holds other features."""
    path = folder / DESCRIPTION_FILE
    if path.exists():
        found = read_description(folder)
        if found != description:
            wanted = asdict(description)
            other = [
                f"{key} {value}, not {wanted[key]}" for key, value in asdict(found).items() if value != wanted[key]
            ]
            raise DataError(f"{folder} holds other features ({'; '.join(other)}); choose another folder")
        return
    write_file(path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(description)}, indent=1).encode())


def _cut_torn_end(rows_file: Path, description: StoreDescription) -> Shard:
    """Cut both files of a shard back to what is known to be right; make them if there are none."""
    for path in (rows_file, rows_file.with_suffix(".index")):
        path.touch()
    found = read_shard(rows_file, description)
    while not _last_rows_are_right(found, description):
        found = _without_last_record(found)
    os.truncate(found.rows_file, found.rows * description.row_bytes)
    os.truncate(found.index_file, found.index_bytes)
    _sync_folder(rows_file.parent)
    return found


def _last_rows_are_right(shard: Shard, description: StoreDescription) -> bool:
    """Compare the rows of the last record with their checksum: a disk that lost power may have lied about them."""
    if not shard.records or not shard.records[-1].rows:
        return True
    last = shard.records[-1]
    with shard.rows_file.open("rb") as file:
        file.seek(last.first * description.row_bytes)
        return zlib.crc32(file.read(last.rows * description.row_bytes)) == last.crc


def _without_last_record(shard: Shard) -> Shard:
    last = shard.records[-1]
    return replace(
        shard,
        records=shard.records[:-1],
        rows=shard.rows - last.rows,
        index_bytes=shard.index_bytes - len(last.line()),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
