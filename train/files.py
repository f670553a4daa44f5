"""Files and folders that appear whole or not at all, folders that one process at a time fills, and hashes of files."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from affserve.train.errors import OutputError

_AT_FDCWD = -100  # "relative to the working folder", as the kernel's headers have it
_RENAME_EXCHANGE = 2


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an error.

    A folder that stood there is removed only after the new one is in place; after an error it is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's 0700 would lock out a server of another user
        replace_folder(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def replace_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`, on the same file system; what stood there is removed afterwards.

    Who looks at `target` sees the old folder or the new one; where the file system cannot exchange two names, there is
    a moment between two renames in which there is none.
    """
    aside = new.with_name(new.name + ".old")
    if not target.exists():
        os.rename(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        os.rename(target, aside)
        os.rename(new, target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, with Linux's renameat2; say whether that was possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return int(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0


@contextmanager
def staged_file(target: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `target` when the block ends; after an error that is untouched.

    durable: not before it has reached the disk.
    """
    handle, staging = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            os.fchmod(handle, 0o644)  # mkstemp's 0600 is for secrets
            if durable:
                file.flush()
                os.fsync(handle)
        os.replace(staging, target)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; after an error the one that stood there is untouched."""
    with staged_file(path) as file:
        file.write(content)


@contextmanager
def sole_user(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder; OutputError where one is at work in it.

    wait: until that one is done, instead of the error.
    The kernel forgets it with the process, however that ends: nothing is left behind that could lock anybody out.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, folder, wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise OutputError(
            f"another process is at work in {folder}: wait for it, or give this one another folder"
        ) from error


_READ_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
