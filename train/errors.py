"""Every error affserve raises on purpose; the command line prints its message and exits with code 1.

AffserveError
├── UsageError         options that do not fit together; exit code 2
├── DataError          a corpus, an annotation file or an index is not what it should be
├── CheckpointError    a checkpoint folder cannot be read, written or does not fit
├── TrainingStopped    somebody asked a training to stop; its state is saved
├── ExportError        an artefact could not be made
│   └── ParityError    an artefact does not compute what the PyTorch model computes
├── RepositoryError    a model repository is incomplete, altered or not for this machine
├── ServerError        the server could not be started, reached or kept alive
│   └── InferenceError the server answered a request with an error
├── VideoError         a video or image cannot be opened or decoded
├── OutputError        a result cannot be written
└── MissingExtraError  an optional dependency is not installed

Every message states what was found, what was expected and what to do.
"""

from __future__ import annotations

import errno
import re

# What a terminal obeys in place of showing it, what reverses the order of letters, and what no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text of strangers, such as names of files or words of a server, with what is not to be printed escaped."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a write to a full disk ends in
_REMEDIES = {
    errno.EMFILE: "allow more open files, with ulimit -n 4096 before the command",
    errno.ENFILE: "this machine has too many open files: end what has them open",
    errno.ENOSPC: "make room on that disk, or choose another (of temporary files: with TMPDIR)",
    errno.EDQUOT: "your share of that disk is used up: make room, or choose another (of temporary files: with TMPDIR)",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def remedy(error: OSError) -> str | None:
    """Say what to do where the machine has come to a limit that may show itself anywhere; None for other errors."""
    return _REMEDIES.get(error.errno or 0)


class AffserveError(Exception):
    """The base of all errors that are the user's to act on."""

    def __str__(self) -> str:
        """Return the message, safe for a terminal: it often quotes others."""
        return printable(super().__str__())


class UsageError(AffserveError):
    """Options that do not fit together; the command line exits with code 2."""


class DataError(AffserveError):
    """A corpus, an annotation file or an index is not what it should be."""


class CheckpointError(AffserveError):
    """A checkpoint folder cannot be read, cannot be written, or does not fit what is asked of it."""


class TrainingStopped(AffserveError):
    """Somebody asked a training to stop; its state is saved and the same command goes on."""


class ExportError(AffserveError):
    """An artefact could not be made."""


class ParityError(ExportError):
    """An artefact does not compute what the PyTorch model computes."""


class RepositoryError(AffserveError):
    """A model repository is incomplete, altered or not for this machine."""


class ServerError(AffserveError):
    """The server could not be started, reached or kept alive."""


class InferenceError(ServerError):
    """The server answered a request with an error."""


class VideoError(AffserveError):
    """A video or image cannot be opened or decoded."""


class OutputError(AffserveError):
    """A result cannot be written."""


class MissingExtraError(AffserveError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(f"{module} is not installed; this command needs it: pip install 'affserve[{extra}]'")
