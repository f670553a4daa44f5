"""The commands about finished results: `affserve convert` and `affserve summary`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PIPE_WIDTH = 200  # characters: no row of the table is broken where nobody looks at a screen
RESULTS = typer.Argument(
    metavar="RESULT...", help="Files of affserve infer, folders of them, or quoted patterns, as 'results/*.csv'."
)


def convert(
    results: Annotated[list[Path], RESULTS],
    to: Annotated[str, typer.Option(help="openface, elan, bids, boris or webvtt; csv, parquet or jsonl.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.  [default: beside each result; bids: a folder there]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Of bids: samples per second.  [default: the video's mean rate]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per result and nothing else.")] = False,
) -> None:
    """Write finished results in the formats of other tools: OpenFace, ELAN, BIDS, BORIS, WebVTT.

    Says of each result what the format does not hold and what was done about it. A result that fails is reported and
    the others are done; the exit code is then 1.
    """
    import sys
    from json import dumps

    from affserve.client.exchange.exchange import convert as convert_one
    from affserve.client.exchange.exchange import plan
    from affserve.client.results.reading import result_files
    from affserve.train.errors import OutputError, UsageError

    if rate is not None and to != "bids":
        raise UsageError(f"--rate is for --to bids, whose rate is fixed; {to} keeps the times of the frames")
    failed = False
    for result, file in plan(result_files(results), to, out).items():
        try:
            notes = convert_one(result, file, to, rate)
        except OutputError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        if json:
            typer.echo(dumps({"result": str(result), "file": str(file), "notes": notes}))
        else:
            typer.echo("\n".join([f"{result}: wrote {file}", *(f"  note: {note}" for note in notes)]))
    if failed:
        raise typer.Exit(1)


def summary(
    results: Annotated[list[Path], RESULTS],
    out: Annotated[
        Path | None,
        typer.Option(help="Name without suffix: writes NAME.csv, NAME.json, a figure NAME.png, and NAME-groups.csv."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(help="CSV with name, from, to (seconds) and, if it is of one video, file: summarise these parts."),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Summarise the parts that were named on the page.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="FROM:TO in seconds, as 0:10, or an event's name: subtracted from each person.")
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="CSV with file, person, condition and, if not of who is seen longest, track_id: compare conditions."
        ),
    ] = None,
    unreliable: Annotated[
        bool, typer.Option("--unreliable", help="Use frames whose column reliable is 0, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON and nothing else.")] = False,
) -> None:
    """Summarise results per person: valence and arousal, share of time and episodes of expressions and action units.

    Times weigh by the video's clock. With --groups, conditions are compared over people: paired where the same people
    are in both, else unpaired, with effect sizes and 95 % intervals.
    """
    import sys
    from json import dumps

    from rich.console import Console

    from affserve.client.results.output_file import check_writable, write_whole
    from affserve.client.results.reading import result_files
    from affserve.client.summary.figure import draw_report
    from affserve.client.summary.report import show, write_files
    from affserve.client.summary.statistics import Choice
    from affserve.client.summary.summarise import summarise
    from affserve.client.summary.windows import parse_baseline, read_events, read_groups

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_writable(Path(f"{out}.csv"))  # told before the work
    known = read_events(events) if events is not None else []
    subtracted = parse_baseline(baseline, known) if baseline is not None else []
    members = read_groups(groups) if groups is not None else []
    report = summarise(
        result_files(results), Choice(events=known, baseline=subtracted, unreliable=unreliable, parts=parts), members
    )
    if out is not None:
        files = write_files(report, out)
        if report.rows:
            files.append(Path(f"{out}.png"))
            write_whole(files[-1], draw_report(report))
    if json:
        typer.echo(dumps(report.rows))
    else:
        show(report, Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH))
        if out is not None:
            typer.echo("".join(f"wrote {file}\n" for file in files), nl=False)
    for failure in report.failures:
        print(f"error: {failure}", file=sys.stderr)
    if report.failures:
        raise typer.Exit(1)
