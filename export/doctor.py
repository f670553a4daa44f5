"""`affserve doctor`: what this machine can serve with, what would stop it, and the command that puts it right.

Every finding is a line that can be read aloud. For a repository it says of each of its engine sets whether it
may be served here, as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affserve.export import engine_sets, pins
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.machine.gpus import find_gpus
from affserve.export.machine_findings import (
    CUDA_PROVIDER,
    INSTALL_CUDA,
    LOOKS,
    Finding,
    Verdict,
    onnxruntime_providers,
    ports_finding,
)
from affserve.export.repository.check import verify_repository
from affserve.export.server.installation import Installation, find_installation
from affserve.train.errors import MissingExtraError, RepositoryError


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings, and for a repository whether each configuration of it may be served here."""

    findings: tuple[Finding, ...]
    configurations: Mapping[str, Finding]  # by the name for --engine; empty without a repository

    @property
    def can_serve(self) -> bool:
        """Say whether some configuration can be served; true without a repository."""
        return not self.configurations or any(one.verdict is Verdict.GOOD for one in self.configurations.values())

    @property
    def problems(self) -> list[Finding]:
        """What has to be put right; with a repository, at least one finding if it cannot be served."""
        everything = (*self.findings, *self.configurations.values())
        return [one for one in everything if one.verdict is Verdict.PROBLEM]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "can_serve": self.can_serve,
            "findings": [asdict(finding) for finding in self.findings],
            "configurations": {name: asdict(finding) for name, finding in self.configurations.items()},
        }

    def text(self) -> str:
        """Return a page for people."""
        lines = [finding.line() for finding in (*self.findings, *self.configurations.values())]
        if self.configurations:
            good = [name for name, one in self.configurations.items() if one.verdict is Verdict.GOOD]
            lines.append("")
            lines.append(
                f"This repository can be served here: --engine {' or '.join(good)}"
                if good
                else "This repository cannot be served here by any of its configurations."
            )
        return "\n".join(lines)


def examine(
    repository: Path | None, ports: Mapping[str, int], more: Sequence[Finding] = (), host: str = "127.0.0.1"
) -> Diagnosis:
    """Look at this machine, and at a repository when one is given.

    ports: where it is to be served, by name; more: what the caller has found.
    """
    findings = [finding for look in LOOKS for finding in look()]
    configurations = {} if repository is None else {name: _configuration(repository, name) for name in ENGINE_SETS}
    return Diagnosis(findings=(*findings, ports_finding(host, ports), *more), configurations=configurations)


def _configuration(repository: Path, name: str) -> Finding:
    """Say whether one configuration of a repository may be served here; the first obstacle counts."""
    lacking = _engine_obstacle(name)
    topic = f"{repository} with {ENGINE_SETS[name].words} (--engine {name})"
    if lacking[0]:
        return Finding(topic, Verdict.ABSENT if ENGINE_SETS[name].on_gpu else Verdict.PROBLEM, *lacking)
    try:
        verify_repository(repository, name)
    except RepositoryError as error:
        return Finding(topic, Verdict.PROBLEM, str(error))
    return Finding(topic, Verdict.GOOD, "may be served", f"affserve serve {repository} --engine {name}")


def _engine_obstacle(name: str) -> tuple[str, str]:
    """Return what this machine lacks for a configuration, and what to do; empty when it lacks nothing."""
    try:
        installation = find_installation()
    except MissingExtraError as error:
        return str(error), "pip install 'affserve[serve]'"
    if ENGINE_SETS[name].on_gpu and not find_gpus():
        return "this machine shows no NVIDIA GPU", f"serve with --engine {engine_sets.CPU}"
    if installation.wheel is None:
        return "", ""  # a container's Triton brings its engines along
    return _wheel_obstacle(name, installation)


def _wheel_obstacle(name: str, installation: Installation) -> tuple[str, str]:
    if name == engine_sets.TENSORRT:
        return f"{installation.binary} has no TensorRT", f"serve inside {pins.image()}"
    if name == engine_sets.RTX:
        return "TensorRT for RTX is not installed", "pip install 'affserve[rtx]'"
    providers = onnxruntime_providers()
    if not providers:
        return "ONNX Runtime is not installed", "pip install 'affserve[serve]'"
    if name == engine_sets.CUDA and CUDA_PROVIDER not in providers:
        return "the installed ONNX Runtime cannot use a GPU", INSTALL_CUDA
    return "", ""
