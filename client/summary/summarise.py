"""Many results to one report: rows per person, and what conditions differ in.

Results are read one at a time in each of a few processes, so that memory does not grow with their number.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from affserve.client.drawing.plots import SYNTHETIC_NOTICE
from affserve.client.summary.comparison import Comparison, Mean, compare, gathered, means_of, with_false_discoveries
from affserve.client.summary.statistics import Choice, Row, compared, summarise_file
from affserve.client.summary.windows import Member, is_of
from affserve.train.errors import DataError, OutputError
from affserve.train.provenance import SYNTHETIC

FEW = 8  # results that are not worth another process
MOST_PROCESSES = 4


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a summary found. failures: results that could not be read, in words. notes: what was done that surprises."""

    rows: Sequence[Row]
    means: Sequence[Mean] = ()
    comparisons: Sequence[Comparison] = ()
    failures: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)


def summarise(results: Sequence[Path], choice: Choice, groups: Sequence[Member] = ()) -> Report:
    """Summarise results; DataError where the groups name results or people that are not there."""
    rows: list[Row] = []
    failures = []
    for found in _each(results, choice):
        if isinstance(found, str):
            failures.append(found)
        else:
            rows += found
    notes = _notes_of(rows)
    placed = list(_placed(rows, groups))
    if not groups and len({row["event"] for row in rows}) > 1:
        placed = [("", row["event"], f"{row['file']} {row['person']}", row) for row in rows]
        notes.append("no --groups: events are compared, everybody with themselves")
    means: list[Mean] = []
    comparisons: list[Comparison] = []
    for event in dict.fromkeys(event for event, *_ in placed):
        here = [(condition, person, row) for at, condition, person, row in placed if at == event]
        for measure in compared(here[0][2]):
            numbers = [(one, who, row[measure]) for one, who, row in here if row.get(measure) is not None]
            values = gathered(numbers)
            means += means_of(event, measure, values)
            comparisons += compare(event, measure, values)
    return Report(
        rows=rows,
        means=means,
        comparisons=with_false_discoveries(comparisons),
        failures=failures,
        notes=notes + _notes_of_tests(comparisons),
    )


def _each(results: Sequence[Path], choice: Choice) -> Iterator[list[Row] | str]:
    work = partial(_summarised, choice=choice)
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, len(results) // FEW)
    if processes < 2:
        yield from map(work, results)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, results)


def _summarised(result: Path, choice: Choice) -> list[Row] | str:
    try:
        return summarise_file(result, choice)
    except OutputError as error:
        return str(error)


def _placed(rows: Sequence[Row], groups: Sequence[Member]) -> Iterator[tuple[str, str, str, Row]]:
    """Yield event, condition, person and row of everybody in a group."""
    for member in groups:
        here = [row for row in rows if is_of(member.file, Path(row["file"]), row["video"])]
        if not here:
            raise DataError(f"the groups name {member.file!r}, and no result that could be read is of it")
        track = member.track_id or str(max(here, key=lambda row: row["frames_with_face"])["track_id"])
        named = [row for row in here if row["person"] == member.person]
        mine = named if named and not member.track_id else [row for row in here if str(row["track_id"]) == track]
        if not mine:
            raise DataError(f"the groups name track_id {track} of {member.file!r}, which nobody there has")
        yield from ((row["event"], member.condition, member.person, row) for row in mine)


def _notes_of(rows: Sequence[Row]) -> list[str]:
    notes = [] if rows else ["no person in any of these results"]
    if any(row["trained_on"] == SYNTHETIC for row in rows):
        notes.append(SYNTHETIC_NOTICE)
    seen, used = (sum(row[name] for row in rows) for name in ("frames_with_face", "frames_used"))
    return notes + ([f"{seen - used} of {seen} frames with a face are not reliable: left out"] if used < seen else [])


def _notes_of_tests(comparisons: Sequence[Comparison]) -> list[str]:
    left_out = max((one.left_out for one in comparisons), default=0)
    if not left_out:
        return []
    return [
        f"up to {left_out} people are in one condition only, where others are in both: they are left out of the tests"
    ]
