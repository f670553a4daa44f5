"""What the commands of `affserve bench` share: options, progress on stderr, and keeping a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path | None, typer.Option(help="Where the JSON goes.  [default: benchmarks/results/<machine>]")]


def progress(text: str) -> None:
    """Say on stderr what is being done."""
    typer.echo(f"{text} ...", err=True)


def keep(name: str, measured: dict[str, Any], folder: Path | None) -> None:
    """Print a result as JSON and save it."""
    from affserve.benchmarks.measuring.record import save

    typer.echo(json.dumps(measured, indent=2))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)


UrlArgument = Annotated[
    str | None,
    typer.Argument(metavar="[URL]", help="HOST:PORT (gRPC) of a running server, or several with commas between."),
]
RepositoryOption = Annotated[Path | None, typer.Option(help="Start a server for this model repository instead.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Of a server that is started here.")]
FolderOption = Annotated[Path | None, typer.Option(help="Where the JSON goes.")]
NameOption = Annotated[str | None, typer.Option(help="Of the result file.  [default: load-MODEL]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def note(text: str) -> None:
    """Say something on stderr."""
    typer.echo(text, err=True)


def finish(name: str, measured: dict[str, Any], lines: list[str], folder: Path | None, as_json: bool) -> None:
    """Print a result, for people or as JSON, and save it."""
    from affserve.benchmarks.measuring.record import save, without_samples

    typer.echo(json.dumps(without_samples(measured), indent=2) if as_json else "\n".join(lines))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)


def whole_numbers(text: str | None) -> tuple[int, ...]:
    """Parse whole numbers with commas between."""
    return tuple(round(value) for value in numbers(text))


def numbers(text: str | None) -> tuple[float, ...]:
    """Parse numbers with commas between."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,4") from error
