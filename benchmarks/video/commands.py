"""The commands about whole videos and cameras: `affserve bench e2e`, `scale`, `live`, `cameras`, `faces` and `demo`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import (
    VIT,
    AsJson,
    Crops,
    FaceDetector,
    FaceModel,
    Folder,
    Repository,
    Threads,
    Url,
    keep,
    server,
)
from affserve.train.cli import picked, tell

Hop = Annotated[
    int | None,
    typer.Option(min=1, max=300, help="Frames between predictions, of a head that sees whole segments.  [default: 10]"),
]


def live(
    film: Annotated[Path, typer.Argument(metavar="FILE", help="Played over and over, at its own timestamps.")],
    repository: Repository = None,
    url: Url = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long.")] = 10.0,
    streams: Annotated[int, typer.Option(min=1, help="How many at once.")] = 1,
    hop: Hop = None,
    crops: Crops = False,
    face_model: FaceModel = None,
    processes: Annotated[bool, typer.Option("--processes", help="A process for each stream, not a thread.")] = False,
    folder: Folder = None,
) -> None:
    """Measure the delay of `affserve live` over a long time, and whether it grows; with one stream or several."""
    from affserve.benchmarks.video.live import LiveJob, measure_live

    with server(repository, url) as client:
        job = LiveJob(url=client.url, film=film, seconds=60 * minutes, hop=hop, crops=crops, face_model=face_model)
        measured = measure_live(job, streams, processes=processes)
    keep("live" if streams == 1 else f"live-{streams}-streams", measured, folder)


def faces(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Films with faces.")],
    face_detector: FaceDetector = "auto",
    face_model: FaceModel = None,
    frames: Annotated[int, typer.Option(min=3, help="Frames of each film that are used.")] = 150,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    folder: Folder = None,
) -> None:
    """Measure what finding and following faces costs per frame, and how far it strays from searching every frame."""
    from affserve.benchmarks.video.faces import measure_faces
    from affserve.client.faces.detector_file import find_detector

    detector = find_detector(face_detector, face_model)
    keep("faces", measure_faces(videos, detector, frames=frames, turns=turns, tell=tell), folder)


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
    keep("demo", summary, folder)


def cameras(
    film: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="What every camera sees, over and over.  [default: a drawn film]"),
    ] = None,
    repository: Repository = None,
    url: Url = None,
    delay: Annotated[float, typer.Option(help="Milliseconds that the p95 from frame to answer may take.")] = 1000.0,
    hop: Hop = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of each number of cameras; 11 more for warming up.")] = 30.0,
    first: Annotated[int, typer.Option(min=1, help="Number to begin with.")] = 1,
    crops: Crops = False,
    face_model: FaceModel = None,
    threads: Threads = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Find how many live cameras one machine carries: delay bounded and not growing, under 1 % of frames dropped.

    Every camera is a process of its own on this machine, as `affserve live` is.
    """
    from affserve.benchmarks.measuring.films import drawn_film
    from affserve.benchmarks.measuring.samples import counted
    from affserve.benchmarks.video.cameras import measure_cameras
    from affserve.benchmarks.video.live import LiveJob

    film = film or drawn_film()
    with server(repository, url, threads) as client:
        job = LiveJob(url=client.url, film=film, seconds=seconds, hop=hop, crops=crops, face_model=face_model)
        measured = measure_cameras(job, delay, first, tell)
    keep("cameras", measured, folder, None if as_json else [counted(measured["cameras"], "camera")])
    if not measured["cameras"]:
        raise typer.Exit(1)


def e2e(
    video: Annotated[Path | None, typer.Argument(help="What to analyse.  [default: a drawn film]")] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository.  [default: ViT-B-32 in INT8, random weights]")
    ] = None,
    url: Url = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Play the video over and over up to this length.  [default: as it is]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    face_model: FaceModel = None,
    face_detector: FaceDetector = "auto",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "e2e",
    folder: Folder = None,
) -> None:
    """Time `affserve infer` from video to rows, with a breakdown by stage, beside published end-to-end figures."""
    from affserve.benchmarks.measuring.films import drawn_film
    from affserve.benchmarks.measuring.random_models import random_checkpoints, repository_of
    from affserve.benchmarks.video.whole_jobs import measure_whole_job
    from affserve.client.faces.cropper import Croppers
    from affserve.export.precision.tolerances import Precision

    options = ["--face-detector", face_detector]
    options += ["--face-model", str(face_model)] if face_model is not None else []
    if url is None:
        repository = repository or repository_of(random_checkpoints(VIT), Precision.INT8, progress=tell)
    options += ["--url", url] if url is not None else ["--repository", str(repository)]
    with tempfile.TemporaryDirectory() as scratch:
        croppers = Croppers(face_detector=face_detector, face_model=face_model)
        keep(name, measure_whole_job(video or drawn_film(), options, frames, rounds, Path(scratch), croppers), folder)


def scale(
    part: Annotated[
        list[str] | None,
        typer.Option(help="length, clients, faces, cluster, kills; may be repeated.  [default: the first 3]"),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository.  [default: the demo's small model, random weights]")
    ] = None,
    film: Annotated[Path | None, typer.Option(help="A film of one person.  [default: a drawn one]")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Frames of a video.  [default: 300, 2000, 6000 and 20000]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of clients and faces.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Of every length but the longest.")] = 4,
    client_frames: Annotated[int, typer.Option(min=1, help="Crops that each client sends.")] = 640,
    folder: Folder = None,
) -> None:
    """Measure how cost grows with the length of a video, with clients and with faces, and fit it."""
    from affserve.benchmarks.video.scale import LENGTHS, PARTS, ScaleOptions, measure_scale

    parts, lengths = tuple(part or PARTS), tuple(length or LENGTHS)
    options = ScaleOptions(**picked(locals(), ScaleOptions))
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure_scale(options, Path(scratch), tell)
    for one in options.parts:  # a file each, so that parts can be measured one by one
        keep(f"scale-{one}", {"model": measured["model"], **measured[one]}, folder)


def page(
    frames: Annotated[int, typer.Option(min=200, help="Of the long result, of three people.")] = 20_000,
    folder: Folder = None,
) -> None:
    """Measure the page of `affserve view` in Chromium: first curve, seeks, memory, frames that are not the rows'."""
    from affserve.benchmarks.video.page import measure_page

    keep("page", measure_page(frames), folder)


COMMANDS = (live, cameras, faces, e2e, scale, demo, page)
