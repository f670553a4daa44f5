"""TensorRT plans as files: what they are called, what is recorded beside each, and which may run on a machine.

A plan belongs to one version of the library that built it. TensorRT's also belongs to one GPU architecture, which is in
its name (`model.sm86.plan`), so that GPUs of different kinds share a repository: Triton picks by compute capability.
That of TensorRT for RTX (`model.rtx.plan`) is for all cards that it was built for. Everything else is in the sidecar
(`model.sm86.plan.json`), which a plan is never without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affserve.export.engine_sets import RTX_PLAN_FILE
from affserve.export.machine.gpus import Gpu, driver_obstacle
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, image, rtx_requirement
from affserve.train.errors import RepositoryError, remedy
from affserve.train.files import file_sha256, write_file

RECORD_SCHEMA = 2
# Turing, Ampere (A100; RTX 3090), Ada, Hopper, Blackwell (B200; B300; RTX 5090; GB10): the committed configurations
# name a plan for each, so that one built later is found without touching them.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
REBUILD = "affserve export --build-engines, or with the script of affserve export --print-trtexec REPOSITORY"
NO_RECORD = f"a plan without it cannot be told from another machine's: rebuild it with {REBUILD}"

NO_GPU = (
    "and this machine shows none (nvidia-smi finds no GPU): install the NVIDIA driver, or serve on the CPU with "
    "--engine cpu"
)


def plan_file(compute_capability: str) -> str:
    """Return the file name of the plan for GPUs of a compute capability: "8.6" -> "model.sm86.plan"."""
    return f"model.sm{compute_capability.replace('.', '')}.plan"


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What a plan was built from, with and for; the sidecar of the plan."""

    model: str  # name in the contract
    built_by: str  # "affserve" or "trtexec"
    tensorrt: str  # four-part version of the library
    compute_capabilities: list[str]  # of the GPUs it runs on
    rtx: bool = False  # built by TensorRT for RTX, which needs no GPU for it
    gpu: str = ""  # name of the GPU it was tuned on
    driver: str = ""  # of that GPU
    onnx_sha256: str  # of the graph it was built from
    plan_sha256: str
    bytes: int  # size of the plan
    seconds: float  # build and verification
    flags: dict[str, Any] = field(default_factory=dict)  # builder settings
    profile: dict[str, Any] = field(default_factory=dict)  # input -> [min, opt, max] shapes
    inspector: dict[str, Any] = field(default_factory=dict)  # layers, types, weight bytes
    parity: list[dict[str, Any]] = field(default_factory=list)  # checks passed; empty: not compared (trtexec, RTX)
    notices: list[str] = field(default_factory=list)  # what a reader should know
    schema: int = RECORD_SCHEMA

    @property
    def file(self) -> str:
        """The plan's file name."""
        return RTX_PLAN_FILE if self.rtx else plan_file(self.compute_capabilities[0])


def record_file(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_name(f"{plan.name}.json")


def write_record(path: Path, record: PlanRecord) -> None:
    """Write a sidecar, whole or not at all."""
    write_file(path, (json.dumps(asdict(record), indent=2) + "\n").encode())


def read_record(path: Path) -> PlanRecord:
    """Read a sidecar back; RepositoryError when it is missing or not one of this schema."""
    try:
        content = path.read_bytes()
    except OSError as error:
        if remedy(error) is not None:  # the machine's fault, not the file's
            raise
        raise RepositoryError(f"{path} cannot be read: {error}; {NO_RECORD}") from error
    return parse_record(content, str(path))


def parse_record(text: bytes, path: str) -> PlanRecord:
    """Return what a sidecar says; path: its name, for the RepositoryError when it is none of this schema."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RepositoryError(f"{path} cannot be read: {error}; {NO_RECORD}") from error
    found = content.get("schema") if isinstance(content, dict) else type(content).__name__
    if found != RECORD_SCHEMA:
        raise RepositoryError(
            f"{path} has schema {found!r}, this affserve reads {RECORD_SCHEMA}: use the affserve that wrote it, or "
            f"rebuild the plan with {REBUILD}"
        )
    try:
        return PlanRecord(**content)
    except TypeError as error:
        raise RepositoryError(f"{path} is none of this schema: {error}; rebuild the plan with {REBUILD}") from error


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


def obstacle(record: PlanRecord, gpus: Sequence[Gpu], tensorrt: str | None = TENSORRT_VERSION) -> str | None:
    """Say why a plan cannot run here, and what to do; None when it can.

    tensorrt: four-part version of the library that will load it, None: there is none. The pinned container's unless
    said otherwise.
    """
    name, kinds = f"{record.model}/{record.file}", " or ".join(record.compute_capabilities)
    if record.tensorrt != tensorrt:
        return _other_version(record, name, tensorrt)
    if not gpus:
        return f"{name} needs an NVIDIA GPU with compute capability {kinds} {NO_GPU}"
    fitting = [gpu for gpu in gpus if gpu.compute_capability in record.compute_capabilities]
    if not fitting or (record.rtx and len(fitting) < len(gpus)):  # Triton starts an instance on every GPU
        found = ", ".join(str(gpu) for gpu in gpus)
        tuned = "" if record.rtx else f" ({record.gpu})"
        remedy = "serve it with another engine" if record.rtx else f"rebuild it here with {REBUILD}"
        return f"{name} was built for compute capability {kinds}{tuned} and this machine has {found}: {remedy}"
    server = "TensorRT for RTX" if record.rtx else "the serving container"
    return next((reason for gpu in fitting if (reason := driver_obstacle(gpu, server)) is not None), None)


def _other_version(record: PlanRecord, name: str, tensorrt: str | None) -> str:
    if not record.rtx:
        return (
            f"{name} was built with TensorRT {record.tensorrt} and the server ({image()}) has {tensorrt}, which loads "
            f"only its own plans: pip install {TENSORRT_REQUIREMENT} and rebuild it with {REBUILD}"
        )
    if tensorrt is None:
        return f"{name} needs TensorRT for RTX {record.tensorrt}, which is not installed: pip install 'affserve[rtx]'"
    return (
        f"{name} was built with TensorRT for RTX {record.tensorrt} and this machine has {tensorrt}, which loads only "
        f"its own plans: pip install {rtx_requirement(record.tensorrt)}, or export again here"
    )


def missing_plan(model: str, available: Iterable[str], gpus: Sequence[Gpu]) -> str | None:
    """Say which GPU of this machine has no plan of a model, or that there is none; None when each has one.

    available: the compute capabilities that there are plans for.
    """
    if not gpus:
        return f"{model} is configured for TensorRT, needs an NVIDIA GPU {NO_GPU}"
    have = set(available)
    without = [gpu for gpu in gpus if gpu.compute_capability not in have]
    if not without:
        return None
    return (
        f"{model} has no {plan_file(without[0].compute_capability)} for {without[0]} (plans: "
        f"{', '.join(map(plan_file, sorted(have))) or 'none'}); Triton starts an instance on every GPU: build it here "
        f"with {REBUILD}"
    )
