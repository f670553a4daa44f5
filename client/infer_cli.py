"""The command `affserve infer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class CommandWithColumns(TyperCommand):
    """A command whose help ends with the columns of the result, read from the table that writes them."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the column section."""
        from affserve.client.results import described_columns
        from affserve.export.contract import default_head_description

        with formatter.section("Columns of the CSV, as far as the model has the task"):
            formatter.write_dl(described_columns(default_head_description().labels))


def infer(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE...", help="Videos, images, or folders of images like 00001.jpg.")
    ],
    repository: Annotated[
        Path | None, typer.Option(help="Model repository: a server for it is started here and stopped afterwards.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="HOST:PORT (gRPC) of a running server.  [default: $AFFSERVE_URL]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV file, '-' for stdout, or with several sources a folder.  [default: SOURCE.affect.csv here]"
        ),
    ] = None,
    plot: Annotated[
        bool | None, typer.Option("--plot/--no-plot", help="Draw a PNG beside the CSV.  [default: if there is a file]")
    ] = None,
    face_detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    face_model: Annotated[
        Path | None, typer.Option(help="YuNet's ONNX file.  [default: $AFFSERVE_FACE_MODEL, else fetched once]")
    ] = None,
    crops: Annotated[
        bool | None,
        typer.Option("--crops/--no-crops", help="Frames are face crops already.  [default: if images are 112x112]"),
    ] = None,
    fps: Annotated[float, typer.Option(min=0.001, help="Clock of a folder of images, in frames per second.")] = 30.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of decoding, of face detection and of the server's models.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per source and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print neither progress nor summary.")] = False,
) -> None:
    """Estimate affect in every frame of videos, images or folders of face crops.

    Writes one row per frame to a CSV file, and a description of its columns beside it. Give the model as --repository
    or the server as --url. A source that fails is reported and the others are done; the exit code is then 1.
    """
    from affserve.client.connection import Connection
    from affserve.client.infer import InferOptions, infer_sources

    options = InferOptions(
        sources=tuple(sources),
        connection=Connection(repository=repository, url=url, threads=threads, quiet=quiet),
        out=out,
        plot=plot,
        face_detector=face_detector,
        face_model=face_model,
        crops=crops,
        fps=fps,
        threads=threads,
        json=json,
        quiet=quiet,
    )
    if not infer_sources(options):
        raise typer.Exit(1)
