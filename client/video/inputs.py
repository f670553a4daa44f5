"""What the command line names as sources, spelt out: quoted globs, folders of videos, and plain paths.

A folder of videos stands for its videos, in the order of their numbers; a folder of numbered images is one source.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from affserve.client.video.source import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf"),
        *("ogv", "ts", "vob", "webm", "wmv"),
    )
)
RESULT_MARK = ".affect"  # of the files that affserve names itself: clip.affect.csv, clip.affect.mp4


def spelt_out(named: Iterable[Path]) -> list[Path]:
    """Return the sources that the arguments stand for, each once, in the order of the arguments.

    A pattern that matches nothing and a path that does not exist stay as they are: opening them tells what is wrong.
    """
    return list(dict.fromkeys(source for path in named for source in _sources(path)))


def _sources(path: Path) -> Iterator[Path]:
    if not path.exists() and glob.has_magic(str(path)):
        found = _matches(str(path))
        yield from found or [path]
    elif path.is_dir():
        yield from _videos_in(path) or [path]
    else:
        yield path


def _matches(pattern: str) -> list[Path]:
    """Return what a pattern matches that may be a source, in natural order."""
    # A pattern that names its suffix means what it matches; `*` and `**` match notes and pictures too.
    named_suffix = Path(pattern).suffix not in ("", ".*")
    deep = Path(pattern).name == "**"
    found: list[Path] = []
    for path in map(Path, sorted(glob.glob(pattern, recursive=True), key=_natural)):
        if _is_result(path):
            continue
        if path.is_dir():
            found += [] if deep else _videos_in(path) or ([path] if _holds_images(path) else [])
        elif named_suffix or path.suffix.lower() in (VIDEO_SUFFIXES if deep else VIDEO_SUFFIXES | IMAGE_SUFFIXES):
            found.append(path)
    return found


def _videos_in(folder: Path) -> list[Path]:
    videos = (path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    return sorted((path for path in videos if not _is_result(path)), key=lambda path: _natural(path.name))


def _holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _is_result(path: Path) -> bool:
    return Path(path.stem).suffix == RESULT_MARK


def _natural(name: str) -> list[tuple[str, int]]:
    """Order `clip2` before `clip10`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]
