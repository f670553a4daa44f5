"""The root of the command line: composes the command groups of all stages and turns errors into exit codes.

Everything heavy is imported inside a command's body, so that `affserve --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from affserve.benchmarks.cli import bench_app  # only here: the root alone knows every stage
from affserve.client.doctor import doctor
from affserve.export.cli import serve
from affserve.export.export_cli import export
from affserve.train.cli import train_app
from affserve.train.data_cli import data_app
from affserve.train.errors import AffserveError, MissingExtraError
from affserve.train.study_cli import evaluate

EXTRA_OF = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "safetensors"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
}

app = typer.Typer(
    name="affserve",
    help="Face video in, affect out: train, export, serve and call CLIP + sequence models on Triton.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: half the start-up time, and the same text in a pipe
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.command()(export)
app.command()(serve)
app.command()(evaluate)
app.command()(doctor)
app.add_typer(bench_app, name="bench")


class CommandWithColumns(TyperCommand):
    """A command whose help ends with the columns of the result, read from the table that writes them."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the column section."""
        from affserve.client.results import described_columns
        from affserve.export.contract import default_head_description

        with formatter.section("Columns of the CSV, as far as the model has the task"):
            formatter.write_dl(described_columns(default_head_description().labels))


@app.command(cls=CommandWithColumns)
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
    from affserve.client.infer import InferOptions, infer_sources

    options = InferOptions(
        sources=tuple(sources),
        repository=repository,
        url=url,
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


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("build/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of reusing what is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Go the whole way: draw a corpus, train, export, serve, infer, and compare with the truth.

    Takes some minutes on two cores. Stages that were done before are reused.
    """
    from json import dumps

    from affserve.client.demo import default_config, print_progress, run_demo
    from affserve.client.demo_report import table

    comparison = run_demo(folder, default_config(), fresh=fresh, log=print_progress)
    typer.echo(dumps(comparison.as_dict()) if json else f"\n{table(comparison)}")


def main() -> None:
    """Run the command line; an error that is the user's to act on is one line on stderr and exit code 1."""
    try:
        app()
    except AffserveError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if (extra := EXTRA_OF.get(error.name or "")) is None:
            raise  # not a missing extra but a broken installation: the trace is what is needed
        _fail(MissingExtraError(str(error.name), extra))


def _fail(error: AffserveError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
