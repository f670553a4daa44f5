"""The commands about results: `affserve bench report`, `compare` and `all`."""

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
    """Render tables (report.md) and plots (SVG) into each folder of results, from its files alone."""
    from affserve.benchmarks.record import RESULTS
    from affserve.benchmarks.report import fill_markers, write_report

    chosen = folders or sorted(path for path in RESULTS.iterdir() if path.is_dir())
    for folder in chosen:
        for path in write_report(folder):
            typer.echo(path)
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
        float,
        typer.Option(min=0, max=1, help="Change let through beyond noise: the machine differs too."),
    ] = 0.05,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what changed beyond noise between two runs: ratios of medians whose 95 % interval does not hold 1.

    A shared machine is another one an hour later, by more than a run's own noise: look first at what cannot have
    changed, such as the peers.
    """
    from affserve.benchmarks.compare import changes_table, compare_results

    comparison = compare_results(before, after, tolerance)
    typer.echo(comparison.to_json() if json else changes_table(comparison))
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)


def everything(
    target: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Every part at a small size, in minutes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video of the whole job.  [default: a drawn one]")] = None,
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file, for the whole job.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where results go.  [default: as each part]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands.")] = False,
) -> None:
    """Measure everything on this machine, part by part, and report; run again, it goes on where it stopped.

    A part that fails is told and the others go on; the exit code is then 1.
    """
    from affserve.benchmarks.everything import AllOptions, run_all

    options = AllOptions(
        target=target,
        quick=quick,
        fresh=fresh,
        only=tuple(part or ()),
        video=video,
        face_model=face_model,
        folder=folder,
        dry_run=dry_run,
    )
    if not run_all(options, lambda text: typer.echo(text, err=True)):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to `affserve bench`."""
    app.command()(report)
    app.command()(compare)
    app.command(name="all")(everything)
