"""A checkpoint is a folder: `weights.safetensors` and a `config.json` that says how to rebuild the model.

It is written beside its place and renamed into it, so that a folder under its final name is always whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn  # noqa: TID253 - this file is about it

from affserve.train.errors import CheckpointError, DataError
from affserve.train.files import file_sha256, staged_folder, write_file
from affserve.train.labels import TASKS
from affserve.train.models.encoder import ClipEncoder, EncoderConfig
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead, TemporalHeadConfig
from affserve.train.processing.record import Processing, as_document, parse_processing
from affserve.train.provenance import Provenance, source_commit

SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
ENCODER_KIND = "clip_encoder"
HEAD_KIND = "temporal_head"
ENSEMBLE_KIND = "head_ensemble"
PROCESSING = "processing"  # what a head's description calls the record of post-processing


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back: the rebuilt model in evaluation mode and what is known about it."""

    model: nn.Module
    provenance: Provenance
    fingerprint: str  # first 16 hex digits of the SHA-256 of the weights file
    path: Path
    processing: Processing  # what is declared to be made of a head's answers


def save_encoder(path: Path, encoder: ClipEncoder, provenance: Provenance) -> str:
    """Write an encoder checkpoint and return its fingerprint."""
    return _save(path, ENCODER_KIND, encoder, asdict(encoder.config), provenance)


def save_head(path: Path, head: TemporalHead | HeadEnsemble, provenance: Provenance) -> str:
    """Write the checkpoint of a temporal head, or of an ensemble of them, and return its fingerprint."""
    if isinstance(head, HeadEnsemble):
        members = [asdict(member.config) for member in head.heads]
        return _save(path, ENSEMBLE_KIND, head, {"tasks": head.config.tasks, "members": members}, provenance)
    return _save(path, HEAD_KIND, head, asdict(head.config), provenance)


def load_encoder(path: Path) -> tuple[ClipEncoder, Checkpoint]:
    """Rebuild an encoder from its folder."""
    config = _read_config(path, (ENCODER_KIND,))
    encoder = ClipEncoder(_rebuild(EncoderConfig, config["architecture"], path))
    return encoder, _load_weights(path, config, encoder)


def load_head(path: Path) -> tuple[TemporalHead | HeadEnsemble, Checkpoint]:
    """Rebuild a temporal head, or an ensemble of them, from its folder."""
    config = _read_config(path, (HEAD_KIND, ENSEMBLE_KIND))
    architecture = config["architecture"]
    head: TemporalHead | HeadEnsemble
    if config["kind"] == ENSEMBLE_KIND:
        members = [TemporalHead(_rebuild(TemporalHeadConfig, one, path)) for one in architecture["members"]]
        head = HeadEnsemble(members)
    else:
        head = TemporalHead(_rebuild(TemporalHeadConfig, architecture, path))
    return head, _load_weights(path, config, head)


def save_processing(path: Path, processing: Processing) -> None:
    """Declare in a head's checkpoint what is made of its answers; the file is replaced whole."""
    config = _read_config(path, (HEAD_KIND, ENSEMBLE_KIND))
    parse_processing(as_document(processing), config["labels"], str(path))
    config[PROCESSING] = as_document(processing)
    write_file(path / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def _save(path: Path, kind: str, model: nn.Module, architecture: dict[str, Any], provenance: Provenance) -> str:
    with staged_folder(path) as staging:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, staging / WEIGHTS_FILE)
        fingerprint = _fingerprint(staging / WEIGHTS_FILE)
        document = {
            "schema": SCHEMA,
            "kind": kind,
            "architecture": architecture,
            "labels": {key: list(task.names) for key, task in TASKS.items() if key in architecture.get("tasks", TASKS)},
            "fingerprint": fingerprint,
            "provenance": asdict(provenance),
            "commit": source_commit(),
        }
        (staging / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n")
    return fingerprint


def _fingerprint(weights: Path) -> str:
    return file_sha256(weights)[:16]


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint that a checkpoint's description carries, without reading its weights."""
    return str(_read_config(path, (ENCODER_KIND, HEAD_KIND, ENSEMBLE_KIND))["fingerprint"])


def check_fits(head: Checkpoint, encoder: str) -> None:
    """Raise a CheckpointError unless a head was trained on the features of the encoder with this fingerprint."""
    if head.provenance.encoder != encoder:
        raise CheckpointError(
            f"{head.path} was trained on features of encoder {head.provenance.encoder}, but these are of encoder "
            f"{encoder}; name the encoder that the head was trained with, or train it on the features of this one"
        )


def _read_config(path: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint folder: {error}; expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    if config.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint schema {config.get('schema')!r}; this affserve reads schema {SCHEMA}"
        )
    if config.get("kind") not in kinds:
        raise CheckpointError(f"{path} is a checkpoint of kind {config.get('kind')!r}; expected {' or '.join(kinds)}")
    return config


def _rebuild(kind: type[Any], values: dict[str, Any], path: Path) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/{CONFIG_FILE}: its architecture cannot be built: {error}") from error


def _load_weights(path: Path, config: dict[str, Any], model: nn.Module) -> Checkpoint:
    weights = path / WEIGHTS_FILE
    if not weights.exists() or _fingerprint(weights) != config["fingerprint"]:
        raise CheckpointError(
            f"{weights} is missing or is not the file {CONFIG_FILE} was written with; train again or copy it whole"
        )
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise CheckpointError(f"{weights} does not fit the architecture in {CONFIG_FILE}: {error}") from error
    model.eval()
    provenance = Provenance(**config["provenance"])
    try:
        processing = parse_processing(config.get(PROCESSING, {}), config["labels"], f"{path}/{CONFIG_FILE}")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(
        model=model, provenance=provenance, fingerprint=config["fingerprint"], path=path, processing=processing
    )
