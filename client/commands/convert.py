"""The command `affserve convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

    from affserve.client.exchange.convert import convert as convert_one
    from affserve.client.exchange.convert import plan
    from affserve.client.results.reading import result_files
    from affserve.train.errors import OutputError, UsageError

    if rate is not None and to != "bids":
        raise UsageError(f"--rate is for --to bids, whose rate is fixed; {to} keeps the times of the frames")
    failed = False
    for result, file in plan(result_files(results), to, out).items():
        try:
            done = convert_one(result, file, to, rate)
        except OutputError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        if json:
            typer.echo(dumps({"result": str(result), "file": str(done.file), "notes": list(done.notes)}))
        else:
            typer.echo("\n".join([f"{result}: wrote {done.file}", *(f"  note: {note}" for note in done.notes)]))
    if failed:
        raise typer.Exit(1)
