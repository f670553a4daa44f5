"""The commands about results: `affserve bench report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of results, one per machine.  [default: all there are]")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Also put the tables between this file's `affserve bench report` markers.")
    ] = None,
) -> None:
    """Render the tables (report.md) into each folder of results, from its files alone."""
    from affserve.benchmarks.measuring.record import RESULTS
    from affserve.benchmarks.report.report import fill_markers, write_report

    chosen = folders or sorted(path for path in RESULTS.iterdir() if path.is_dir())
    for folder in chosen:
        typer.echo(write_report(folder))
    if readme is not None:
        fill_markers(readme, chosen)
        typer.echo(readme)


def compare(
    before: Annotated[Path, typer.Argument(help="A result file, or a folder of them.")],
    after: Annotated[Path, typer.Argument(help="The other one.")],
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit 1 when something became worse beyond noise.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Change let through beyond noise: the machine differs too.")
    ] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what changed beyond noise between two runs: ratios of medians whose 95 % interval does not hold 1.

    A shared machine is another one an hour later, by more than a run's own noise: look first at what cannot have
    changed, such as the peers.
    """
    from affserve.benchmarks.report.compare import changes_table, compare_results

    comparison = compare_results(before, after, tolerance)
    typer.echo(comparison.to_json() if json else changes_table(comparison))
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)


COMMANDS = (report, compare)
