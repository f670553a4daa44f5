"""The commands that compare with others and with more work: `affserve bench peers`, `e2e` and `scale`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path | None, typer.Option(help="Where the JSON goes.  [default: benchmarks/results/<machine>]")]


def peers(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
    encoder: Annotated[Path | None, typer.Option(help="Checkpoint to serve instead, with --head.")] = None,
    head: Annotated[Path | None, typer.Option(help="Checkpoint of a head for that encoder.")] = None,
    frames: Annotated[int, typer.Option(min=1, max=300, help="Crops of one job.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Jobs of each system; medians are compared.")] = 3,
    trial_frames: Annotated[int, typer.Option(min=1, help="Crops by which each one's settings are chosen.")] = 128,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each system.  [default: physical cores]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... of PyTorch.")] = "cpu",
    config_name: Annotated[
        str | None, typer.Option(help="Of our server.  [default: onnx, on a GPU tensorrt or onnx-cuda]")
    ] = None,
    transport: Annotated[str, typer.Option(help="Of our client: shm, raw or auto.")] = "shm",
    quick: Annotated[bool, typer.Option("--quick", help="Try only the first settings of each system.")] = False,
    folder: Folder = None,
) -> None:
    """Compare with a FastAPI service, LitServe and a plain script, all in one run.

    The peers are installed once into build/peers and run in their own processes. Each system is used at the fastest of
    its settings, and each must give the same answers.
    """
    from affserve.benchmarks.peers import PeerOptions, measure_peers
    from affserve.benchmarks.random_models import Checkpoints
    from affserve.export.cores import usable_cores

    if (encoder is None) != (head is None):
        raise typer.BadParameter("give --encoder and --head, or neither")
    given = Checkpoints(encoder=encoder, head=head, weights="given") if encoder and head else None
    options = PeerOptions(
        architecture=architecture if given is None else given.encoder.name,
        checkpoints=given,
        frames=frames,
        trial_frames=trial_frames,
        rounds=rounds,
        threads=threads or usable_cores(),
        device=device,
        config_name=config_name,
        transport=transport,
        quick=quick,
    )
    measured = measure_peers(options, _progress)
    name = f"peers-{measured['architecture']}"
    _tell(name if device == "cpu" else f"{name}-{device.replace(':', '')}", measured, folder)


def windows(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
    frames: Annotated[int, typer.Option(min=301, help="Crops of the video.")] = 700,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="[default: physical cores]")] = None,
    folder: Folder = None,
) -> None:
    """Compare with the paper's way of inference, overlapping windows encoded as a whole: operations, time, answers."""
    from affserve.benchmarks.windows_cost import measure_paper_way
    from affserve.export.cores import usable_cores

    measured = measure_paper_way(architecture, frames, rounds, threads or usable_cores(), _progress)
    _tell(f"windows-{architecture}", measured, folder)


def e2e(
    video: Annotated[Path | None, typer.Argument(help="What to analyse.  [default: a drawn film]")] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository.  [default: ViT-B-32 in INT8, random weights]")
    ] = None,
    url: Annotated[str | None, typer.Option(help="HOST:PORT (gRPC) of a running server instead.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Play the video over and over up to this length.  [default: as it is]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")] = None,
    face_detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    name: Annotated[str, typer.Option(help="Name of the result.")] = "e2e",
    folder: Folder = None,
) -> None:
    """Time `affserve infer` from video to rows, with a breakdown by stage, beside published end-to-end figures."""
    from affserve.benchmarks.random_models import random_checkpoints, repository_of
    from affserve.benchmarks.scale_material import drawn_film
    from affserve.benchmarks.whole_jobs import measure_whole_job
    from affserve.export.precision import Precision

    options = ["--face-detector", face_detector]
    options += ["--face-model", str(face_model)] if face_model is not None else []
    if url is None:
        repository = repository or repository_of(random_checkpoints("ViT-B-32"), Precision.INT8, progress=_progress)
    options += ["--url", url] if url is not None else ["--repository", str(repository)]
    with tempfile.TemporaryDirectory() as scratch:
        _tell(name, measure_whole_job(video or drawn_film(), options, frames, rounds, Path(scratch)), folder)


