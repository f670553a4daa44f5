"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from affserve.train.errors import OutputError, remedy


class OutputFile:
    """A file that appears under its name only when it is complete; `None` is standard output.

    Use it as a context manager: the file is put in place when the block ends without an error and removed otherwise.
    Every failure is an OutputError; a path that cannot be written fails here, before any work is done.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._part = path or Path("/dev/stdout")
        self._replaces = path is not None and _is_replaceable(path)
        self._digest = hashlib.sha256()
        self._lock: int | None = None  # on the part, until that is in place or gone
        if path is None:
            self._file = sys.stdout.buffer
            return
        # A device or a pipe has no half-written state: it is written directly.
        if self._replaces:
            self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            if self._replaces and path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
            if self._replaces:
                _remove_orphans(path)
                self._file = self._open_part()
            else:
                self._file = open(self._part, "wb")  # noqa: SIM115 closed by close()
        except OSError as error:
            raise self._error(error) from error

    def _open_part(self) -> BinaryIO:
        """Open the part, and lock it before it has its name: it is taken for left behind as soon as nobody does."""
        unlocked = self._part.with_name(f"{self._part.name}.new")
        file = open(unlocked, "wb")  # noqa: SIM115 closed by close()
        try:
            self._lock = os.dup(file.fileno())
            with suppress(OSError):  # a file system without locks: then nobody ever removes it for us
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unlocked, self._part)
        except OSError:
            file.close()
            unlocked.unlink(missing_ok=True)
            self._unlock()
            raise
        return file

    @property
    def part(self) -> Path:
        """The name under which it is written until it is complete."""
        return self._part

    @property
    def sha256(self) -> str:
        """Of all that `write` was given, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, content: bytes) -> None:
        """Append to the file."""
        self._digest.update(content)
        try:
            self._file.write(content)
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> OutputFile:
        """Return the file itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put the file in place, or remove it after an error."""
        if kind is None:
            self._complete()
        else:
            self.discard()

    def _complete(self) -> None:
        try:
            self._file.flush()
            if self._path is not None:
                self._file.close()
            if self._path is not None and self._replaces:
                os.replace(self._part, self._path)
                self._unlock()
        except OSError as error:
            self.discard()
            raise self._error(error) from error

    def discard(self) -> None:
        """Remove what was written; a file that stood under the name before is left as it was."""
        if self._path is None:
            return
        with suppress(OSError):  # what could not be flushed is thrown away with the rest
            self._file.close()
        if self._replaces:
            self._part.unlink(missing_ok=True)
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _error(self, error: OSError) -> OutputError | BrokenPipeError:
        if self._path is None and isinstance(error, BrokenPipeError):
            return error  # a reader such as `head` that has seen enough
        name = self._path or "standard output"
        advice = remedy(error) or "choose another place with --out"
        return OutputError(f"{name} cannot be written: {error.strerror or error}; {advice}")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield the name of a file beside `path` that takes its place when the block ends without an error.

    For libraries that want to open their file themselves. OutputError: the place cannot be written.
    """
    with OutputFile(path) as file:
        yield file.part


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file at once; OutputError where that fails."""
    with OutputFile(path) as file:
        file.write(content)


def check_writable(path: Path) -> None:
    """Raise an OutputError when a file could not be put at `path`; leave nothing behind."""
    if _is_replaceable(path):
        OutputFile(path).discard()


def _is_replaceable(path: Path) -> bool:
    """Say whether a file can take this name by renaming; not so for devices, pipes and folders."""
    return path.is_file() or not path.exists()


def _remove_orphans(path: Path) -> None:
    """Remove what runs that were killed have left of the same file: the kernel has taken their locks away."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # locked: somebody is still writing it
            file = os.open(part, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(file)
