"""Results read back: one document per file, by name, whatever machine they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.train.errors import DataError

FIELDS = ("name", "when", "command", "environment", "measured")


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one machine."""

    folder: Path
    documents: Mapping[str, Mapping[str, Any]]  # by file name without .json, in alphabetical order

    def measured(self, name: str) -> Mapping[str, Any] | None:
        """Return what a measurement found; None when it was not made."""
        document = self.documents.get(name)
        return document["measured"] if document is not None else None

    def starting(self, prefix: str) -> dict[str, Mapping[str, Any]]:
        """Return what the measurements whose names start like this found, by the rest of their names."""
        return {
            name.removeprefix(prefix).lstrip("-"): document["measured"]
            for name, document in self.documents.items()
            if name.startswith(prefix)
        }

    @property
    def has_gpu(self) -> bool:
        """Whether the machine has one that NVIDIA's tools know."""
        return any(document["environment"].get("gpus") for document in self.documents.values())

    @property
    def machine(self) -> str:
        """What the figures were measured on, in words."""
        newest = max(self.documents.values(), key=lambda document: str(document["when"]))
        environment = newest["environment"]
        gpus = [gpu["name"] for gpu in environment.get("gpus", [])]
        named = [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
        return ", ".join([*named, f"{environment['cpu']}, {environment['cpus']} CPUs"])


def read_results(folder: Path) -> Results:
    """Read every result of a folder; DataError when there is none."""
    documents = {path.stem: document for path in sorted(folder.glob("*.json")) if (document := _document(path))}
    if not documents:
        raise DataError(f"{folder} holds no results; make some with: affserve bench all")
    return Results(folder=folder, documents=documents)


def read_result(path: Path) -> Mapping[str, Any]:
    """Read one result; DataError when the file is none."""
    document = _document(path)
    if document is None:
        raise DataError(f"{path} is not a result of affserve bench; expected a JSON object with {', '.join(FIELDS)}")
    return document


def _document(path: Path) -> dict[str, Any] | None:
    """Return a result, or None for a JSON file that is something else."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; measure again, or remove it") from error
    if not isinstance(document, dict) or any(field not in document for field in FIELDS):
        return None
    return document
