"""The commands about models without a server: `affserve bench stages` and `models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import VIT, Architecture, AsJson, Cores, Folder, keep
from affserve.train.cli import numbers, tell


def stages(
    repository: Annotated[
        list[Path] | None,
        typer.Option(help="Model repository; several of the same model in other precisions are put side by side."),
    ] = None,
    architecture: Architecture = VIT,
    engines: Annotated[
        str | None,
        typer.Option(help="Some of pytorch-eager,pytorch-compiled,onnxruntime,tensorrt.  [default: all that run here]"),
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Frames of a batch, and of the head's window.  [default: 1,2,4,...,128,300]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Cores = None,
    seconds: Annotated[float | None, typer.Option(help="For each engine and size.  [default: 10]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Batches of 1, 8 and 32, 2 seconds each.")] = False,
    cache: Annotated[Path, typer.Option(help="Where models of random weights are kept.")] = Path("build/bench"),
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Measure encoder and head without a server, per engine, beside the machine's limits, which are printed first."""
    from affserve.benchmarks.engines import stages as measuring
    from affserve.benchmarks.engines.specs import MODELS
    from affserve.benchmarks.measuring.record import environment
    from affserve.export.machine.cores import usable_cores

    environment()  # before this process loads the machine
    repositories, weights, left_out = measuring.find_repositories(repository or [], architecture, device, tell, cache)
    config = measuring.StagesConfig(
        repositories=repositories,
        device=device,
        threads=threads or usable_cores(),
        kinds=tuple(engines.split(",")) if engines else (),
        batches=numbers(batches, int) or (measuring.QUICK_BATCHES if quick else measuring.BATCHES),
        seconds=seconds or (measuring.QUICK_SECONDS if quick else measuring.SECONDS),
        weights=weights,
    )
    measured = measuring.measure_stages(config, tell)
    measured["skipped"] += left_out
    name = f"stages-{measured['encoder']}" + ("" if device == "cpu" else f"-{device}")
    lines = [measuring.line(model, row) for model in MODELS for row in measured[model]]
    keep(name, measured, folder, None if as_json else lines)


def models(
    architecture: Architecture = VIT,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, int8 or fp16.  [default: int8 and fp32]")] = None,
    use: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    build_engines: Annotated[
        bool, typer.Option("--build-engines", help="Build TensorRT plans where this machine can.")
    ] = False,
) -> None:
    """Make the models with random weights, the crops and the film that the other commands use; print where they are."""
    from affserve.benchmarks.measuring.films import drawn_film
    from affserve.benchmarks.measuring.random_models import generated_faces, random_checkpoints, repository_of
    from affserve.export.engine.building import can_build
    from affserve.export.engine.profile import EngineOptions
    from affserve.export.precision.tolerances import Precision

    generated_faces()
    typer.echo(drawn_film())
    checkpoints = random_checkpoints(architecture)
    engines = EngineOptions() if build_engines and can_build() else None
    if build_engines and engines is None:
        tell("no plans: this machine has no GPU or no TensorRT for Python; served by ONNX Runtime instead")
    for one in precision or ("int8", "fp32"):
        typer.echo(repository_of(checkpoints, Precision(one), use=use, engines=engines, progress=tell))


COMMANDS = (stages, models)
