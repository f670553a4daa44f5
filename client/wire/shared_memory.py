"""Memory that client and server share, when they are on one machine: frames are written once and travel nowhere.

A region is a file below /dev/shm that has a name only until the server has opened it: both then keep the memory for
as long as they run, and whatever ends the client, nothing of it remains there. Its name cannot be guessed, so a server
that can open it is on this machine and sees the same /dev/shm.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from affserve.export.contract import CHUNK_FRAMES, FRAMES, TensorSpec

SHARED_MEMORY = Path("/dev/shm")
CHUNK_BYTES = CHUNK_FRAMES * int(np.prod(FRAMES.shape))
_abandoned: set[str] = set()  # names of this process's regions that were in use when their client was closed
_NAME = re.compile(r"affserve-client-(\d+)-(\d+)-[0-9a-f]+")


class Region:
    """A piece of shared memory; OSError where there is no room for it."""

    def __init__(self, size_bytes: int) -> None:
        self.name = f"affserve-client-{_process_namespace()}-{os.getpid()}-{secrets.token_hex(16)}"
        self.size_bytes = size_bytes
        file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Without this a full /dev/shm would end the process at the first write.
            os.posix_fallocate(file, 0, size_bytes)
            self._memory = mmap.mmap(file, size_bytes)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(file)

    @property
    def _path(self) -> Path:
        return SHARED_MEMORY / self.name

    def unlink(self) -> None:
        """Take the name away; who has the memory open keeps it."""
        self._path.unlink(missing_ok=True)

    def write(self, array: NDArray[np.uint8]) -> None:
        """Copy an array to the start of the region."""
        place = np.frombuffer(self._memory, np.uint8, array.size).reshape(array.shape)
        np.copyto(place, array)

    def tensor(self, spec: TensorSpec, shape: tuple[int, ...]) -> triton.InferInput:
        """Return an input of this shape that lies at the start of the region."""
        tensor = triton.InferInput(spec.name, list(shape), spec.datatype)
        tensor.set_shared_memory(self.name, int(np.prod(shape)) * spec.numpy_dtype.itemsize)
        return tensor


class RegionPool:
    """Regions that the server has open; one belongs to one request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self.known: set[str] = set()  # names of all that the server has open, in use or not; changes are atomic

    def take(self, size_bytes: int) -> Region | None:
        """Return a free region of at least this size; None when there is none."""
        with self._lock:
            fitting = [region for region in self._free if region.size_bytes >= size_bytes]
            if not fitting:
                return None
            region = min(fitting, key=lambda one: one.size_bytes)
            self._free.remove(region)
            return region

    def put_back(self, region: Region) -> None:
        """Make a region free again; nobody may write to it any more."""
        with self._lock:
            self._free.append(region)


def abandon(name: str) -> None:
    """Note that a request still reads a region whose client is closed; the next client has the server close it."""
    _abandoned.add(name)


def left_behind(names: Iterable[str]) -> list[str]:
    """Return those regions on a server that no client uses any more."""
    held = set(names)
    return [*(held & _abandoned), *left_by_dead(held)]


def left_by_dead(names: Iterable[str]) -> list[str]:
    """Return those regions whose client, a process of this machine, was killed and did not say goodbye."""
    return [name for name in names if (match := _NAME.fullmatch(name)) and _is_dead(match[1], int(match[2]))]


def remove_stale_files() -> None:
    """Remove what clients left that were killed in the instant between making a region and the server's opening it."""
    with contextlib.suppress(OSError):
        for name in left_by_dead(entry.name for entry in SHARED_MEMORY.iterdir()):
            (SHARED_MEMORY / name).unlink(missing_ok=True)


def _process_namespace() -> int:
    """Return what tells process ids of one container from those of another."""
    return os.stat("/proc/self/ns/pid").st_ino


def _is_dead(namespace: str, pid: int) -> bool:
    return int(namespace) == _process_namespace() and not Path(f"/proc/{pid}").exists()
