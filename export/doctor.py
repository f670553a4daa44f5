"""`affserve doctor`: what this machine can serve with, what would stop it, and the command that puts it right.

Every finding is a line that can be read aloud. For a repository it says of each of its engine sets whether it
may be served here, as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.machine_findings import LOOKS, Finding, Verdict, ports_finding
from affserve.export.repository.check import verify_repository
from affserve.export.server.engine_choice import machine_obstacle, onnxruntime_providers
from affserve.export.server.installation import find_installation
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


def examine(repository: Path | None, ports: Mapping[str, int], more: Sequence[Finding] = ()) -> Diagnosis:
    """Look at this machine, and at a repository when one is given.

    ports: where it is to be served, by name; more: what the caller has found.
    """
    findings = [finding for look in LOOKS for finding in look()]
    configurations = {} if repository is None else {name: _configuration(repository, name) for name in ENGINE_SETS}
    return Diagnosis(findings=(*findings, ports_finding("127.0.0.1", ports), *more), configurations=configurations)


def _configuration(repository: Path, name: str) -> Finding:
    """Say whether one engine set of a repository may be served here; the first obstacle counts."""
    topic = f"{repository} with {ENGINE_SETS[name].words} (--engine {name})"
    try:
        lacking = machine_obstacle(name, find_installation())
    except MissingExtraError as error:
        return Finding(topic, Verdict.PROBLEM, str(error), "pip install 'affserve[serve]'")
    if lacking is not None:
        return Finding(topic, Verdict.ABSENT, lacking.text, lacking.remedy)
    if not onnxruntime_providers():
        return Finding(topic, Verdict.PROBLEM, "ONNX Runtime is not installed", "pip install 'affserve[serve]'")
    try:
        verify_repository(repository, name)
    except RepositoryError as error:
        return Finding(topic, Verdict.PROBLEM, str(error))
    return Finding(topic, Verdict.GOOD, "may be served", f"affserve serve {repository} --engine {name}")
