"""TensorRT plans as files: what they are called, what is recorded beside each, and which may run on a machine.

A plan belongs to one TensorRT version and one GPU architecture. The architecture is in its name
(`model.sm86.plan`), so that GPUs of different kinds share a repository: Triton picks by compute capability.
Everything else is in the sidecar (`model.sm86.plan.json`), which a plan is never without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from affserve.export.machine.gpus import Gpu, driver_obstacle
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, image
from affserve.train.errors import RepositoryError
from affserve.train.files import file_sha256, write_file

RECORD_SCHEMA = 1
# Turing, Ampere (A100; RTX 3090), Ada, Hopper, Blackwell (B200; B300; RTX 5090; GB10): the committed configurations
# name a plan for each, so that one built later is found without touching them.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
REBUILD = "affserve export --build-engines, or with the script of affserve export --print-trtexec REPOSITORY"


def plan_file(compute_capability: str) -> str:
    """Return the file name of the plan for GPUs of a compute capability: "8.6" -> "model.sm86.plan"."""
    return f"model.sm{compute_capability.replace('.', '')}.plan"


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What a plan was built from, with and for; the sidecar of the plan."""

    model: str  # name in the contract
    built_by: str  # "affserve" or "trtexec"
    tensorrt: str  # four-part version
    gpu: str  # name of the GPU it was tuned on
    compute_capability: str  # of that GPU
    driver: str
    onnx_sha256: str  # of the graph it was built from
    plan_sha256: str
    bytes: int  # size of the plan
    seconds: float  # build and verification
    flags: dict[str, Any] = field(default_factory=dict)  # builder settings
    profile: dict[str, Any] = field(default_factory=dict)  # input -> [min, opt, max] shapes
    inspector: dict[str, Any] = field(default_factory=dict)  # layers, types, weight bytes
    parity: list[dict[str, Any]] = field(default_factory=list)  # checks passed; empty: not compared (trtexec)
    notices: list[str] = field(default_factory=list)  # what a reader should know
    schema: int = RECORD_SCHEMA


def record_file(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_name(f"{plan.name}.json")


def write_record(path: Path, record: PlanRecord) -> None:
    """Write a sidecar, whole or not at all."""
    write_file(path, (json.dumps(asdict(record), indent=2) + "\n").encode())


def read_record(path: Path) -> PlanRecord:
    """Read a sidecar back; RepositoryError when it is missing or not one of this schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(
            f"{path} cannot be read: {error}; a plan without it cannot be told from another machine's: rebuild it "
            f"with {REBUILD}"
        ) from error
    known = {entry.name for entry in fields(PlanRecord)}
    found = content.get("schema") if isinstance(content, dict) else type(content).__name__
    if found != RECORD_SCHEMA or not set(content) <= known:
        raise RepositoryError(
            f"{path} has schema {found!r}, this affserve reads {RECORD_SCHEMA}: use the affserve that wrote it, or "
            f"rebuild the plan with {REBUILD}"
        )
    try:
        return PlanRecord(**content)
    except TypeError as error:
        raise RepositoryError(f"{path} is incomplete: {error}; rebuild the plan with {REBUILD}") from error


def verify_plan(plan: Path, onnx: Path) -> PlanRecord:
    """Return a plan's record after checking that it is the file that was built, from the ONNX file that lies there."""
    record = read_record(record_file(plan))
    if file_sha256(plan) != record.plan_sha256:
        raise RepositoryError(f"{plan} is not the file its sidecar describes; rebuild it with {REBUILD}")
    if onnx.is_file() and file_sha256(onnx) != record.onnx_sha256:
        raise RepositoryError(
            f"{plan} was built from another graph than {onnx.name}: it would answer for an older model; rebuild it "
            f"with {REBUILD}"
        )
    return record


def obstacle(record: PlanRecord, gpus: Sequence[Gpu], tensorrt: str = TENSORRT_VERSION) -> str | None:
    """Say why a plan cannot run here, and what to do; None when it can.

    tensorrt: four-part version of the server's TensorRT; the pinned container's unless said otherwise.
    """
    name = f"{record.model}/{plan_file(record.compute_capability)}"
    if record.tensorrt != tensorrt:
        return (
            f"{name} was built with TensorRT {record.tensorrt} and the server ({image()}) has {tensorrt}, which loads "
            f"only its own plans: pip install {TENSORRT_REQUIREMENT} and rebuild it with {REBUILD}"
        )
    if not gpus:
        return (
            f"{name} needs an NVIDIA GPU with compute capability {record.compute_capability} and this machine shows "
            "none (nvidia-smi finds no GPU): install the NVIDIA driver, or serve on the CPU with --engine cpu"
        )
    fitting = [gpu for gpu in gpus if gpu.compute_capability == record.compute_capability]
    if not fitting:
        found = ", ".join(str(gpu) for gpu in gpus)
        return (
            f"{name} was built for compute capability {record.compute_capability} ({record.gpu}) and this machine has "
            f"{found}: rebuild it here with {REBUILD}"
        )
    return next((reason for gpu in fitting if (reason := driver_obstacle(gpu)) is not None), None)


def missing_plan(model: str, available: Iterable[str], gpus: Sequence[Gpu]) -> str | None:
    """Say which GPU of this machine has no plan of a model; None when each has one.

    available: the compute capabilities that there are plans for.
    """
    have = set(available)
    without = [gpu for gpu in gpus if gpu.compute_capability not in have]
    if not without:
        return None
    return (
        f"{model} has no {plan_file(without[0].compute_capability)} for {without[0]} (plans: "
        f"{', '.join(map(plan_file, sorted(have))) or 'none'}); Triton starts an instance on every GPU: build it here "
        f"with {REBUILD}"
    )
