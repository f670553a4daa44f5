"""What a summary shows on a terminal, and its files: NAME.csv and what its columns mean, NAME-groups.csv, NAME.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from affserve.client.results.metadata import described_text, metadata_path
from affserve.client.results.output_file import write_whole
from affserve.client.results.rows import ACTION_UNIT_MEANINGS
from affserve.client.summary.comparison import Comparison, Mean
from affserve.client.summary.statistics import Row, columns_of_rows
from affserve.client.summary.summarise import Report
from affserve.train.errors import printable

TOP = 3  # expressions and action units shown of each person
MOST_TESTS = 12  # shown; the file has all
DIGITS = 6
FACTS = ("description", "unit", "minimum", "maximum")  # of a column
CAUTION = "What labellers would say of a face, not what a person feels."
TESTS = (
    "b - a over people with 95 % intervals; effect: Cohen's dz (paired) or Hedges' g (unpaired); p_fdr counts all "
    "tests of this summary (Benjamini and Hochberg)."
)


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    changed = any(name.endswith("_change") for row in report.rows for name in row)
    ending = "_change" if changed else ""
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    events = len({row["event"] for row in report.rows}) > 1
    for name in (
        "video",
        "person",
        *(["part"] if events else []),
        "seen",
        "valence",
        "arousal",
        "expressions",
        "units",
    ):
        grid.add_column(
            name, justify="right" if name in ("seen", "valence", "arousal") else "left", no_wrap=name == "seen"
        )
    for row in report.rows:
        who = [row["video"] or Path(row["file"]).name, row["person"], *([row["event"]] if events else [])]
        seen = "–" if row["seen_percent"] is None else f"{row['seen_percent']:.0f} %"
        values = [_value(row, name, ending) for name in ("valence", "arousal")]
        states = [_top(row, ending, units) for units in (False, True)]
        grid.add_row(*map(printable, who), seen, *values, *states)
    console.print(grid)
    scale = "change from the baseline of the mean" if changed else "mean ± standard deviation"
    share = "change of the share, in % points" if changed else "share in %"
    console.print(
        f"\nvalence, arousal: {scale} over time, -1 to 1; expressions, units: {share} of the time, the {TOP} largest"
    )
    console.print(CAUTION)
    if report.comparisons:
        _show_comparisons(report.comparisons, console)
    for note in report.notes:
        console.print(f"note: {note}")


def _value(row: Row, name: str, ending: str) -> str:
    value, spread = row.get(f"{name}_mean{ending}"), row.get(f"{name}_sd")
    if value is None:
        return "–"
    return f"{value:+.2f}" + ("" if ending or spread is None else f" ± {spread:.2f}")


def _top(row: Row, ending: str, units: bool) -> str:
    """Name the states that hold longest, or changed most."""
    shares = {
        name.removesuffix(f"_percent{ending}"): value
        for name, value in row.items()
        if name.endswith(f"_percent{ending}") and name[:4] != "seen" and value is not None
    }
    mine = [name for name in shares if (name in ACTION_UNIT_MEANINGS) == units and abs(shares[name]) >= 0.5]
    mine = sorted(mine, key=lambda name: -abs(shares[name]))[:TOP]
    return ", ".join(f"{name} {shares[name]:{'+' if ending else ''}.0f}" for name in mine)


def _show_comparisons(comparisons: Sequence[Comparison], console: Console) -> None:
    names = ("part", "measure", "a", "b", "b - a", "95 %", "effect", "p", "p_fdr", "test", "people")
    parts = len({one.event for one in comparisons}) > 1
    grid = Grid(*(names if parts else names[1:]), box=None, pad_edge=False, header_style="bold")
    strongest = sorted(comparisons, key=lambda one: 2.0 if one.p is None else one.p)[:MOST_TESTS]
    for one in strongest:
        numbers = [_number(one.difference), f"{_number(one.low)} to {_number(one.high)}", _number(one.effect)]
        chances = ["–" if p is None else f"{p:.3f}" if p >= 0.001 else "<.001" for p in (one.p, one.p_fdr)]
        cells = [one.measure, one.a, one.b, *numbers, *chances, one.test, str(one.people)]
        grid.add_row(*map(printable, [one.event, *cells] if parts else cells))
    console.print("")
    console.print(grid)
    console.print(f"\n{len(strongest)} of {len(comparisons)} comparisons, the smallest p first. {TESTS}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}"


def write_files(report: Report, out: Path) -> list[Path]:
    """Write the files of a report; return them."""
    columns = columns_of_rows(report.rows)
    table, groups, whole = (Path(f"{out}{ending}") for ending in (".csv", "-groups.csv", ".json"))
    about = {"name": table.name, "title": "Affect per person and part", "source": ""}
    text = described_text(columns, {"caution": CAUTION}, **about, key=("file", "track_id", "event"))
    write_whole(metadata_path(table), text.encode())
    write_whole(table, _csv([column.name for column in columns], report.rows))
    found = [asdict(one) for one in report.comparisons]
    document = {
        "caution": CAUTION,
        "columns": {column.name: {name: getattr(column, name) for name in FACTS} for column in columns},
        "rows": [_rounded(row) for row in report.rows],
        "tests": {"meaning": TESTS, "comparisons": [_rounded(one) for one in found]},
        "means": [_rounded(asdict(one)) for one in report.means],
        "notes": list(report.notes),
        "failures": list(report.failures),
    }
    write_whole(whole, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    if not found:
        return [table, whole]
    write_whole(groups, _csv(list(found[0]), found))
    return [table, groups, whole]


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in row.items()}


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rounded(row) for row in rows)
    return text.getvalue().encode()


def means_by(means: Sequence[Mean]) -> dict[str, dict[str, Mean]]:
    """Return the means by measure, then by condition; of several parts by both."""
    found: dict[str, dict[str, Mean]] = {}
    for one in means:
        condition = f"{one.condition}, {one.event}" if len({mean.event for mean in means}) > 1 else one.condition
        found.setdefault(one.measure, {})[condition] = one
    return found
