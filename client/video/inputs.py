"""What the command line names as sources, spelt out: quoted globs, folders, and plain paths.

A folder stands for all that can be analysed in it and in the folders below: each video, each photograph, and each
folder of numbered images (the frames of one video) is a source. What is left out is told.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from affserve.client.video.source import IMAGE_SUFFIXES, frame_number, is_sequence

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf"),
        *("ogv", "ts", "vob", "webm", "wmv"),
    )
)
RESULT_MARK = ".affect"  # of the files that affserve names itself: clip.affect.csv, clip.affect.mp4
NAMED_IN_NOTE = 3  # of the files that were left out


def spelt_out(named: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the sources that the arguments stand for, each once and in their order, and what was left out, in words.

    A pattern that matches nothing and a path that does not exist stay as they are: opening them tells what is wrong.
    """
    found, notes = [], []
    for path in named:
        if path.is_dir():
            folder = Folder(path)
            found += folder.sources or [path]
            notes += folder.notes()
        elif not path.exists() and glob.has_magic(str(path)):
            found += _matches(str(path)) or [path]
        else:
            found.append(path)
    return list(dict.fromkeys(found)), notes


class Folder:
    """What a folder and those below hold: `sources` in natural order, and what else there is."""

    def __init__(self, path: Path) -> None:
        self.sources: list[Path] = []
        self._path = path
        self._others: list[Path] = []  # neither video nor image; links to folders; folders that cannot be read
        self._unnumbered: list[Path] = []  # images beside the numbered ones of a sequence
        for place, folders, files in os.walk(path, onerror=lambda error: self._others.append(Path(error.filename))):
            folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
            self._others += [link for name in folders if (link := Path(place, name)).is_symlink()]
            visible = sorted((name for name in files if not name.startswith(".")), key=_natural)
            self._add(Path(place), [file for name in visible if not is_result(file := Path(place, name))])

    def _add(self, folder: Path, files: list[Path]) -> None:
        videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self._others += [file for file in files if file.suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
        self.sources += videos
        if not is_sequence(images):
            self.sources += images
            return
        self.sources.append(folder)
        self._unnumbered += [image for image in images if frame_number(image) is None]

    def notes(self) -> list[str]:
        """Say what was left out."""
        kinds = (("neither a video nor an image", self._others), ("beside numbered images", self._unnumbered))
        return [f"left out of {self._path}, {what}: {self._listed(paths)}" for what, paths in kinds if paths]

    def _listed(self, paths: list[Path]) -> str:
        names = ", ".join(str(path.relative_to(self._path)) for path in paths[:NAMED_IN_NOTE])
        return names + (f" and {len(paths) - NAMED_IN_NOTE} more" if len(paths) > NAMED_IN_NOTE else "")


def _matches(pattern: str) -> list[Path]:
    """Return what a pattern matches that may be a source, in natural order."""
    # A pattern that names its suffix means what it matches; `*` and `**` match notes and pictures too.
    named_suffix = Path(pattern).suffix not in ("", ".*")
    deep = Path(pattern).name == "**"
    found: list[Path] = []
    for path in map(Path, sorted(glob.glob(pattern, recursive=True), key=_natural)):
        if is_result(path):
            continue
        if path.is_dir():
            found += [] if deep else Folder(path).sources
        elif named_suffix or path.suffix.lower() in (VIDEO_SUFFIXES if deep else VIDEO_SUFFIXES | IMAGE_SUFFIXES):
            found.append(path)
    return found


def is_result(path: Path) -> bool:
    """Say whether affserve has written a file: named so, or a plot that stands beside its rows."""
    if RESULT_MARK in path.suffixes:
        return True
    described = (path.with_suffix(suffix) for suffix in (".csv-metadata.json", ".jsonl-metadata.json", ".parquet"))
    return path.suffix == ".png" and any(file.exists() for file in described)


def _natural(name: str) -> list[tuple[str, int]]:
    """Order `clip2` before `clip10`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]
