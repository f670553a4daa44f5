"""The commands about a server and its callers: `affserve bench served`, `jpeg`, `faults`, `gpus`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import VIT, Architecture, Cores, Folder, keep
from affserve.train.cli import tell


def served(
    architecture: Architecture = VIT,
    precision: Annotated[str, typer.Option(help="int8 or fp32.")] = "int8",
    threads: Cores = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured, in turns.")] = 9,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of 32 frames in a run.")] = 6,
    folder: Folder = None,
) -> None:
    """Compare the served encoder with ONNX Runtime in one's own process; exit code 1 below 0.97 (shm) or 0.95 (raw)."""
    from affserve.benchmarks.serving.served import measure_served
    from affserve.export.precision.tolerances import Precision

    measured = measure_served(architecture, Precision(precision), threads, rounds=rounds, chunks=chunks, progress=tell)
    keep(f"served-{architecture}", measured, folder)
    if not measured["passed"]:
        raise typer.Exit(1)


def jpeg(
    repository: Annotated[Path, typer.Argument(help="Model repository whose answers JPEG changes.")],
    folder: Folder = None,
) -> None:
    """Measure what JPEG of each quality weighs, and what it changes in the answers."""
    from affserve.benchmarks.serving.jpeg import measure_jpeg

    keep("jpeg", measure_jpeg(repository), folder)


def faults(
    repository: Annotated[Path, typer.Argument(help="Model repository, as written by affserve export.")],
    film: Annotated[Path, typer.Argument(help="A video with a face.")],
    kills: Annotated[int, typer.Option(min=1, help="Runs with one killed process each.")] = 20,
    seed: Annotated[int, typer.Option(help="Of victims and moments.")] = 0,
    folder: Folder = None,
) -> None:
    """Kill server and Python processes at random moments of `affserve infer`; exit code 1 where the CSV differs.

    With a head that streams every second run is the live path, one frame at a time and nothing dropped: the same CSV.
    """
    from affserve.benchmarks.serving.faults import measure_faults

    with tempfile.TemporaryDirectory() as scratch:
        measured = measure_faults(repository, film, kills, Path(scratch), seed=seed, progress=tell)
    keep("faults", measured, folder)
    if not measured["passed"]:
        raise typer.Exit(1)


def gpus(
    repository: Annotated[Path, typer.Argument(help="Model repository with graphs for GPUs.")],
    gpu: Annotated[list[int] | None, typer.Option(help="Number of a GPU; may be repeated.  [default: all]")] = None,
    frames: Annotated[int, typer.Option(min=32, help="Crops of one run.")] = 6400,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    engine: Annotated[str | None, typer.Option(help="[default: tensorrt where it is served, or cuda]")] = None,
    folder: Folder = None,
) -> None:
    """Compare one GPU with several, a server on each behind round robin: frames/s, scaling factor, power."""
    from affserve.benchmarks.measuring.gpus import gpu_sets
    from affserve.benchmarks.serving.gpu_scaling import measure_gpus
    from affserve.export.machine.gpus import find_gpus
    from affserve.train.errors import DataError

    chosen = gpu or [one.index for one in find_gpus()]
    if not chosen:
        raise DataError("no NVIDIA GPU was found (nvidia-smi lists none); name them with --gpu, or see affserve doctor")
    name = engine or gpu_sets(repository)[0]
    keep("gpus", measure_gpus(repository, name, chosen, frames, rounds, tell), folder)


COMMANDS = (served, jpeg, faults, gpus)
