"""What the expressions of other data sets are called here: a table that the user can see and change.

In comes a name or a code as a data set has it, out goes one of the eight expressions, or that it is to be left out.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from affserve.train.errors import DataError
from affserve.train.labels import EXPRESSION

LEFT_OUT = "-"
# By the name in small letters. Contempt is none of the eight.
CLASS_NAMES: Mapping[str, str] = {
    **{name.lower(): name for name in EXPRESSION.names},
    **dict.fromkeys(("calm",), "Neutral"),
    **dict.fromkeys(("angry",), "Anger"),
    **dict.fromkeys(("disgusted",), "Disgust"),
    **dict.fromkeys(("fearful", "afraid"), "Fear"),
    **dict.fromkeys(("happy", "joy"), "Happiness"),
    **dict.fromkeys(("sad",), "Sadness"),
    **dict.fromkeys(("surprised",), "Surprise"),
    **dict.fromkeys(("contempt",), "Other"),
    **dict.fromkeys(("none", "uncertain", "unknown", "non-face"), LEFT_OUT),
}


class ClassNames:
    """A table of names; counts those that it does not know."""

    def __init__(self, table: Mapping[str, str] = CLASS_NAMES) -> None:
        self.table = dict(table)
        self.unknown: Counter[str] = Counter()

    def index(self, name: str) -> int | None:
        """Return the index of the expression that a name means; None where it is to be left out or not known."""
        meant = self.table.get(name.strip().lower())
        if meant is None:
            self.unknown[name.strip()] += 1
        return EXPRESSION.names.index(meant) if meant and meant != LEFT_OUT else None

    def problem(self) -> str | None:
        """Say which names were not known; None where all were."""
        if not self.unknown:
            return None
        told = ", ".join(f"{name!r} ({count})" for name, count in sorted(self.unknown.items()))
        return (
            f"unknown expressions, left out: {told}; name what they mean with --classes FILE, lines like "
            f"'bored,Other' or 'bored,{LEFT_OUT}'; --print-classes shows the table"
        )

    def text(self) -> str:
        """Return the table as a file of names has it."""
        return "name,expression\n" + "".join(f"{name},{meant}\n" for name, meant in self.table.items())


def read_class_names(path: Path | None, table: Mapping[str, str] = CLASS_NAMES) -> ClassNames:
    """Read a file of lines `name,expression` over a table; DataError names the line that cannot be understood."""
    if path is None:
        return ClassNames(table)
    own: dict[str, str] = {}
    for number, cells in enumerate(read_csv(path), start=1):
        if not cells or (number == 1 and cells == ["name", "expression"]):
            continue
        if len(cells) != 2 or cells[1].strip() not in (*EXPRESSION.names, LEFT_OUT):
            names = ", ".join(EXPRESSION.names)
            raise DataError(f"{path}:{number}: found {','.join(cells)!r}, expected NAME,EXPRESSION, of {names} or -")
        own[cells[0].strip().lower()] = cells[1].strip()
    return ClassNames({**table, **own})


def read_csv(path: Path) -> list[list[str]]:
    """Return the cells of a file with commas, semicolons or tabs between them; DataError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    first = text.partition("\n")[0]
    csv.field_size_limit(1 << 24)
    return list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)))
