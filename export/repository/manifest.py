"""`manifest.json`: what a repository holds, what it was made from and with, and where it may run.

One record per version, so that an older version stays described for as long as it is kept. Plans for one kind of GPU
are not in it: they may be added later, on the machine that serves. Every plan has a record beside it (plans.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from affserve.export.contract import CPU, MANIFEST_FILE, HeadDescription, StreamDescription
from affserve.train.errors import RepositoryError, remedy
from affserve.train.processing.record import parse_processing

MANIFEST_SCHEMA = 3
EXPORT_COMMAND = "affserve export"
WRITE_AGAIN = f"write it again with: {EXPORT_COMMAND} ..."


@dataclass(frozen=True, kw_only=True)
class ArtefactRecord:
    """One ONNX file, or plan for RTX cards, of one version."""

    path: str  # relative to the repository
    model: str  # contract name
    use: str  # CPU or GPU, or rtx for its plans
    precision: str  # fp32, fp16, bf16 or int8
    sha256: str
    bytes: int
    flops: int  # per frame (encoder, stream) or per window (head); a multiplication and an addition are two
    parity: tuple[Mapping[str, Any], ...]  # figures and limits, as parity.Check has them; empty: not compared (RTX)
    engine: str = ""  # for a CPU the Triton backend that computes it; on a GPU the engine set decides
    tried: tuple[Mapping[str, Any], ...] = ()  # for a CPU: engines, precisions, ms of a run on the exporting machine
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version of the three models."""

    trained_on: str  # corpus names
    labels: Mapping[str, tuple[str, ...]]  # task key -> label names in output order
    window_frames: int
    stride_frames: int
    encoder: Mapping[str, Any]  # fingerprint, commit and provenance of the checkpoint
    heads: tuple[Mapping[str, Any], ...]
    built_with: Mapping[str, str]  # package -> version, and the commit of the code that exported
    artefacts: tuple[ArtefactRecord, ...]
    golden: Mapping[str, str] = field(default_factory=dict)  # path -> SHA-256 of golden inputs and PyTorch's answers
    stream: StreamDescription | None = None  # of heads that stream
    processing: Mapping[str, Any] = field(default_factory=dict)  # of the answers, by clients; as JSON has it
    notes: tuple[str, ...] = ()  # what was decided at export, such as a precision that was not reached

    def description(self) -> HeadDescription:
        """Return what the configurations of this version tell a client."""
        return HeadDescription(
            labels={key: tuple(names) for key, names in self.labels.items()},
            window_frames=self.window_frames,
            stride_frames=self.stride_frames,
            trained_on=self.trained_on,
            encoder=str(self.encoder["fingerprint"]),
            stream=self.stream,
            processing=parse_processing(self.processing, self.labels, MANIFEST_FILE),
        )

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file of this version by its path."""
        return {**{record.path: record.sha256 for record in self.artefacts}, **self.golden}

    def computed_by(self) -> dict[str, tuple[str, str]]:
        """Return engine and precision of each model with weights on a CPU, as its configuration says."""
        return {record.model: (record.engine, record.precision) for record in self.artefacts if record.use == CPU}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole file."""

    served: int  # the version that the configurations name
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)  # path -> SHA-256 of each Triton configuration

    def to_json(self) -> bytes:
        """Return the file's content."""
        document = {
            "schema": MANIFEST_SCHEMA,
            "served": self.served,
            "versions": {str(number): asdict(self.versions[number]) for number in sorted(self.versions)},
            "configs": dict(self.configs),
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, source: str) -> Manifest:
        """Read the file back; `source` names it for the RepositoryError when it is not one."""
        document = _parse(content, source)
        try:
            manifest = cls(
                served=int(document["served"]),
                versions={int(number): _version(record) for number, record in document["versions"].items()},
                configs=dict(document["configs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RepositoryError(f"{source} is incomplete: {type(error).__name__}: {error}; {WRITE_AGAIN}") from error
        if manifest.served not in manifest.versions:
            raise RepositoryError(
                f"{source} says that version {manifest.served} is served and describes "
                f"{', '.join(map(str, manifest.versions)) or 'none'}; {WRITE_AGAIN}"
            )
        return manifest


def _parse(content: bytes, source: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise RepositoryError(f"{source} cannot be read: {error}; {WRITE_AGAIN}") from error
    if not isinstance(document, dict) or document.get("schema") != MANIFEST_SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise RepositoryError(
            f"{source} has schema {found!r}, this affserve reads {MANIFEST_SCHEMA}: use the affserve that wrote it, or "
            f"{WRITE_AGAIN}"
        )
    return document


def _version(record: Mapping[str, Any]) -> VersionRecord:
    lists = ("parity", "tried", "notes")
    artefacts = [one | {name: tuple(one[name]) for name in lists} for one in record["artefacts"]]
    tuples = {
        "labels": {key: tuple(names) for key, names in record["labels"].items()},
        "heads": tuple(record["heads"]),
        "artefacts": tuple(ArtefactRecord(**one) for one in artefacts),
        "notes": tuple(record["notes"]),
        "stream": StreamDescription(**record["stream"]) if record["stream"] else None,
    }
    return VersionRecord(**{**record, **tuples})


def read_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a local repository; None when it has none."""
    path = root / MANIFEST_FILE
    if not path.exists():
        return None
    with reading(path):
        return Manifest.from_json(path.read_bytes(), str(path))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Make a RepositoryError of what keeps a file from being read; a limit of the machine is not the file's fault."""
    try:
        yield
    except OSError as error:
        if remedy(error) is not None:
            raise
        raise RepositoryError(f"{path} cannot be read: {error}; {WRITE_AGAIN}") from error
