"""What is summarised together: parts of the videos, and people in conditions, as CSV files name them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affserve.train.errors import DataError, UsageError

WHOLE = "whole video"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of every video, or of one. file: its name or that of the video, "" for all."""

    name: str
    from_s: float
    to_s: float
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Somebody in a condition. person: who, the same in several files. track_id: which face, "": seen longest."""

    file: str
    person: str
    condition: str
    track_id: str = ""


def read_events(path: Path) -> list[Window]:
    """Read a CSV with the columns name, from, to, in seconds, and file where an event is of one video only."""
    windows = []
    for number, line in _lines(path, ("name", "from", "to"), ("file",)):
        from_s, to_s = (_seconds(line[name], f"{path}, line {number}: {name}") for name in ("from", "to"))
        if not from_s < to_s:
            raise DataError(
                f"{path}, line {number}: {line['name']!r} is from {from_s:g} to {to_s:g} s, expected from < to"
            )
        windows.append(Window(name=line["name"], from_s=from_s, to_s=to_s, file=line.get("file", "")))
    return windows


def parse_baseline(text: str, events: Sequence[Window]) -> list[Window]:
    """Return the windows that FROM:TO in seconds or the name of an event means; UsageError for anything else."""
    if named := [event for event in events if event.name == text]:
        return named
    try:
        from_s, to_s = map(float, text.split(":"))
    except ValueError:
        names = ", ".join(dict.fromkeys(event.name for event in events))
        known = f" or the name of an event: {names}" if names else ", or the name of an event of --events"
        raise UsageError(f"--baseline is {text!r}, expected FROM:TO in seconds, as 0:10{known}") from None
    if not 0 <= from_s < to_s < math.inf:
        raise UsageError(f"--baseline is {text!r}, expected 0 <= FROM < TO")
    return [Window(name="baseline", from_s=from_s, to_s=to_s)]


def read_groups(path: Path) -> list[Member]:
    """Read a CSV with the columns file, person, condition, and track_id where a file shows several people."""
    lines = _lines(path, ("file", "person", "condition"), ("track_id",))
    members = [
        Member(**{name: line[name] for name in Member.__dataclass_fields__ if name in line}) for _, line in lines
    ]
    if len({member.condition for member in members}) < 2:
        raise DataError(f"{path} names fewer than two conditions: there is nothing to compare")
    return members


def is_of(file: str, result: Path, source: str) -> bool:
    """Say whether a name in a CSV means a result, its video, or either without suffix."""
    plain = result.name.removesuffix(result.suffix)
    names = {str(result), result.name, plain, plain.removesuffix(".affect"), source, source.rpartition(".")[0]}
    return file in names - {""}


def _lines(path: Path, needed: Sequence[str], more: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the numbered lines of a CSV file by column; its own columns besides these are left out."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in needed if name not in names]:
                raise DataError(f"{path} has the columns {', '.join(names) or 'none'}; {', '.join(missing)} is missing")
            reader.fieldnames = names
            lines = [
                (number, {name: (line[name] or "").strip() for name in (*needed, *more) if name in names})
                for number, line in enumerate(reader, start=2)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    for number, line in lines:
        if empty := [name for name in needed if not line[name]]:
            raise DataError(f"{path}, line {number}: {empty[0]} is empty")
    if not lines:
        raise DataError(f"{path} has no lines below its header")
    return lines


def _seconds(text: str, what: str) -> float:
    """Read seconds, or hours, minutes and seconds with colons between."""
    try:
        seconds = 0.0
        for part in text.split(":"):
            seconds = seconds * 60 + float(part)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"{what} is {text!r}, expected seconds, or hours:minutes:seconds")
    return seconds
