"""The command `affserve export`: makes a model repository, describes one, goes back to an older version of one."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from affserve.export.engine.profile import EngineOptions
from affserve.export.repository.exporting import ExportOptions, ExportSummary

Value = TypeVar("Value")


class TargetDevice(str, Enum):
    """What --target takes."""

    ALL = "all"
    CPU = "cpu"
    GPU = "gpu"


class PrecisionChoice(str, Enum):
    """What --precision takes."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


Encoder = Annotated[Path | None, typer.Option(help="Checkpoint of affserve train encoder.")]
Heads = Annotated[list[Path] | None, typer.Option(help="Checkpoint of affserve train head; up to one per task.")]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|URL", help="Repository to write; one that affserve wrote is replaced. s3://... with s3fs."
    ),
]
Target = Annotated[TargetDevice, typer.Option(help="Devices to serve from.")]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option(
        help="auto: for each model the fastest that computes what PyTorch computes. int8 is for CPUs, fp16 for GPUs; a "
        "device of the other kind then gets auto."
    ),
]
Version = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Add or replace this version and serve it, keeping others.  [default: replace all]"
    ),
]
ParityData = Annotated[
    Path | None, typer.Option(help="Corpus whose crops the graphs are compared on.  [default: generated faces]")
]
ParityFrames = Annotated[int, typer.Option(min=1, help="How many of its crops to compare on.")]
CalibrationFrames = Annotated[int, typer.Option(min=1, help="How many others to calibrate INT8 on.")]
BuildEngines = Annotated[
    bool | None,
    typer.Option(
        "--build-engines/--no-build-engines",
        help="Build TensorRT plans on this machine.  [default: when it has a GPU and TensorRT]",
    ),
]
AnyTensorrt = Annotated[
    bool, typer.Option("--any-tensorrt", help="Build with another TensorRT than the serving container's.")
]
TimingCache = Annotated[Path | None, typer.Option(help="File that keeps TensorRT's measurements between builds.")]
WorkspaceGib = Annotated[float, typer.Option(min=0.001, help="Scratch memory a TensorRT kernel may use, GiB.")]
OptimizationLevel = Annotated[int, typer.Option(min=0, max=5, help="How long TensorRT searches for fast kernels.")]
Inspect = Annotated[str | None, typer.Option(metavar="REPOSITORY", help="Only describe a repository.")]
Activate = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only have version N of the repository --out served.")
]
PrintTrtexec = Annotated[
    Path | None,
    typer.Option(metavar="REPOSITORY", help="Only print the script that builds its plans in the serving container."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def export(
    encoder: Encoder = None,
    head: Heads = None,
    out: Out = None,
    target: Target = TargetDevice.ALL,
    precision: PrecisionOption = PrecisionChoice.AUTO,
    version: Version = None,
    parity_data: ParityData = None,
    parity_frames: ParityFrames = 64,
    calibration_frames: CalibrationFrames = 128,
    build_engines: BuildEngines = None,
    any_tensorrt: AnyTensorrt = False,
    timing_cache: TimingCache = None,
    workspace_gib: WorkspaceGib = 4.0,
    optimization_level: OptimizationLevel = 3,
    inspect: Inspect = None,
    activate: Activate = None,
    print_trtexec: PrintTrtexec = None,
    json: Json = False,
) -> None:
    """Export checkpoints to a Triton model repository, after proving that it computes what PyTorch computes.

    A graph outside its tolerance stops the export with a table, and what stood there stays. Needs --encoder, --head and
    --out; or --inspect, or --print-trtexec, or --activate with --out.
    """
    engines = _engine_options(optimization_level, workspace_gib, timing_cache, any_tensorrt)
    if inspect is not None:
        return _inspect(inspect, as_json=json)
    if print_trtexec is not None:
        return _print_trtexec(print_trtexec, engines)
    repository = _given("--out", out, "the repository to write")
    if activate is not None:
        return _activate(repository, activate)
    encoder, heads = _given("--encoder", encoder, "a checkpoint"), _given("--head", head, "a checkpoint")
    options = _options(target, precision, version)
    from affserve.export.artefacts.material import corpus_material, generated_material
    from affserve.export.repository.exporting import export_repository
    from affserve.export.repository.placement import open_target

    place = open_target(repository)
    if parity_data is None:
        material = generated_material(parity_frames, calibration_frames)
    else:
        material = corpus_material(parity_data, parity_frames, calibration_frames)
    summary = export_repository(
        encoder,
        heads,
        place,
        material=material,
        options=options,
        add_plans=_plan_builder(build_engines, engines, options),
        progress=_progress,
    )
    return _report(summary, as_json=json)


def _given(option: str, value: Value | None, expected: str) -> Value:
    if not value:
        raise typer.BadParameter(f"missing; expected {expected}", param_hint=option)
    return value


def _progress(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _options(target: TargetDevice, precision: PrecisionChoice, version: int | None) -> ExportOptions:
    from affserve.export.artefacts.choice import check_usable
    from affserve.export.contract import CPU, GPU
    from affserve.export.precision.tolerances import Precision
    from affserve.train.errors import ExportError

    uses = {TargetDevice.ALL: (CPU, GPU), TargetDevice.CPU: (CPU,), TargetDevice.GPU: (GPU,)}[target]
    asked = None if precision is PrecisionChoice.AUTO else Precision(precision.value)
    try:
        check_usable(uses, asked)
    except ExportError as error:
        raise typer.BadParameter(str(error), param_hint="--precision") from error
    from affserve.export.repository.exporting import ExportOptions  # with PyTorch: after what is quick to refuse

    return ExportOptions(uses=uses, precision=asked, version=version)


def _engine_options(level: int, workspace_gib: float, cache: Path | None, any_version: bool) -> EngineOptions:
    from affserve.export.engine.profile import EngineOptions

    return EngineOptions(
        optimisation_level=level,
        workspace_bytes=round(workspace_gib * (1 << 30)),
        timing_cache=cache,
        any_version=any_version,
    )


def _plan_builder(
    build: bool | None, engines: EngineOptions, options: ExportOptions
) -> Callable[[Path, int], None] | None:
    """Return what builds the plans of a staged repository; None when none are to be built."""
    from affserve.export.contract import GPU
    from affserve.export.engine.building import build_plans, can_build

    if build and GPU not in options.uses:
        raise typer.BadParameter("plans are built from the GPU's graph; add --target gpu", param_hint="--build-engines")
    if not (build if build is not None else GPU in options.uses and can_build()):
        return None

    def add(repository: Path, version: int) -> None:
        build_plans(repository, version, engines, _progress)

    return add


def _report(summary: ExportSummary, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_format.dumps(summary.as_dict()))
        return
    for notice in summary.notices:
        typer.echo(f"note: {notice}", err=True)
    precisions = ", ".join(f"{one.model} {one.precision} for {one.use}" for one in summary.record.artefacts)
    typer.echo(
        f"{summary.repository}: version {summary.version}, {', '.join(summary.tasks)}; {precisions}; "
        f"{summary.bytes / 1e6:.0f} MB, trained on {summary.record.trained_on}; {summary.checks} comparisons with "
        f"PyTorch passed; serve it with: affserve serve {summary.repository}"
    )


def _inspect(repository: str, *, as_json: bool) -> None:
    from affserve.export.repository.inspection import inspect_repository
    from affserve.export.repository.placement import open_target

    inspection = inspect_repository(open_target(repository))
    typer.echo(json_format.dumps(inspection.as_dict()) if as_json else inspection.text())


def _activate(repository: str, version: int) -> None:
    from affserve.export.repository.placement import open_target
    from affserve.export.repository.versions import activate

    activate(open_target(repository), version)
    typer.echo(f"{repository}: version {version} is served")


def _print_trtexec(repository: Path, engines: EngineOptions) -> None:
    from affserve.export.contract import GPU
    from affserve.export.engine.trtexec import container_script
    from affserve.export.repository.placement import LocalTarget, require_manifest
    from affserve.train.errors import RepositoryError

    manifest = require_manifest(LocalTarget(repository))
    if not any(one.use == GPU for one in manifest.versions[manifest.served].artefacts):
        raise RepositoryError(
            f"{repository} was exported for CPUs only and has no graph to build plans from; export it with --target all"
        )
    typer.echo(container_script(repository, engines, manifest.served), nl=False)
