"""`affserve bench`: measurements that end in a JSON file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

bench_app = typer.Typer(help="Measure speed and memory, with results kept as JSON.", no_args_is_help=True)

Folder = Annotated[Path | None, typer.Option(help="Where the JSON goes.  [default: benchmarks/results/<machine>]")]


@bench_app.command()
def memory(
    repository: Annotated[Path, typer.Argument(help="Model repository, as written by affserve export.")],
    film: Annotated[Path, typer.Argument(help="A film to play over and over, such as one of affserve data synth.")],
    frames: Annotated[list[int] | None, typer.Option(help="Lengths to compare.  [default: 300, 2000 and 6000]")] = None,
    folder: Folder = None,
) -> None:
    """Compare the peak memory of `affserve infer` on a short and a long video."""
    from affserve.benchmarks.memory import measure_memory

    with tempfile.TemporaryDirectory() as scratch:
        _tell("memory", measure_memory(repository, film, frames or [300, 2000, 6000], Path(scratch)), folder)


@bench_app.command()
def startup(folder: Folder = None) -> None:
    """Time `affserve --help`."""
    from affserve.benchmarks.startup import measure_help

    _tell("startup", measure_help(), folder)


@bench_app.command()
def generator(
    videos: Annotated[int, typer.Option(help="Videos to draw.")] = 16,
    workers: Annotated[int, typer.Option(help="Processes that draw.")] = 2,
    folder: Folder = None,
) -> None:
    """Measure how fast faces are drawn."""
    from affserve.benchmarks.startup import measure_generator

    _tell("generator", measure_generator(videos, workers), folder)


@bench_app.command()
def features(
    frames: Annotated[int, typer.Option(min=1000, help="Frames of the generated corpus.")] = 3_000_000,
    files: Annotated[int, typer.Option(min=0, help="Crops that exist as empty files, for `data check`.")] = 300_000,
    work_s: Annotated[float, typer.Option(help="Seconds of appending rows, and of decoding crops.")] = 10.0,
    folder: Folder = None,
) -> None:
    """Check, sample and append to a generated corpus of Aff-Wild2's size, and decode crops; nothing is encoded."""
    from affserve.benchmarks.feature_scale import measure_feature_scale

    with tempfile.TemporaryDirectory() as scratch:
        _tell("feature_scale", measure_feature_scale(frames, files, work_s, Path(scratch)), folder)


@bench_app.command()
def training(
    corpus: Annotated[Path, typer.Argument(help="A corpus whose crops are read, such as one of affserve data synth.")],
    frames: Annotated[int, typer.Option(min=10, help="Crops to read.")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Optimiser steps; the median leaves the first one out.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    folder: Folder = None,
) -> None:
    """Measure the paper's optimiser steps of both stages, the loader of crops, and what fits a GPU of 24 GB."""
    from affserve.benchmarks.training import measure_training

    _tell("training", measure_training(corpus, device, frames, repeats), folder)


@bench_app.command()
def precisions(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
    encoder: Annotated[Path | None, typer.Option(help="Checkpoint to measure instead.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    folder: Folder = None,
) -> None:
    """Compare PyTorch with the exported graphs in FP32, FP16 and INT8: speed, parity and the time to make them."""
    from affserve.benchmarks.precisions import measure_precisions

    measured = measure_precisions(architecture, encoder, threads, lambda text: typer.echo(f"{text} ...", err=True))
    _tell(f"precisions-{measured['architecture']}", measured, folder)


@bench_app.command()
def demo(
    run: Annotated[Path, typer.Argument(help="Folder of an `affserve demo`.")] = Path("build/demo"),
    folder: Folder = None,
) -> None:
    """Keep the figures of the last demo."""
    from affserve.train.errors import DataError

    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{run} holds no summary of a demo: {error}; make one with: affserve demo") from error
    _tell("demo", summary, folder)


def _tell(name: str, measured: dict[str, Any], folder: Path | None) -> None:
    from affserve.benchmarks.record import save

    typer.echo(json.dumps(measured, indent=2))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)
