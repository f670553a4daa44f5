"""The command `affserve export`: makes a model repository, describes one, goes back to an older version of one."""

from __future__ import annotations

import json as json_format
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from affserve.export.engine.profile import EngineOptions
    from affserve.export.repository.exporting import ExportOptions, ExportSummary

Value = TypeVar("Value")
Target = Literal["all", "cpu", "gpu"]
PrecisionName = Literal["auto", "fp32", "fp16", "bf16", "int8"]

WHEN_SERVED = "a server of it that runs changes over when it is restarted, or by itself with --watch"


def export(
    encoder: Annotated[Path | None, typer.Option(help="Checkpoint of affserve train encoder.")] = None,
    head: Annotated[
        list[Path] | None, typer.Option(help="Checkpoint of affserve train head; up to one per task.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL", help="Repository to write; one that affserve wrote is replaced. s3://... with s3fs."
        ),
    ] = None,
    target: Annotated[Target, typer.Option(help="Devices to serve from.")] = "all",
    precision: Annotated[
        PrecisionName,
        typer.Option(
            help="auto: for each model the fastest that computes what PyTorch computes. int8 and bf16 are for CPUs, "
            "fp16 for GPUs; a device of the other kind then gets auto."
        ),
    ] = "auto",
    version: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Add or replace this version and serve it, keeping others.  [default: replace all]"
        ),
    ] = None,
    parity_data: Annotated[
        Path | None, typer.Option(help="Corpus whose crops the graphs are compared on.  [default: generated faces]")
    ] = None,
    parity_frames: Annotated[int, typer.Option(min=1, help="How many of its crops to compare on.")] = 64,
    calibration_frames: Annotated[int, typer.Option(min=1, help="How many others to calibrate INT8 on.")] = 128,
    build_engines: Annotated[
        bool | None,
        typer.Option(
            "--build-engines/--no-build-engines",
            help="Build plans: TensorRT's for the GPU of this machine, and those for RTX cards, which need none.  "
            "[default: what is installed; for RTX cards: pip install 'affserve[rtx]']",
        ),
    ] = None,
    any_tensorrt: Annotated[
        bool, typer.Option("--any-tensorrt", help="Build with another TensorRT than the serving container's.")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that keeps TensorRT's measurements between builds.")
    ] = None,
    workspace_gib: Annotated[float, typer.Option(min=0.001, help="Scratch memory a TensorRT kernel may use, GiB.")] = 4,
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="How long TensorRT searches for fast kernels.")
    ] = 3,
    postprocess: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="JSON of what clients make of the answers: smoothing, class biases, thresholds; or none.  [default: "
            "what the heads declare, see affserve train tune]",
        ),
    ] = None,
    inspect: Annotated[str | None, typer.Option(metavar="REPOSITORY", help="Only describe a repository.")] = None,
    activate: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only have version N of the repository --out served.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY", help="PEM private key to sign the repository with; with --out alone, one that is there."
        ),
    ] = None,
    open_clip: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Only write --encoder in the layout that open_clip loads.")
    ] = None,
    print_trtexec: Annotated[
        Path | None,
        typer.Option(
            metavar="REPOSITORY", help="Only print the script that builds its plans in the serving container."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Export checkpoints to a Triton model repository, after proving that it computes what PyTorch computes.

    A graph outside its tolerance stops the export with a table, and what stood there stays. Needs --encoder, --head and
    --out; or --inspect, or --print-trtexec, or --activate with --out.
    """
    if inspect is not None:
        return _inspect(inspect, as_json=json)
    from affserve.export.engine.profile import EngineOptions

    engines = EngineOptions(
        optimisation_level=optimization_level,
        workspace_bytes=round(workspace_gib * (1 << 30)),
        timing_cache=timing_cache,
        any_version=any_tensorrt,
    )
    if print_trtexec is not None:
        return _print_trtexec(print_trtexec, engines)
    if open_clip is not None:
        return _open_clip(_given("--encoder", encoder, "a checkpoint"), open_clip)
    repository = _given("--out", out, "the repository to write")
    if activate is not None:
        return _activate(repository, activate)
    if sign is not None and encoder is None:
        return _sign(repository, sign)
    checkpoints = _given("--encoder", encoder, "a checkpoint"), _given("--head", head, "a checkpoint")
    options = replace(_options(target, precision, version, build_engines, engines), postprocess=postprocess)
    summary = _export(*checkpoints, repository, options, parity_data, (parity_frames, calibration_frames), sign)
    return _report(summary, as_json=json)


def _given(option: str, value: Value | None, expected: str) -> Value:
    if not value:
        raise typer.BadParameter(f"missing; expected {expected}", param_hint=option)
    return value


def _progress(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _options(
    target: Target, precision: PrecisionName, version: int | None, build: bool | None, engines: EngineOptions
) -> ExportOptions:
    from affserve.export.contract import CPU, GPU
    from affserve.export.engine.building import can_build
    from affserve.export.engine.rtx import can_build_rtx
    from affserve.export.precision.tolerances import Precision
    from affserve.export.repository.exporting import ExportOptions
    from affserve.train.errors import ExportError

    uses = {"all": (CPU, GPU), "cpu": (CPU,), "gpu": (GPU,)}[target]
    asked = None if precision == "auto" else Precision(precision)
    may_build = build is not False and GPU in uses
    rtx = may_build and can_build_rtx()
    # Asked for where nothing can be built, it ends in what TensorRT's builder lacks.
    tensorrt = (may_build and can_build()) or (build is True and not rtx)
    try:
        return ExportOptions(
            uses=uses,
            precision=asked,
            version=version,
            engines=engines if tensorrt else None,
            rtx="none" if not rtx else "required" if build else "tried",
        )
    except ExportError as error:
        raise typer.BadParameter(str(error)) from error


def _export(
    encoder: Path,
    heads: list[Path],
    out: str,
    options: ExportOptions,
    corpus: Path | None,
    counts: tuple[int, int],
    key: Path | None,
) -> ExportSummary:
    from affserve.export.artefacts.material import corpus_material, generated_material
    from affserve.export.repository.exporting import export_repository
    from affserve.export.repository.placement import LocalTarget, open_target
    from affserve.export.sharing import signing

    place = open_target(out)
    if key is not None and options.version is not None and not isinstance(place, LocalTarget):
        raise typer.BadParameter(
            "a version at an address is signed with its whole repository: export to a folder, copy"
        )
    material = generated_material(*counts) if corpus is None else corpus_material(corpus, *counts)
    seal = partial(signing.sign, key=key) if key is not None else lambda _: None
    return export_repository(encoder, heads, place, material=material, options=options, progress=_progress, seal=seal)


def _report(summary: ExportSummary, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_format.dumps(summary.as_dict()))
        return
    for notice in summary.notices:
        typer.echo(f"note: {notice}", err=True)
    precisions = ", ".join(
        f"{one.model} {one.precision} for {f'{one.use} by {one.engine}' if one.engine else one.use}"
        for one in summary.record.artefacts
    )
    typer.echo(
        f"{summary.repository}: version {summary.version}, {', '.join(summary.tasks)}; {precisions}; "
        f"{summary.bytes / 1e6:.0f} MB, trained on {summary.record.trained_on}; {summary.checks} comparisons with "
        f"PyTorch passed; serve it with: affserve serve {summary.repository} ({WHEN_SERVED})"
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
    typer.echo(f"{repository}: version {version} is the one to serve ({WHEN_SERVED})")


def _sign(repository: str, key: Path) -> None:
    from affserve.export.repository.placement import LocalTarget, open_target, require_manifest
    from affserve.export.sharing.signing import sign

    place = open_target(repository)
    if not isinstance(place, LocalTarget):
        raise typer.BadParameter("expected a folder on this machine: sign there, then copy", param_hint="--out")
    require_manifest(place)
    sign(place.root, key)
    typer.echo(f"{repository} is signed; serve it with: affserve serve {repository} --verify PUBLIC-KEY")


def _open_clip(encoder: Path, folder: Path) -> None:
    from affserve.export.sharing.open_clip_hub import write_open_clip

    write_open_clip(encoder, folder)
    typer.echo(f"{folder}: load it with open_clip.create_model('local-dir:{folder}')")


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
