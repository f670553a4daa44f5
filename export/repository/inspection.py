"""`affserve export --inspect`: what is in a repository, read from its manifest and the records of its plans.

No model file is opened, so it takes a moment, also for a repository in an object store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from affserve.export.contract import CLIP_ENCODER, CPU, GPU, TEMPORAL_HEAD
from affserve.export.engine.plans import COMPUTE_CAPABILITIES, PlanRecord, obstacle, parse_record, plan_file
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO, RTX, RTX_PLAN_FILE
from affserve.export.machine.gpus import Gpu, find_gpus, installed_tensorrt
from affserve.export.pins import RTX_MODULE, TENSORRT_VERSION, image
from affserve.export.repository.manifest import ArtefactRecord, Manifest, VersionRecord
from affserve.export.repository.placement import Target, require_manifest
from affserve.train.processing.record import words

DIGITS = 4
SERVED_BY = {
    (CPU, ONNX_RUNTIME): "ONNX Runtime on a CPU",
    (CPU, OPENVINO): "OpenVINO on a CPU",
    (GPU, ""): "TensorRT, or ONNX Runtime on a GPU",
    (RTX, ""): "TensorRT for RTX",
}


@dataclass(frozen=True, kw_only=True)
class PlanState:
    """One TensorRT plan and whether it may run on this machine."""

    record: PlanRecord
    obstacle: str | None  # None: it may

    def line(self) -> str:
        """Return it as text."""
        record = self.record
        library = "TensorRT for RTX" if record.rtx else "TensorRT"
        cards = record.gpu or f"compute capability {', '.join(record.compute_capabilities)}"
        here = f"cannot run here: {self.obstacle}" if self.obstacle else "may run here"
        return (
            f"{record.model} {record.file}: {record.bytes / 1e6:.0f} MB, for {cards}, {library} {record.tensorrt}, "
            f"built by {record.built_by}{_compiled(record.inspector)}; {here}"
        )


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A repository, described."""

    name: str  # path or URL
    manifest: Manifest
    plans: Mapping[int, Sequence[PlanState]]  # version -> its plans

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        document: dict[str, Any] = json.loads(self.manifest.to_json())
        for version, states in self.plans.items():
            document["versions"][str(version)]["plans"] = [asdict(state) for state in states]
        return {"repository": self.name, **document}

    def text(self) -> str:
        """Return a page for people."""
        count = len(self.manifest.versions)
        lines = [f"{self.name}: {count} version{'s' * (count != 1)}"]
        for number, record in sorted(self.manifest.versions.items()):
            served = "served" if number == self.manifest.served else f"kept; affserve export --activate {number}"
            lines += ["", f"version {number} ({served})", *_version_lines(record)]
            lines += [f"  {state.line()}" for state in self.plans[number]]
            tuned = [state for state in self.plans[number] if not state.record.rtx]
            if not tuned and any(one.use == "gpu" for one in record.artefacts):
                lines.append(f"  no TensorRT plans yet: affserve export --print-trtexec builds them in {image()}")
        return "\n".join(lines)


def inspect_repository(target: Target) -> Inspection:
    """Describe the repository at a place; RepositoryError when there is none."""
    manifest = require_manifest(target)
    gpus, rtx = find_gpus(), installed_tensorrt(RTX_MODULE)
    return Inspection(
        name=target.name,
        manifest=manifest,
        plans={version: _plans(target, version, gpus, rtx) for version in manifest.versions},
    )


def _plans(target: Target, version: int, gpus: Sequence[Gpu], rtx: str | None) -> list[PlanState]:
    records = [
        parse_record(content, f"{target.name}/{path}")
        for model in (CLIP_ENCODER.name, TEMPORAL_HEAD.name)
        for file in (*map(plan_file, COMPUTE_CAPABILITIES), RTX_PLAN_FILE)
        if (content := target.read(path := f"{model}/{version}/{file}.json")) is not None
    ]
    loaders = {False: TENSORRT_VERSION, True: rtx}
    return [PlanState(record=record, obstacle=obstacle(record, gpus, loaders[record.rtx])) for record in records]


def _compiled(inspector: Mapping[str, Any]) -> str:
    """Say in a few words what a plan is made of, where that is known."""
    if "layers" not in inspector:
        return ""
    types = ", ".join(f"{count} {name}" for name, count in inspector["types"].items())
    fused = inspector.get("fused_attentions")
    return f"; {inspector['layers']} layers, outputs {types}" + (f", {fused} attentions fused" if fused else "")


def _version_lines(record: VersionRecord) -> list[str]:
    built = ", ".join(f"{name} {value[:12]}" for name, value in record.built_with.items())
    return [
        f"  answers      {', '.join(f'{task} ({len(names)})' for task, names in record.labels.items())}; windows of "
        f"{record.window_frames} frames, stride {record.stride_frames}",
        f"  trained on   {record.trained_on}",
        f"  encoder      {_checkpoint(record.encoder)}",
        *(f"  head         {_checkpoint(head)}" for head in record.heads),
        *(f"  made of it   {line}" for line in words(record.description().processing)),
        f"  made with    {built}",
        *(line for artefact in record.artefacts for line in _artefact_lines(artefact)),
        *(f"  note         {note}" for note in record.notes),
    ]


def _checkpoint(record: Mapping[str, Any]) -> str:
    metrics = ", ".join(f"{name} {value:.{DIGITS - 1}f}" for name, value in record["metrics"].items())
    return (
        f"{record['fingerprint']}, trained by commit {record['commit'][:12]}; {metrics or 'no metrics were recorded'}"
    )


def _artefact_lines(artefact: ArtefactRecord) -> list[str]:
    per = "window" if artefact.model == TEMPORAL_HEAD.name else "frame"
    return [
        f"  {artefact.path}: {artefact.precision}, {artefact.bytes / 1e6:.1f} MB, {artefact.flops / 1e9:.3g} GFLOP per "
        f"{per}, for {SERVED_BY[artefact.use, artefact.engine]}",
        *_compared(artefact.parity),
        *([f"    measured at export: {', '.join(map(_tried, artefact.tried))}"] if len(artefact.tried) > 1 else []),
        *(f"    {note}" for note in artefact.notes),
    ]


def _compared(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    if not checks:
        return []
    return [f"    compared with PyTorch in {len(checks)} ways; closest to its limit: {closest(checks)}"]


def _tried(one: Mapping[str, Any]) -> str:
    figure = f"{one['run_ms']:.{DIGITS - 1}g} ms" if one["run_ms"] else "not timed"
    return f"{one['engine']} {one['precision']} {figure if one['passed'] else 'failed its comparison'}"


def closest(checks: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparison that used up most of what its limit allows."""
    worst = max(checks, key=_used)
    sign = "at least" if worst["at_least"] else "at most"
    return f"{worst['what']} {worst['figure']:.{DIGITS}g} ({sign} {worst['limit']:g})"


def _used(check: Mapping[str, Any]) -> float:
    """Return the part of the allowance that is used: of 1 - limit for similarities, of the limit for differences."""
    figure, limit = float(check["figure"]), float(check["limit"])
    if check["at_least"]:
        return (1 - figure) / (1 - limit) if limit < 1 else float(figure < limit)
    return figure / limit if limit else float(figure > limit)
