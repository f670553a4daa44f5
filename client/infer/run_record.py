"""What a result was made from: written into its provenance, and compared when a run is resumed.

A result counts as done when its file is complete, of the same source (size and time of change), the same options and
the same model. Rows appear under their name only when they are complete, and their record is written after them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from affserve.client.client import AffectClient
from affserve.client.faces.face import Cropper
from affserve.client.faces.settings import FaceSettings
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.results.metadata import DIGEST
from affserve.export.contract import IMAGE_SIZE_PX
from affserve.train.processing.record import as_document

SOURCE, OPTIONS, ANSWER, ERROR = "source_state", "options", "model_answer", "error"
ANSWER_DIGITS = 4
ANSWER_TOLERANCE = 2e-3  # sums in another order; another model differs by more somewhere among its outputs


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Which model answers, as far as a client can tell."""

    facts: Mapping[str, str]  # what it says of itself, and how frames reach it
    answer: str  # to a fixed picture: tells models apart that describe themselves alike

    @classmethod
    def of(cls, client: AffectClient) -> ModelRecord:
        """Ask the server."""
        description = client.describe()
        facts = {
            "trained_on": description.trained_on,
            "encoder": description.encoder,
            "engine": client.engine(),
            "window_frames": str(description.window_frames),
            "stride_frames": str(description.stride_frames),
            "frames_sent": client.fidelity(),
            "post_processing": json.dumps(as_document(description.processing)),
        }
        return cls(facts=facts, answer=_answer(client))

    def provenance(self) -> dict[str, str]:
        """Return names and values for the metadata."""
        return {**self.facts, ANSWER: self.answer}

    def made(self, provenance: Mapping[str, str]) -> bool:
        """Say whether this model made a result with this provenance."""
        if any(provenance.get(name) != fact for name, fact in self.facts.items()):
            return False
        then, now = _numbers(provenance.get(ANSWER, "")), _numbers(self.answer)
        return then.shape == now.shape and bool(np.all(np.abs(then - now) <= ANSWER_TOLERANCE))


def _answer(client: AffectClient) -> str:
    """Return the model's numbers for one fixed picture: a gradient in all three colours."""
    ramp = np.linspace(0, 255, IMAGE_SIZE_PX)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    picture = np.stack([rows, columns, 255 - rows], axis=2).astype(np.uint8)
    outputs = client.affect(picture[None])
    return " ".join(f"{value:.{ANSWER_DIGITS}f}" for values in outputs.values() for value in values[0])


def _numbers(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    try:
        return np.array([float(word) for word in text.split()])
    except ValueError:
        return np.empty(0)


def source_state(path: Path) -> str:
    """Return what changes when a source changes: files, bytes and the latest time of change."""
    files = [path] if not path.is_dir() else [file for file in path.iterdir() if file.is_file()]
    states = [file.stat() for file in files]
    changed_ns = max((state.st_mtime_ns for state in states), default=0)
    seconds, fraction_ns = divmod(changed_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{len(files)} files, {sum(state.st_size for state in states)} bytes, changed {moment}.{fraction_ns:09}Z"


def options_of(cropper: Cropper, faces: FaceSettings, fps: float, *, raw: bool = False, every: int = 1) -> str:
    """Return all that changes the rows of a source as text, the same for the same options."""
    more = {**({"raw": True} if raw else {}), **({"every": every} if every > 1 else {})}
    return json.dumps({"fps": fps, "face_detector": cropper.name, **asdict(faces), **more}, sort_keys=True)


def is_done(path: Path, options: str, outputs: OutputPaths, model: ModelRecord) -> bool:
    """Say whether all outputs of a source are there, complete, and what the same run would write again."""
    if outputs.to_stdout or not all(file.is_file() for file in outputs.files):
        return False
    made_s = outputs.rows.stat().st_mtime
    if any(file.stat().st_mtime < made_s for file in outputs.files):
        return False  # a plot or overlay of an earlier result: this one was killed in between
    provenance = outputs.row_format.description(outputs.rows).provenance
    same = provenance.get(SOURCE) == source_state(path) and provenance.get(OPTIONS) == options
    made = same and ERROR not in provenance and model.made(provenance)
    return made and outputs.row_format.is_intact(outputs.rows, provenance.get(DIGEST))
