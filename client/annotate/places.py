"""Where videos are and results go: paths, and addresses of stores that fsspec reaches (s3://bucket/folder).

A corpus is listed while it is worked on, and a result is named by the place of its video below the corpus' root, suffix
included: no name depends on another one, so that memory does not depend on the number of videos.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from affserve.client.results.output_file import staged
from affserve.client.sequences.kept_features import SUFFIX, is_kept
from affserve.client.video.inputs import RESULT_MARK, VIDEO_SUFFIXES, is_result
from affserve.train.errors import OutputError, VideoError

LIST_SUFFIX = ".txt"  # of a file that names one video a line
_MAGIC = re.compile(r"[*?\[]")


def is_address(text: str) -> bool:
    """Say whether a text names something that only fsspec reaches."""
    return "://" in text


def opened(address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it; VideoError where there is no driver for it."""
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(address)
    except (ImportError, ValueError) as error:  # fsspec names the driver that is missing
        raise VideoError(f"{address} cannot be opened: {error}; expected a path, or an address fsspec knows") from error
    return fs, str(path)


def videos(corpus: str) -> Iterator[tuple[str, str]]:
    """Yield each video and the name of its results: of a folder, a pattern or a list (`.txt`), or a single video.

    Kept features count as videos where a pattern or a list names them; their results are named as the video's.

    VideoError: nothing is there, or a list cannot be read.
    """
    if corpus.endswith(LIST_SUFFIX) and not is_address(corpus):
        yield from _listed(Path(corpus))
        return
    found = None
    root = _root(corpus)
    for found in _addresses(corpus) if is_address(corpus) else _files(corpus):
        yield found, (found.removeprefix(root).lstrip("/") or found).removesuffix(RESULT_MARK + SUFFIX)
    if found is None:
        raise VideoError(f"{corpus} matches no video; expected a folder, a pattern as 'clips/**/*.mp4', or a list.txt")


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open() as lines:
            for line in lines:
                if source := line.strip():
                    name = re.sub(r"^\w+://", "", source).replace("../", "").lstrip("/")
                    yield source, name.removesuffix(RESULT_MARK + SUFFIX)
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(f"{path} cannot be read as a list of videos: {error}; expected one path a line") from error


def _root(corpus: str) -> str:
    """Return the part of a pattern, folder or file above which no result's name reaches."""
    magic = _MAGIC.search(corpus)
    fixed = corpus[: magic.start()] if magic else corpus
    is_folder = magic is None and (os.path.isdir(corpus) or (is_address(corpus) and not PurePosixPath(corpus).suffix))
    return fixed if is_folder else fixed[: fixed.rfind("/") + 1]


def _files(corpus: str) -> Iterator[str]:
    if os.path.isdir(corpus):
        corpus = os.path.join(glob.escape(corpus), "**")
    named_suffix = Path(corpus).suffix not in ("", ".*")
    for found in glob.iglob(corpus, recursive=True):
        if _is_source(found, named_suffix) and os.path.isfile(found):
            yield found


def _addresses(corpus: str) -> Iterator[str]:
    fs, path = opened(corpus)
    pattern = path if _MAGIC.search(path) or PurePosixPath(path).suffix else f"{path.rstrip('/')}/**"
    named_suffix = PurePosixPath(pattern).suffix not in ("", ".*")
    for found in sorted(fs.glob(pattern)):
        if _is_source(found, named_suffix):
            yield str(fs.unstrip_protocol(found))


def _is_source(name: str, named_suffix: bool) -> bool:
    """Say whether a file is a video, or kept features that the pattern names; named_suffix: whatever it names is."""
    is_video = named_suffix or PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES
    return is_video and (is_kept(name) or not is_result(Path(name)))


@dataclass(frozen=True, kw_only=True)
class Results:
    """The folder of all results, on this machine or in a store."""

    address: str

    @property
    def is_here(self) -> bool:
        """Whether it is a folder of a disk."""
        return not is_address(self.address)

    def path(self, name: str) -> Path:
        """Return where a file is on disk; its folder is made."""
        path = Path(self.address) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made a folder for results: {error.strerror}") from error
        return path

    def has(self, name: str) -> bool:
        """Say whether a file is in the store."""
        fs, root = opened(self.address)
        return bool(fs.exists(f"{root}/{name}"))

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of a store, if it is there."""
        fs, root = opened(self.address)
        if self.has(name):
            fs.get_file(f"{root}/{name}", str(target))

    def put(self, file: Path, name: str) -> None:
        """Copy a file to its place, where it appears whole."""
        if self.is_here:
            with staged(self.path(name)) as part:
                shutil.copyfile(file, part)
            return
        fs, root = opened(self.address)
        target = f"{root}/{name}"
        try:
            fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), target)
        except OSError as error:
            raise OutputError(f"{self.address}/{name} cannot be written: {error}") from error
