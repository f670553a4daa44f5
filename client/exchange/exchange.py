"""The formats of the field's other tools, by name, and the body of `affserve convert`: finished results in, files out.

The file that `place` names is written last and whole: where it is, all files of its result are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from affserve.client.exchange.bids import events_path, write_bids
from affserve.client.exchange.boris import write_boris
from affserve.client.exchange.columns import write_columns, write_meanings
from affserve.client.exchange.elan import write_elan
from affserve.client.exchange.openface import write_openface
from affserve.client.exchange.webvtt import write_webvtt
from affserve.client.results.formats import FORMATS, RowFormat
from affserve.client.results.metadata import DIGEST
from affserve.client.results.output_file import staged, write_whole
from affserve.client.results.parquet import COMPRESSION, load_arrow
from affserve.client.results.reading import read, stem_of
from affserve.client.results.table import Table
from affserve.client.results.text import json_cells, json_lines_of, printed
from affserve.train.errors import OutputError, UsageError


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One format of another tool. It goes to other processes, so its functions are those of modules."""

    name: str
    place: Callable[[Path, str], Path]  # of the folder for results and a result's name without suffix
    write: Callable[[Table, Path, float | None], list[str]]  # at a rate in Hz, or the video's; says what did not fit


def _single(name: str, suffix: str, write: Callable[[Table, Path], list[str]]) -> Exchange:
    """Return a format that keeps the times of frames."""
    return Exchange(name=name, place=partial(_named, suffix), write=partial(_at_own_times, write))


def _named(suffix: str, folder: Path, stem: str) -> Path:
    return folder / f"{stem}{suffix}"


def _at_own_times(write: Callable[[Table, Path], list[str]], table: Table, path: Path, _: float | None) -> list[str]:
    return write(table, path)


def beside(rows: Path, exchange: Exchange) -> Path:
    """Return where a result becomes a file of another tool by default: beside it, or in a data set there."""
    folder = rows.parent / exchange.name if exchange.name == "bids" else rows.parent
    return exchange.place(folder, stem_of(rows))


EXCHANGES = {
    one.name: one
    for one in (
        _single("openface", ".openface.csv", write_openface),
        _single("elan", ".eaf", write_elan),
        Exchange(name="bids", place=events_path, write=write_bids),
        _single("boris", ".boris.csv", write_boris),
        _single("webvtt", ".vtt", write_webvtt),
    )
}


def plan(results: Iterable[Path], to: str, out: Path | None) -> dict[Path, Path]:
    """Return for each result the file that it becomes; UsageError for an unknown format or one file for two results.

    out: a folder, or None: beside each result, or in its `bids` there.
    """
    if to not in FORMATS and to not in EXCHANGES:
        raise UsageError(f"--to is {to!r}, expected one of {', '.join([*FORMATS, *EXCHANGES])}")
    planned: dict[Path, Path] = {}
    for result in results:
        stem = stem_of(result)
        if to in FORMATS:
            planned[result] = (out or result.parent) / f"{stem}{FORMATS[to].suffixes[0]}"
        else:
            planned[result] = EXCHANGES[to].place(out, stem) if out else beside(result, EXCHANGES[to])
    takers: dict[Path, Path] = {}
    for result, file in planned.items():
        if file.resolve() == result.resolve():
            raise UsageError(f"{result} is {to} already; give --out another folder")
        if takers.setdefault(file, result) != result:
            raise UsageError(
                f"{file} would be made of {takers[file]} and of {result}: convert them to different folders"
            )
    return planned


def convert(result: Path, file: Path, to: str, rate_hz: float | None = None) -> list[str]:
    """Convert one result, return what did not fit and what was done; OutputError where it cannot be read or written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file.parent} cannot be made a folder: {error.strerror}") from error
    if to in EXCHANGES:
        return EXCHANGES[to].write(read(result), file, rate_hz)
    _copy(read(result), file, FORMATS[to])
    return []


def _copy(table: Table, file: Path, to: RowFormat) -> None:
    """Write a table in one of our own formats, whatever its columns."""
    table.provenance.pop(DIGEST, None)  # of another file
    if to.describes_itself:
        _, parquet = load_arrow()
        with staged(file) as part:
            parquet.write_table(table.to_arrow(), part, compression=COMPRESSION, write_page_checksum=True)
        return
    if to.name == "csv":
        columns = {name: printed(table, name) for name in table}
        write_columns(file, columns, table.columns.values(), table, key=("frame", "track_id"))
        return
    write_whole(file, json_lines_of({name: json_cells(table, name) for name in table}).encode())
    write_meanings(file, table.columns.values(), table, key=("frame", "track_id"))
