"""The body of `affserve convert`: which results, which files, what is told of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affserve.client.exchange.exchange import EXCHANGES, beside
from affserve.client.results.edits import read_edits
from affserve.client.results.formats import FORMATS, RowFormat, format_of
from affserve.client.results.metadata import DIGEST, ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.reading import read, stem_of
from affserve.client.results.table import labels_in
from affserve.train.errors import OutputError, UsageError


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of one result. file: the one that was written last. notes: what did not fit, and what was done."""

    result: Path
    file: Path
    notes: Sequence[str]


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


def convert(result: Path, file: Path, to: str, rate_hz: float | None = None) -> Converted:
    """Convert one result; OutputError where it cannot be read or the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file.parent} cannot be made a folder: {error.strerror}") from error
    if to in EXCHANGES:
        return Converted(result=result, file=file, notes=EXCHANGES[to].write(read(result), file, rate_hz))
    _copy_rows(result, file, FORMATS[to])
    return Converted(result=result, file=file, notes=())


def _copy_rows(result: Path, file: Path, to: RowFormat) -> None:
    """Write the rows in another of our own formats."""
    source = format_of(result)
    table = read(result)
    if source is None or not table.measures:
        raise OutputError(f"{result} holds no columns of a model")
    provenance = {name: fact for name, fact in table.provenance.items() if name != DIGEST}  # of another file
    labels: Mapping[str, tuple[str, ...]] = labels_in(table)
    about = ResultTable(name=file.name, source=table.source, labels=labels, provenance=provenance)
    with OutputFile(file) as output:
        writer = to.open(output, about)
        for rows in read_edits(result).applied(source.read(result, labels)):
            writer.write(rows)
        writer.finish({})
    if not to.describes_itself:
        write_whole(metadata_path(file), metadata_text(about).encode())
