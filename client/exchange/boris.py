"""External data for BORIS: a CSV of numbers per person, time first, which BORIS plots beside the video.

BORIS reads numbers only, one curve from two columns, and draws straight lines over gaps; so frames that do not show the
person are left out. Its menu asks for the numbers of the columns: time is 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from affserve.client.exchange.columns import write_columns
from affserve.client.results.people import frames_of, people_of
from affserve.client.results.table import Table
from affserve.client.results.text import printed


def write_boris(table: Table, path: Path) -> list[str]:
    """Write a file per person, the first at `path`; return what was done about several and about gaps."""
    people = people_of(table, frames_of(table))
    files = [path, *(path.with_name(f"{path.stem}-person{one.track_id}{path.suffix}") for one in people[1:])]
    meanings = [replace(table.columns["timestamp_s"], name="time"), *(table.columns[name] for name in table.measures)]
    for file, person in reversed(list(zip(files, people, strict=False))):
        columns = {"time": printed(table, "timestamp_s", person.rows)}
        columns |= {name: printed(table, name, person.rows, empty="nan") for name in table.measures}
        write_columns(file, columns, meanings, table, key=("time",))
    if not people:
        write_columns(path, {column.name: [] for column in meanings}, meanings, table, key=("time",))
    notes = ["BORIS plots numbers: frames without the person are left out, and drawn over by a straight line"]
    if len(people) > 1:
        notes.append(f"a file for each of {len(people)} people: {', '.join(file.name for file in files)}")
    return notes