def scale(
    part: Annotated[
        list[str] | None, typer.Option(help="length, clients, servers or faces; may be repeated.  [default: all]")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Model repository.  [default: the demo's small model, random weights]")
    ] = None,
    film: Annotated[Path | None, typer.Option(help="A film of one person.  [default: a drawn one]")] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, help="Frames of a video.  [default: 300, 2000, 6000 and 20000]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of clients, servers and faces.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Of every length but the longest.")] = 4,
    client_frames: Annotated[int, typer.Option(min=1, help="Crops that each client sends.")] = 640,
    folder: Folder = None,
) -> None:
    """Measure how cost grows with the length of a video, with clients, with servers and with faces, and fit it."""
    from affserve.benchmarks.scale import LENGTHS, PARTS, ScaleOptions, measure_scale

    options = ScaleOptions(
        parts=tuple(part or PARTS),
        repository=repository,
        film=film,
        rounds=rounds,
        repeats=repeats,
        client_frames=client_frames,
        lengths=tuple(length or LENGTHS),
    )
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure_scale(options, Path(scratch), _progress)
    for one in options.parts:  # a file each, so that parts can be measured one by one
        _tell(f"scale-{one}", {"model": measured["model"], **measured[one]}, folder)


def models(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
    precision: Annotated[list[str] | None, typer.Option(help="fp32, int8 or fp16.  [default: int8 and fp32]")] = None,
    use: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    build_engines: Annotated[
        bool, typer.Option("--build-engines", help="Build TensorRT plans where this machine can.")
    ] = False,
) -> None:
    """Make the models with random weights, the crops and the film that the other commands use; print where they are."""
    from affserve.benchmarks.random_models import generated_faces, random_checkpoints, repository_of
    from affserve.benchmarks.scale_material import drawn_film
    from affserve.export.plan_building import build_plans, can_build
    from affserve.export.precision import Precision
    from affserve.export.to_engine import EngineOptions

    def add_plans(repository: Path, version: int) -> None:
        build_plans(repository, version, EngineOptions(), _progress)

    generated_faces()
    typer.echo(drawn_film())
    checkpoints = random_checkpoints(architecture)
    building = add_plans if build_engines and can_build() else None
    if build_engines and building is None:
        _progress("no plans: this machine has no GPU or no TensorRT for Python; served by ONNX Runtime instead")
    for one in precision or ("int8", "fp32"):
        typer.echo(repository_of(checkpoints, Precision(one), use=use, add_plans=building, progress=_progress))


def gpus(
    repository: Annotated[Path, typer.Argument(help="Model repository with graphs for GPUs.")],
    gpu: Annotated[list[int] | None, typer.Option(help="Number of a GPU; may be repeated.  [default: all]")] = None,
    frames: Annotated[int, typer.Option(min=32, help="Crops of one run.")] = 6400,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    config_name: Annotated[
        str | None, typer.Option(help="[default: tensorrt where it is served, or onnx-cuda]")
    ] = None,
    folder: Folder = None,
) -> None:
    """Compare one GPU with several, a server on each behind round robin: frames/s, scaling factor, power."""
    from affserve.benchmarks.gpu_scaling import gpu_config_name, measure_gpus
    from affserve.export.machine import find_gpus
    from affserve.train.errors import DataError

    chosen = gpu or [one.index for one in find_gpus()]
    if not chosen:
        raise DataError("no NVIDIA GPU was found (nvidia-smi lists none); name them with --gpu, or see affserve doctor")
    name = config_name or gpu_config_name(repository)
    _tell("gpus", measure_gpus(repository, name, chosen, frames, rounds, _progress), folder)


def _progress(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _tell(name: str, measured: dict[str, Any], folder: Path | None) -> None:
    import json

    from affserve.benchmarks.record import save

    typer.echo(json.dumps(measured, indent=2))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)


def register(app: typer.Typer) -> None:
    """Add these commands to `affserve bench`."""
    for command in (peers, windows, e2e, scale, models, gpus):
        app.command()(command)
