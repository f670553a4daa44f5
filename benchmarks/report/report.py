"""From the JSON files of a machine to `report.md`, and to the tables of the README; from nothing else.

The same files give the same bytes, so that a report that differs is a result that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from affserve.benchmarks.report.files import Results, read_results
from affserve.benchmarks.report.format import table
from affserve.benchmarks.report.headlines import headline_table
from affserve.benchmarks.report.tables import sections
from affserve.train.errors import OutputError

REPORT_FILE = "report.md"
BEGIN = "<!-- affserve bench report: begin -->"
END = "<!-- affserve bench report: end -->"


def write_report(folder: Path) -> Path:
    """Write the report of one machine beside its results; return its path."""
    path = folder / REPORT_FILE
    path.write_text("\n".join(_report(read_results(folder))) + "\n")
    return path


def _report(results: Results) -> Iterator[str]:
    yield f"# Measured on {results.machine}"
    yield ""
    yield (
        "Written by `affserve bench report` from the JSON files of this folder. Intervals are 95 % bootstrap intervals "
        "of the median over the rounds of one run; compared figures come from the same run."
    )
    yield from sections(results)
    yield ""
    yield "## Files"
    yield ""
    rows = [
        (f"`{name}.json`", document["when"], _commit(document["environment"]), f"`{document['command']}`")
        for name, document in results.documents.items()
    ]
    yield from table(("file", "when", "commit", "command"), rows)


def _commit(environment: object) -> str:
    if not isinstance(environment, dict):
        return ""
    return f"{str(environment.get('commit', ''))[:10]}{' + changes' if environment.get('dirty') else ''}"


def fill_markers(path: Path, folders: Sequence[Path]) -> None:
    """Put the headline table of all machines between the markers of a Markdown file; OutputError without them."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise OutputError(f"{path} has no place for the tables; expected one line {BEGIN} and, below it, one {END}")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    lines = headline_table([read_results(folder) for folder in folders])
    path.write_text("\n".join([head + BEGIN, "", *lines, "", END + tail]))
