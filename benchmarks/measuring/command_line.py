"""What the commands of `affserve bench` share: options, a server to ask, and keeping a result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from affserve.client.client import AffectClient

Folder = Annotated[Path | None, typer.Option(help="Where the JSON goes.  [default: benchmarks/results/<machine>]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Repository = Annotated[Path | None, typer.Option(help="Model repository: a server is started for it.")]
Url = Annotated[str | None, typer.Option(help="HOST:PORT (gRPC) of a running server instead.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of a server that is started here.")]
Cores = Annotated[int | None, typer.Option(min=1, help="Of each side, on a CPU.  [default: its physical cores]")]
Architecture = Annotated[str, typer.Option(help="open_clip's name; its weights are random.")]
FaceModel = Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")]
FaceDetector = Annotated[str, typer.Option(help="auto, yunet or haar.")]
Crops = Annotated[bool, typer.Option("--crops", help="The frames are face crops: find no faces.")]

VIT = "ViT-B-32"


@contextmanager
def server(repository: Path | None, url: str | None, threads: int | None = None) -> Iterator[AffectClient]:
    """Yield a client of the server at `url`, or of one for `repository` that ends with the context."""
    from affserve.benchmarks.measuring.record import environment
    from affserve.client.connection import Connection, connected

    environment()  # before anything loads the machine
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        yield client


def keep(name: str, measured: dict[str, Any], folder: Path | None, lines: Sequence[str] | None = None) -> None:
    """Save a result and print it: as JSON, or as lines for people where there are some."""
    from affserve.benchmarks.measuring.record import save, without_samples

    typer.echo(json.dumps(without_samples(measured), indent=2) if lines is None else "\n".join(lines))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)
