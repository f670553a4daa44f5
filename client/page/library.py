"""What a page shows: results and the videos they were made from, found in the files and folders that were named.

Only these files are ever read: a browser names them by an id, never by a path.
"""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affserve.client.page.result_data import summary_of
from affserve.client.results.edits import read_edits
from affserve.client.results.formats import format_of
from affserve.client.results.reading import read, result_files
from affserve.client.results.table import Table
from affserve.client.video.inputs import Folder
from affserve.train.errors import AffserveError, OutputError, UsageError

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
        self._open: dict[str, tuple[object, Table]] = {}
        self._lock = threading.Lock()
        self.add(paths)

    def add(self, paths: Iterable[Path]) -> list[Entry]:
        """Take more files and folders, as results are made; return the entries of these."""
        results: list[Path] = []
        videos: list[Path] = []
        for path in paths:
            if not path.exists():
                raise UsageError(f"{path} does not exist; expected results, videos or folders of them")
            found, sources = _found(path)
            results += [one for one in found if _is_within(one, path)]
            videos += [one for one in sources if _is_within(one, path)]
        return [*self._add_results(results, videos), *self._add_videos(videos)]

    def add_result(self, result: Path, video: Path | None) -> str:
        """Take a result that was made just now, and its video; return the address of its page."""
        added = self.add([result] if video is None else [video, result])
        self.read_summaries()
        return next(f"#/r/{one.id}" for one in added if one.result is not None and one.result.samefile(result))

    def _add_results(self, results: list[Path], videos: list[Path]) -> list[Entry]:
        known = [*videos, *(entry.video for entry in self.entries.values() if entry.video)]
        return [self._put(result, _video_of(result, known)) for result in dict.fromkeys(results)]

    def _put(self, result: Path, video: Path | None) -> Entry:
        entry = Entry(id=_id(result), name=_source(result) or result.name, result=result, video=video)
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

    def table(self, entry: Entry) -> Table:
        """Return the rows of a result as written, read again when the file has changed; OutputError if none."""
        if entry.result is None:
            raise OutputError(f"{entry.name} is not analysed yet")
        with self._lock:
            stamp = _stamp(entry.result)
            kept = self._open.pop(entry.id, None)
            table = kept[1] if kept is not None and kept[0] == stamp else read(entry.result, edited=False)
            self._open[entry.id] = (stamp, table)
            while len(self._open) > MOST_OPEN:
                self._open.pop(next(iter(self._open)))
        return table

    def edited(self, entry: Entry) -> Table:
        """Return the rows of a result with what people changed of them."""
        table = self.table(entry)
        return read_edits(entry.result).table(table) if entry.result is not None else table

    def read_summaries(self) -> None:
        """Read every result that has no summary yet, one after the other."""
        for entry in list(self.entries.values()):
            if entry.result is not None and entry.summary is None:
                try:
                    entry.summary = summary_of(self.table(entry))
                except AffserveError as error:
                    entry.summary = {"error": str(error)}


def _found(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the results and the videos that an argument stands for; each brings its like from beside it."""
    if path.is_dir():
        return _results(path), Folder(path).sources
    if format_of(path) is not None:
        beside = path.with_name(_source(path) or path.name)
        return [path], [beside] if beside != path and beside.exists() else []
    return [one for one in _results(path.parent, f"{glob.escape(path.stem)}*") if _source(one) == path.name], [path]


def _is_within(file: Path, named: Path) -> bool:
    """Say whether a file is where it seems to be: a link must not lead out of the folder that was named."""
    folder = (named if named.is_dir() else named.parent).resolve()
    return file == named or folder in file.resolve().parents or file.resolve() == folder


def _results(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the results in a folder; none is no error here."""
    with suppress(OutputError):
        return result_files([Path(glob.escape(str(folder)), pattern)])
    return []


def _source(result: Path) -> str:
    """Return the name of the video that a result says it was made from, "" where it does not say."""
    row_format = format_of(result)
    return Path(row_format.description(result).source).name if row_format is not None else ""


def _video_of(result: Path, videos: Iterable[Path]) -> Path | None:
    """Return the video that a result names: the one nearest to it in the folders, where several have the name."""
    name, place = _source(result), result.resolve().parent
    same = [one for one in videos if (one.name == name if name else one.stem == result.name.split(".")[0])]
    return min(same, key=lambda one: len(os.path.relpath(one.resolve().parent, place).split(os.sep)), default=None)


def _id(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


def _stamp(path: Path) -> object:
    state = path.stat()
    return state.st_mtime_ns, state.st_size
