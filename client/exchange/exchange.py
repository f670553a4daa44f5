"""The formats of the field's other tools, by name: where their files go, and what writes them.

The file that `place` names is written last and whole: where it is, all files of its result are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from affserve.client.exchange.bids import events_path, write_bids
from affserve.client.exchange.boris import write_boris
from affserve.client.exchange.elan import write_elan
from affserve.client.exchange.openface import write_openface
from affserve.client.exchange.webvtt import write_webvtt
from affserve.client.results.reading import stem_of
from affserve.client.results.table import Table


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One format of another tool."""

    name: str
    place: Callable[[Path, str], Path]  # of the folder for results and a result's name without suffix
    write: Callable[[Table, Path, float | None], list[str]]  # at a rate in Hz, or the video's; says what did not fit


def _single(name: str, suffix: str, write: Callable[[Table, Path], list[str]]) -> Exchange:
    """Return a format that keeps the times of frames."""
    return Exchange(
        name=name,
        place=lambda folder, stem: folder / f"{stem}{suffix}",
        write=lambda table, path, _: write(table, path),
    )


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
