"""What a page shows: results and the videos they were made from, found in the files and folders that were named.

Only these files are ever read: a browser names them by an id, never by a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affserve.client.page.result_data import ResultData, read_result, source_name
from affserve.client.results.formats import format_of
from affserve.client.results.metadata import SUFFIX as METADATA_SUFFIX
from affserve.client.video.inputs import Folder, is_result
from affserve.client.video.source import IMAGE_SUFFIXES
from affserve.train.errors import AffserveError, UsageError

MOST_OPEN = 4  # results whose rows are kept in memory


@dataclass(kw_only=True)
class Entry:
    """One line of the list: a result with its video, or one of the two."""

    id: str
    name: str
    result: Path | None = None
    video: Path | None = None
    notes: list[str] = field(default_factory=list)  # what is missing or was left out, in words
    summary: dict[str, Any] | None = None  # of the result, as soon as it has been read

    def as_json(self) -> dict[str, Any]:
        """Return what the list shows."""
        place = (self.result or self.video or Path()).parent
        return {
            "id": self.id,
            "name": self.name,
            "folder": str(place),
            "result": self.result.name if self.result else None,
            "video": self.video.name if self.video else None,
            "notes": self.notes,
            "summary": self.summary,
        }


class Library:
    """The entries, by id and in order; rows of results are read when they are asked for and kept for a while."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.entries: dict[str, Entry] = {}
        self._roots: list[Path] = []
        self._open: dict[str, tuple[object, ResultData]] = {}
        self._lock = threading.Lock()
        self.add(paths)

    def add(self, paths: Iterable[Path]) -> list[Entry]:
        """Take more files and folders, as results are made; return the entries of these."""
        results: list[Path] = []
        videos: list[Path] = []
        for path in paths:
            if not path.exists():
                raise UsageError(f"{path} does not exist; expected results, videos or folders of them")
            self._roots.append(path.resolve())
            found, sources = _found(path)
            results += [one for one in found if self._inside(one)]
            videos += [one for one in sources if self._inside(one)]
        return [*self._add_results(results, videos), *self._add_videos(videos)]

    def _inside(self, path: Path) -> bool:
        """Say whether a file is what it seems: a link in a folder must not lead out of what was named."""
        place = path.resolve()
        return any(place == root or root in place.parents or place.parent == root.parent for root in self._roots)

    def _add_results(self, results: list[Path], videos: list[Path]) -> list[Entry]:
        known = [*videos, *(entry.video for entry in self.entries.values() if entry.video)]
        return [self._put(result, _video_of(result, known)) for result in dict.fromkeys(results)]

    def _put(self, result: Path, video: Path | None) -> Entry:
        entry = Entry(id=_id(result), name=source_name(result) or result.name, result=result, video=video)
        if video is None:
            entry.notes.append(f"video {entry.name} not found: name its folder, too")
        if video is not None:
            self.entries.pop(_id(video), None)
        self.entries[entry.id] = entry
        return entry

    def _add_videos(self, videos: list[Path]) -> list[Entry]:
        shown = {entry.video for entry in self.entries.values()}
        added = [Entry(id=_id(one), name=one.name, video=one, notes=["not analysed yet"]) for one in videos]
        fresh = [entry for entry in added if entry.video not in shown]
        self.entries.update({entry.id: entry for entry in fresh})
        return fresh

    def data(self, entry: Entry) -> ResultData:
        """Return the rows of a result, read again when its file has changed; AffserveError where it cannot be."""
        if entry.result is None:
            raise AffserveError(f"{entry.name} is not analysed yet")
        with self._lock:
            stamp = _stamp(entry.result)
            kept = self._open.pop(entry.id, None)
            data = kept[1] if kept is not None and kept[0] == stamp else read_result(entry.result)
            self._open[entry.id] = (stamp, data)
            while len(self._open) > MOST_OPEN:
                self._open.pop(next(iter(self._open)))
        return data

    def read_summaries(self) -> None:
        """Read every result that has no summary yet, one after the other."""
        for entry in list(self.entries.values()):
            if entry.result is not None and entry.summary is None:
                try:
                    entry.summary = read_result(entry.result).summary()
                except AffserveError as error:
                    entry.summary = {"error": str(error)}


def _found(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the results and the videos that an argument stands for; each brings its like from beside it."""
    if path.is_dir():
        return list(_results_below(path)), Folder(path).sources
    if _is_rows(path):
        beside = path.parent / (source_name(path) or path.name)
        return [path], [beside] if beside != path and beside.exists() else []
    return [one for one in sorted(path.parent.glob(f"{_escaped(path.stem)}*")) if _names(one, path)], [path]


def _escaped(name: str) -> str:
    return "".join(f"[{one}]" if one in "*?[" else one for one in name)


def _names(result: Path, video: Path) -> bool:
    return result != video and _is_rows(result) and source_name(result) == video.name


def _results_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (file for name in sorted(files) if not name.startswith(".") and _is_rows(file := Path(place, name)))


def _is_rows(path: Path) -> bool:
    """Say whether a file is named like rows and says that they are ours."""
    row_format = format_of(path)
    if row_format is None or not path.is_file():
        return False
    if row_format.describes_itself or path.with_name(path.name + METADATA_SUFFIX).is_file() or is_result(path):
        return True
    with open(path, "rb") as file:  # rows without their metadata
        start = file.read(64)
    return start.startswith((b"frame,timestamp_s,track_id", b'{"frame": '))


def _video_of(result: Path, videos: Iterable[Path]) -> Path | None:
    """Return the video that a result names: the one nearest to it in the folders, where several have the name."""
    name = source_name(result)
    place = result.resolve().parent
    same = [one for one in videos if one.name == name or (name is None and _fits(one, result))]
    return min(same, key=lambda one: len(os.path.relpath(one.resolve().parent, place).split(os.sep)), default=None)


def _fits(video: Path, result: Path) -> bool:
    return not is_image(video) and result.name.split(".")[0] == video.stem


def is_image(path: Path) -> bool:
    """Say whether a source is a photograph."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def _stamp(path: Path) -> object:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def dumps(value: object) -> str:
    """Return JSON that a browser reads: NaN is null."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
