"""Checkpoints in, a complete Triton model repository out, or one more version of it.

Everything is made and checked in a folder of its own and takes its place at the end, so that a failed export leaves
what was served untouched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from affserve.export.artefacts import parity
from affserve.export.artefacts.choice import CPU_ENGINES, Chosen, candidates, check_usable, choose, wanted
from affserve.export.artefacts.making import make_artefacts
from affserve.export.artefacts.material import Material
from affserve.export.artefacts.streaming import make_stream
from affserve.export.contract import (
    CLIP_ENCODER,
    CPU,
    FEATURES,
    FRAMES,
    GPU,
    MANIFEST_FILE,
    MODELS,
    STATE,
    TEMPORAL_HEAD,
    TEMPORAL_STREAM,
    HeadDescription,
)
from affserve.export.engine.building import Progress, build_plans
from affserve.export.engine.plans import PlanRecord
from affserve.export.engine.profile import EngineOptions
from affserve.export.engine.rtx import build_rtx_plans
from affserve.export.engine_sets import GPU_ONNX_FILE, ONNX_FILE, ONNX_RUNTIME, RTX, RTX_PLAN_FILE
from affserve.export.graphs.flops import count_flops
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.card import CARD_FILE, model_card
from affserve.export.repository.golden import write_golden
from affserve.export.repository.manifest import ArtefactRecord, Manifest, VersionRecord
from affserve.export.repository.placement import LocalTarget, Target, read_target_manifest, refuse_foreign
from affserve.export.repository.sources import Sources, built_with, load_sources
from affserve.export.repository.templates import config_hashes, write_configs
from affserve.export.repository.versions import FIRST_VERSION, check_same_contract, keep_files
from affserve.train.errors import ExportError
from affserve.train.files import file_sha256
from affserve.train.processing.record import as_document

FILE_OF_USE = {CPU: ONNX_FILE, GPU: GPU_ONNX_FILE}
RtxPlans = Literal["none", "tried", "required"]  # tried: left out, with a note, where the builder's plan is no good


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make of the checkpoints."""

    uses: tuple[str, ...] = (CPU, GPU)  # devices to serve from
    precision: Precision | None = None  # None: the fastest that passes, for each model and use on its own
    cpu_engines: tuple[str, ...] = CPU_ENGINES  # to choose from for a CPU, where they are installed
    version: int | None = None  # None: replace the whole repository; N: add or replace only this version
    engines: EngineOptions | None = None  # how to build TensorRT plans on this machine; None: none are built
    postprocess: str | None = None  # file of what clients make of the answers, or none; None: as the heads declare
    rtx: RtxPlans = "none"  # plans for RTX cards, which any machine with the extra `rtx` builds

    def __post_init__(self) -> None:
        if (self.engines is not None or self.rtx != "none") and GPU not in self.uses:
            raise ExportError("TensorRT plans are built from the GPU's graph; export it, too, with --target all")
        check_usable(self.uses, self.precision, self.cpu_engines)


