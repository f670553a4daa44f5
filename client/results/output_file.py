"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from affserve.train.errors import OutputError


class OutputFile:
    """A file that appears under its name only when it is complete; `None` is standard output.

    Use it as a context manager: the file is put in place when the block ends without an error and removed otherwise.
    Every failure is an OutputError; a path that cannot be written fails here, before any work is done.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._part = path or Path("/dev/stdout")
        self._replaces = path is not None and _is_replaceable(path)
        if path is None:
            self._file = sys.stdout.buffer
            return
        # A device or a pipe has no half-written state: it is written directly.
        if self._replaces:
            self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            if self._replaces and path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
            self._file = open(self._part, "wb")  # noqa: SIM115 closed by close()
        except OSError as error:
            raise self._error(error) from error

    @property
    def part(self) -> Path:
        """The name under which it is written until it is complete."""
        return self._part

    def write(self, content: bytes) -> None:
        """Append to the file."""
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

    def _error(self, error: OSError) -> OutputError | BrokenPipeError:
        if self._path is None and isinstance(error, BrokenPipeError):
            return error  # a reader such as `head` that has seen enough
        name = self._path or "standard output"
        return OutputError(f"{name} cannot be written: {error.strerror or error}; choose another place with --out")


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
