"""The commands about models without a server: `affserve bench stages` and `models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from affserve.benchmarks.measuring.command_line import VIT, Architecture, AsJson, Cores, Folder, keep, numbers, progress


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
    from affserve.benchmarks.measuring.record import environment
    from affserve.export.machine.cores import usable_cores

    environment()  # before this process loads the machine
    repositories, weights, left_out = measuring.find_repositories(
        repository or [], architecture, device, progress, cache
    )
    config = measuring.StagesConfig(
        repositories=repositories,
        device=device,
        threads=threads or usable_cores(),
        kinds=tuple(engines.split(",")) if engines else (),
        batches=numbers(batches, int) or (measuring.QUICK_BATCHES if quick else measuring.BATCHES),
        seconds=seconds or (measuring.QUICK_SECONDS if quick else measuring.SECONDS),
        weights=weights,
    )
    measured = measuring.measure_stages(config, progress)
    measured["skipped"] += left_out
    name = f"stages-{measured['encoder']}" + ("" if device == "cpu" else f"-{device}")
    keep(name, measured, folder, None if as_json else _table(measured))


def _table(measured: dict[str, Any]) -> list[str]:
    """Return one line for each engine and size."""
    from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD

    lines = []
    for model in (CLIP_ENCODER.name, TEMPORAL_HEAD.name):
        columns = f"{'frames/s':>10} {'median ms':>10} {'p99 ms':>9} {'MiB':>6} {'GFLOP/s':>8} {'of peak':>8}"
        lines.append(f"{model:<14} {'engine':<24} {columns} {'eager':>7}")
        for row in measured[model]:
            if "left_out" in row:
                continue
            times = row.get("times_as_fast_as_eager")
            figures = (
                f"{row['frames_per_second']:>10.1f} {row['latency']['p50_ms']:>10.2f} {row['latency']['p99_ms']:>9.2f} "
                f"{row['memory_mib']:>6.0f} {row['gflops']:>8.1f} {row['of_peak']:>8.2f}"
            )
            eager = f"{times['value']:>6.2f}x" if times else ""
            lines.append(f"{row['frames']:>6} frames  {row['engine']:<24} {figures} {eager}")
    return lines


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
        progress("no plans: this machine has no GPU or no TensorRT for Python; served by ONNX Runtime instead")
    for one in precision or ("int8", "fp32"):
        typer.echo(repository_of(checkpoints, Precision(one), use=use, engines=engines, progress=progress))


COMMANDS = (stages, models)
