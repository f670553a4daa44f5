"""`affserve bench`: measurements that end in a JSON file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from affserve.benchmarks import load_cli, peers_cli, report_cli, stages_cli

bench_app = typer.Typer(help="Measure speed and memory, with results kept as JSON.", no_args_is_help=True)

stages_cli.register(bench_app)
load_cli.register(bench_app)
peers_cli.register(bench_app)
report_cli.register(bench_app)

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
def live(
    film: Annotated[Path, typer.Argument(metavar="FILE", help="Played over and over, at its own timestamps.")],
    repository: Annotated[Path | None, typer.Option(help="Model repository: a server is started for it.")] = None,
    url: Annotated[str | None, typer.Option(help="HOST:PORT (gRPC) of a running server.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")] = 10.0,
    streams: Annotated[int, typer.Option(min=1, help="How many at once.")] = 1,
    hop: Annotated[int, typer.Option(min=1, max=300, help="Frames between predictions.")] = 10,
    crops: Annotated[bool, typer.Option("--crops", help="The frames are face crops: find no faces.")] = False,
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")] = None,
    processes: Annotated[bool, typer.Option("--processes", help="A process for each stream, not a thread.")] = False,
    folder: Folder = None,
) -> None:
    """Measure the delay of `affserve live` over a long time, and whether it grows; with one stream or several."""
    from affserve.benchmarks.live import measure_live
    from affserve.client.connection import Connection, connected

    with connected(Connection(repository=repository, url=url)) as client:
        measured = measure_live(
            client.url,
            film,
            seconds=60 * minutes,
            streams=streams,
            hop=hop,
            crops=crops,
            face_model=face_model,
            processes=processes,
        )
    _tell("live" if streams == 1 else f"live-{streams}-streams", measured, folder)


@bench_app.command("bad-requests")
def bad_requests(
    repository: Annotated[Path, typer.Argument(help="Model repository, as written by affserve export.")],
    count: Annotated[int, typer.Option(min=1, help="Requests, after a fifth more to warm up.")] = 1000,
    seed: Annotated[int, typer.Option(help="Draws the same requests again.")] = 0,
    folder: Folder = None,
) -> None:
    """Send random bad requests to a server: each is to be refused, answers and memory are to stay as they were.

    Exit code 1 when one was not refused, or the server changed.
    """
    from affserve.benchmarks.bad_requests import measure_bad_requests

    measured = measure_bad_requests(repository, count, seed, lambda text: typer.echo(text, err=True))
    _tell("bad_requests", measured, folder)
    if not measured["unharmed"]:
        raise typer.Exit(1)


@bench_app.command()
def served(
    architecture: Annotated[str, typer.Option(help="Any open_clip ViT.")] = "ViT-B-32",
    precision: Annotated[str, typer.Option(help="int8 or fp32.")] = "int8",
    threads: Annotated[int | None, typer.Option(min=1, help="Of each way.  [default: physical cores]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured, in turns.")] = 9,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of 32 frames in a run.")] = 6,
    folder: Folder = None,
) -> None:
    """Compare the served encoder with ONNX Runtime in one's own process; exit code 1 below 0.97 (shm) or 0.95 (raw)."""
    from affserve.benchmarks.served import measure_served
    from affserve.export.precision import Precision

    measured = measure_served(
        architecture, Precision(precision), threads, rounds=rounds, chunks=chunks, progress=_progress
    )
    _tell(f"served-{architecture}", measured, folder)
    if not measured["passed"]:
        raise typer.Exit(1)


@bench_app.command()
def transports(
    frames: Annotated[int, typer.Option(min=32, help="Face crops to encode.")] = 320,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each transport is measured, in turns.")] = 9,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository whose answers JPEG changes.  [default: a random model]")
    ] = None,
    folder: Folder = None,
) -> None:
    """Compare raw frames, shared memory and JPEG: time, bytes on the wire, and what JPEG changes in the answers."""
    from affserve.benchmarks.transports import measure_transports

    with tempfile.TemporaryDirectory() as scratch:
        measured = measure_transports(frames, rounds, Path(scratch), repository=repository, progress=_progress)
    _tell("transports", measured, folder)


@bench_app.command()
def faults(
    repository: Annotated[Path, typer.Argument(help="Model repository, as written by affserve export.")],
    film: Annotated[Path, typer.Argument(help="A video with a face.")],
    kills: Annotated[int, typer.Option(min=1, help="Runs with one killed process each.")] = 20,
    seed: Annotated[int, typer.Option(help="Of victims and moments.")] = 0,
    folder: Folder = None,
) -> None:
    """Kill server and Python processes at random moments of `affserve infer`; exit code 1 where the CSV differs."""
    from affserve.benchmarks.faults import measure_faults

    with tempfile.TemporaryDirectory() as scratch:
        measured = measure_faults(repository, film, kills, Path(scratch), seed=seed, progress=_progress)
    _tell("faults", measured, folder)
    if not measured["passed"]:
        raise typer.Exit(1)


@bench_app.command()
def live_answers(
    videos: Annotated[list[Path], typer.Argument(help="Videos of affserve data synth, with the truth beside them.")],
    repository: Annotated[Path | None, typer.Option(help="Model repository: a server is started for it.")] = None,
    url: Annotated[str | None, typer.Option(help="HOST:PORT (gRPC) of a running server.")] = None,
    hop: Annotated[list[int] | None, typer.Option(help="Frames between predictions.  [default: 1, 10 and 30]")] = None,
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")] = None,
    folder: Folder = None,
) -> None:
    """Compare the answers of `affserve live` with those of `affserve infer`, frame by frame."""
    from affserve.benchmarks.live_answers import measure_live_answers
    from affserve.client.connection import Connection, connected

    with connected(Connection(repository=repository, url=url)) as client:
        measured = measure_live_answers(client.url, videos, hop or [1, 10, 30], face_model)
    _tell("live_answers", measured, folder)


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
def faces(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Films with faces.")],
    face_detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")] = None,
    frames: Annotated[int, typer.Option(min=3, help="Frames of each film that are used.")] = 150,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    folder: Folder = None,
) -> None:
    """Measure what finding and following faces costs per frame, and how far it strays from searching every frame."""
    from affserve.benchmarks.faces import measure_faces
    from affserve.client.face_model import find_detector

    detector = find_detector(face_detector, face_model)
    _tell("faces", measure_faces(videos, detector, frames=frames, turns=turns, tell=_progress), folder)


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


def _progress(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _tell(name: str, measured: dict[str, Any], folder: Path | None) -> None:
    from affserve.benchmarks.record import save

    typer.echo(json.dumps(measured, indent=2))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)
