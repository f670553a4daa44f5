"""The commands about models without a server: `affserve bench stages`, `precisions` and `models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from affserve.benchmarks.measuring.command_line import Folder, keep, progress


def precisions(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
    encoder: Annotated[Path | None, typer.Option(help="Checkpoint to measure instead.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    folder: Folder = None,
) -> None:
    """Compare PyTorch with the exported graphs in FP32, FP16 and INT8: speed, parity and the time to make them."""
    from affserve.benchmarks.engines.precisions import measure_precisions

    measured = measure_precisions(architecture, encoder, threads, lambda text: typer.echo(f"{text} ...", err=True))
    keep(f"precisions-{measured['architecture']}", measured, folder)


def stages(
    repository: Annotated[
        list[Path] | None,
        typer.Option(help="Model repository; several of the same model in other precisions are put side by side."),
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="Without --repository: open_clip's name, random weights, heads of the paper's sizes.")
    ] = "ViT-B-32",
    engines: Annotated[
        str | None,
        typer.Option(help="Some of pytorch-eager,pytorch-compiled,onnxruntime,tensorrt.  [default: all that run here]"),
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Frames of a batch, and of the head's window.  [default: 1,2,4,...,128,300]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="On a CPU.  [default: its physical cores]")] = None,
    seconds: Annotated[float | None, typer.Option(help="For each engine and size.  [default: 10]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Batches of 1, 8 and 32, 2 seconds each.")] = False,
    cache: Annotated[Path, typer.Option(help="Where models of random weights are kept.")] = Path("build/bench"),
    folder: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure encoder and head without a server, per engine, beside the machine's limits, which are printed first."""
    from affserve.benchmarks.engines import stages as measuring
    from affserve.benchmarks.measuring.record import environment, save, without_samples
    from affserve.export.machine.cores import usable_cores

    environment()  # before this process loads the machine
    repositories, weights, left_out = measuring.find_repositories(repository or [], architecture, device, _told, cache)
    config = measuring.StagesConfig(
        repositories=repositories,
        device=device,
        threads=threads or usable_cores(),
        kinds=tuple(engines.split(",")) if engines else (),
        batches=_numbers(batches) or (measuring.QUICK_BATCHES if quick else measuring.BATCHES),
        seconds=seconds or (measuring.QUICK_SECONDS if quick else measuring.SECONDS),
        weights=weights,
    )
    measured = measuring.measure_stages(config, _told)
    measured["skipped"] += left_out
    typer.echo(json.dumps(without_samples(measured), indent=2) if as_json else _table(measured))
    typer.echo(f"saved {save(_name(measured, device), measured, folder)}", err=True)


def _told(text: str) -> None:
    typer.echo(text, err=True)


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,8,32") from error


def _name(measured: dict[str, Any], device: str) -> str:
    return f"stages-{measured['encoder']}" + ("" if device == "cpu" else f"-{device}")


def _table(measured: dict[str, Any]) -> str:
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
    return "\n".join(lines)


def models(
    architecture: Annotated[str, typer.Option(help="open_clip's name; its weights are random.")] = "ViT-B-32",
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


def register(app: typer.Typer) -> None:
    """Add these commands to `affserve bench`."""
    app.command()(stages)
    app.command()(precisions)
    app.command()(models)