CPU_FP32 = ExportOptions(uses=(CPU,), precision=Precision.FP32, cpu_engines=(ONNX_RUNTIME,))
"""The reference alone: nothing about it depends on the machine that exports."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export made."""

    repository: str  # path or URL
    version: int
    record: VersionRecord
    notices: tuple[str, ...]  # what the user should know before serving it

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the heads."""
        return tuple(self.record.labels)

    @property
    def bytes(self) -> int:
        """Size of all artefacts of this version."""
        return sum(artefact.bytes for artefact in self.record.artefacts)

    @property
    def checks(self) -> int:
        """How many comparisons with PyTorch were passed."""
        return sum(len(artefact.parity) for artefact in self.record.artefacts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "tasks": self.tasks, "bytes": self.bytes, "checks": self.checks}


def export_repository(
    encoder_path: Path,
    head_paths: Sequence[Path],
    target: Target | Path,
    *,
    material: Material,
    options: ExportOptions = ExportOptions(),
    progress: Progress = lambda _: None,
    seal: Callable[[Path], None] = lambda _: None,
) -> ExportSummary:
    """Write the repository of an encoder and one to three heads to `target`, or a version of it.

    seal: gets the folder of the whole repository, before it takes its place, or when a version was added to it.
    CheckpointError, ExportError or ParityError; the target is then as it was.
    """
    place = LocalTarget(target) if isinstance(target, Path) else target
    refuse_foreign(place)
    # What is replaced as a whole need not be read: it may be of an older affserve.
    kept = read_target_manifest(place) if options.version is not None else None
    place.check_free(kept, options.version)
    sources = load_sources(encoder_path, head_paths, options.postprocess)
    if kept is not None:
        check_same_contract(kept, sources.description, place.name)
    version = options.version or FIRST_VERSION
    with place.staging() as staging, place.staging() as workshop:
        progress("PyTorch's answers")
        truth = parity.establish(sources.encoder.eval(), sources.graph.eval(), material.parity)
        chosen = _make(sources, truth, workshop, material, options, progress)
        record = _fill(staging, version, chosen, sources, truth)
        write_configs(staging, sources.description, version, record.computed_by())
        if options.engines is not None:
            build_plans(staging, version, options.engines, progress)
        if options.rtx != "none":
            record = _with_rtx(staging, version, record, options.rtx, progress)
        _write_manifest(staging, version, record, kept)
        if kept is None:
            seal(staging)
            place.place_whole(staging)
        else:
            place.place_version(staging, version)
            if isinstance(place, LocalTarget):
                seal(place.root)
    return ExportSummary(repository=place.name, version=version, record=record, notices=_notices(kept, record, version))


def _make(
    sources: Sources, truth: parity.Truth, folder: Path, material: Material, options: ExportOptions, progress: Progress
) -> list[Chosen]:
    asked = options.uses, options.precision, options.cpu_engines
    artefacts = make_artefacts(
        sources.encoder,
        truth,
        folder,
        wanted(*asked),
        material,
        progress,
        timed=candidates(CPU, *asked[1:]) if CPU in options.uses else (),
    )
    chosen = choose(artefacts, *asked)
    if (stream := sources.description.stream) is not None:
        late = stream.lookahead_frames
        chosen.append(make_stream(sources.encoder, truth, late, folder, material, options.precision, progress))
    return chosen


def _fill(
    staging: Path, version: int, chosen: Sequence[Chosen], sources: Sources, truth: parity.Truth
) -> VersionRecord:
    """Copy the chosen files to where Triton looks for them and describe them."""
    for model in MODELS:
        if model != TEMPORAL_STREAM.name or sources.description.stream is not None:
            (staging / model / str(version)).mkdir(parents=True)
    for file, content in keep_files(version).items():
        (staging / file).write_bytes(content)
    for one in chosen:
        shutil.copyfile(one.artefact.path, staging / _file(one, version))
    description = sources.description
    return VersionRecord(
        trained_on=description.trained_on,
        labels=description.labels,
        window_frames=description.window_frames,
        stride_frames=description.stride_frames,
        encoder=sources.encoder_record,
        heads=sources.head_records,
        built_with=built_with(),
        artefacts=tuple(_record(staging, one, version, description) for one in chosen),
        golden={file: file_sha256(staging / file) for file in write_golden(staging, version, truth)},
        stream=description.stream,
        processing=as_document(description.processing),
        notes=tuple(note for one in chosen for note in one.notes),
    )


def _file(one: Chosen, version: int) -> str:
    return f"{one.artefact.model}/{version}/{FILE_OF_USE[one.use]}"


def _record(staging: Path, one: Chosen, version: int, head: HeadDescription) -> ArtefactRecord:
    path = staging / _file(one, version)
    per_run: dict[str, dict[str, tuple[int, ...]]] = {
        CLIP_ENCODER.name: {FRAMES.name: (1, *FRAMES.shape)},
        TEMPORAL_HEAD.name: {FEATURES.name: (1, head.window_frames, *FEATURES.shape)},
    }
    if head.stream is not None:
        per_run[TEMPORAL_STREAM.name] = {
            FEATURES.name: (1, 1, *FEATURES.shape),
            STATE.name: (head.stream.state_values,),
        }
    return ArtefactRecord(
        path=_file(one, version),
        model=one.artefact.model,
        use=one.use,
        precision=one.artefact.precision.value,
        engine=one.artefact.engine if one.use == CPU else "",
        tried=one.tried,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        flops=count_flops(path, per_run[one.artefact.model]),
        parity=tuple(asdict(check) for check in one.artefact.checks),
        notes=one.artefact.notes,
    )


def _with_rtx(
    staging: Path, version: int, record: VersionRecord, wanted: RtxPlans, progress: Progress
) -> VersionRecord:
    """Build the plans for RTX cards and list them; where they were only tried and are no good, note why."""
    try:
        plans = build_rtx_plans(staging, version, progress)
    except ExportError as error:
        if wanted == "required":
            raise
        for file in staging.glob(f"*/{version}/{RTX_PLAN_FILE}*"):  # both models' or none
            file.unlink()
        return replace(record, notes=(*record.notes, f"no plans for RTX cards: {error}"))
    sources = {one.model: one for one in record.artefacts if one.use == GPU}
    listed = tuple(_rtx_record(sources[plan.model], plan) for plan in plans)
    return replace(record, artefacts=(*record.artefacts, *listed))


def _rtx_record(source: ArtefactRecord, plan: PlanRecord) -> ArtefactRecord:
    path = source.path.replace(GPU_ONNX_FILE, RTX_PLAN_FILE)
    told = tuple(plan.notices)
    return replace(source, path=path, use=RTX, sha256=plan.plan_sha256, bytes=plan.bytes, parity=(), notes=told)


def _write_manifest(staging: Path, version: int, record: VersionRecord, kept: Manifest | None) -> None:
    versions = {**(kept.versions if kept is not None else {}), version: record}
    manifest = Manifest(served=version, versions=versions, configs=config_hashes(staging))
    (staging / MANIFEST_FILE).write_bytes(manifest.to_json())
    (staging / CARD_FILE).write_bytes(model_card(manifest))


def _notices(kept: Manifest | None, record: VersionRecord, version: int) -> tuple[str, ...]:
    notices = list(record.notes)
    if kept is not None and version != kept.served:
        notices.append(f"version {kept.served} is kept: affserve export --activate {kept.served} goes back to it")
        if kept.versions[kept.served].encoder["fingerprint"] != record.encoder["fingerprint"]:
            notices.append(
                "the encoder is another one: while a watching server changes over, single answers may combine the new "
                "encoder with the old head; where that matters, export to a fresh folder and restart the server"
            )
    return tuple(notices)
