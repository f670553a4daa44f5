"""Finished results back in: which files are meant, and what is in one of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from affserve.client.results.edits import read_edits
from affserve.client.results.formats import FORMATS, RowFormat, format_of
from affserve.client.results.parquet import load_arrow
from affserve.client.results.rows import NO_TRACK, columns_of
from affserve.client.results.table import Table, labels_in
from affserve.train.errors import MissingExtraError, OutputError

FIRST_COLUMNS = (b"frame,timestamp_s,", b'{"frame": ')  # of CSV and JSON lines


def result_files(named: Iterable[Path]) -> list[Path]:
    """Return the results that arguments stand for, each once; OutputError where there are none.

    A folder stands for all results in it and below, whatever other CSV files lie there.
    """
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            found += [file for file in sorted(path.rglob("*")) if _is_rows(file)]
        elif not path.exists() and glob.has_magic(str(path)):
            found += [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if _is_rows(file)]
        else:
            found.append(path)
    if not found:
        raise OutputError("no results of affserve found there; expected files of `affserve infer`, or a folder of them")
    return list(dict.fromkeys(found))


def stem_of(result: Path) -> str:
    """Return the name of a result without the suffix of its format."""
    return result.name.removesuffix(result.suffix)


def _is_rows(file: Path) -> bool:
    row_format = format_of(file)
    if row_format is None or not file.is_file() or file.name.startswith("."):
        return False
    if not row_format.describes_itself:
        with open(file, "rb") as content:
            return content.read(len(FIRST_COLUMNS[0])).startswith(FIRST_COLUMNS)
    try:
        load_arrow()
    except MissingExtraError:
        return True  # told when it is read
    return "frame" in row_format.description(file).columns


def read(path: str | os.PathLike[str], *, edited: bool = True) -> Table:
    """Read a file of rows that affserve wrote, CSV, Parquet or JSON lines; OutputError where it is none.

    edited: with what people changed of it on the page, where a file of edits stands beside it.
    """
    table = _as_written(Path(path))
    if edited:
        edits = read_edits(Path(path))
        table = edits.table(table)
        table.names = {track: edits.name(track) for track in set(table["track_id"].tolist()) - {NO_TRACK}}
    return table


def row_format_of(path: Path) -> RowFormat:
    """Return the format that a file of rows is named by; OutputError for a file that is named otherwise."""
    row_format = format_of(path)
    if row_format is None:
        suffixes = ", ".join(suffix for one in FORMATS.values() for suffix in one.suffixes)
        raise OutputError(f"{path} is not named like a file of rows; expected a name in {suffixes}")
    return row_format


def _as_written(path: Path) -> Table:
    row_format = row_format_of(path)
    try:
        blocks = list(row_format.columns(path))
        names = list(dict.fromkeys(name for block in blocks for name in block))
        values = {name: np.concatenate([block[name] for block in blocks]) for name in names}
        if missing := {"frame", "timestamp_s", "track_id"} - set(values):
            raise LookupError(f"no column {min(missing)}")
        known = {column.name: column for column in columns_of(labels_in(names))}
        for name, column in known.items():
            if column.storage != "string" and name in values and values[name].dtype.kind == "O":
                values[name].astype(np.float64)  # of what affserve wrote; in columns that somebody added is any text
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{path} cannot be read as rows of affserve: {error}") from error
    told = row_format.description(path)
    columns = {
        # Files do not tell the digits, text does not tell the type.
        name: replace(column, digits=known[name].digits, storage=known[name].storage) if name in known else column
        for name, column in told.columns.items()
    }
    return Table(values, columns={**known, **columns}, source=told.source, provenance=told.provenance)
