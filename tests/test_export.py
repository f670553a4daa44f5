"""Export: what is placed is what was trained, and nothing is placed when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import blurred_noise

from affserve.export import to_onnx
from affserve.export.graphs import HeadGraph
from affserve.export.model_config import read_config
from affserve.export.repository import export_repository
from affserve.train.checkpoint import Provenance, load_encoder, load_head, save_head
from affserve.train.clip_encoder import ClipEncoder
from affserve.train.errors import CheckpointError, ExportError, ParityError
from affserve.train.temporal_head import TemporalHead, demo_head_config


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_served_graphs_equal_the_checkpoints(repository: Path, checkpoints: tuple[Path, Path]) -> None:
    encoder, _ = load_encoder(checkpoints[0])
    head, _ = load_head(checkpoints[1])
    frames = blurred_noise(37, seed=5)
    with torch.inference_mode():
        features = encoder(torch.from_numpy(frames))
        outputs = HeadGraph([head])(features[None])
    onnx_encoder = onnxruntime.InferenceSession(str(repository / "clip_encoder/1/model.onnx"))
    onnx_head = onnxruntime.InferenceSession(str(repository / "temporal_head/1/model.onnx"))
    onnx_features = onnx_encoder.run(None, {"frames": frames})[0]
    np.testing.assert_allclose(onnx_features, features.numpy(), atol=1e-4)
    names = [output.name for output in onnx_head.get_outputs()]
    assert names == ["valence_arousal", "expression", "action_units"]
    for answer, truth in zip(onnx_head.run(None, {"features": onnx_features[None]}), outputs, strict=True):
        np.testing.assert_allclose(answer, truth.numpy(), atol=1e-4)


def test_manifest_and_configs_tell_what_the_models_are(repository: Path) -> None:
    manifest = json.loads((repository / "manifest.json").read_text())
    assert manifest["trained_on"] == "synthetic"
    assert manifest["labels"]["expression"][4] == "Happiness"
    assert all(check["figure"] is not None for check in manifest["parity"])
    for config in ("affect/config.pbtxt", "temporal_head/config.pbtxt", "temporal_head/configs/onnx.pbtxt"):
        parameters = {k: v.string_value for k, v in read_config(repository / config).parameters.items()}
        assert parameters["trained_on"] == "synthetic"
        assert parameters["labels.action_units"].startswith("AU1,AU2,AU4")
        assert parameters["encoder"] == manifest["encoder"]["fingerprint"]


def test_wrong_normalisation_stops_the_export_and_keeps_the_old_repository(
    checkpoints: tuple[Path, Path], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "repository"
    export_repository(checkpoints[0], [checkpoints[1]], target, parity_frames=blurred_noise(4))
    before = snapshot(target)

    def export_with_channels_swapped(encoder: ClipEncoder, path: Path) -> None:
        encoder.shift.copy_(encoder.shift.flip(0))
        to_onnx.export_encoder(encoder, path)
        encoder.shift.copy_(encoder.shift.flip(0))

    monkeypatch.setattr("affserve.export.repository.export_encoder", export_with_channels_swapped)
    with pytest.raises(ParityError, match=r"FAIL +features, largest difference"):
        export_repository(checkpoints[0], [checkpoints[1]], target, parity_frames=blurred_noise(4))
    assert snapshot(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_head_for_one_task_gives_a_repository_for_that_task(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    _, trained = load_encoder(checkpoints[0])
    head = TemporalHead(demo_head_config(tasks=("action_units",)))
    save_head(tmp_path / "au", head, Provenance(trained_on="synthetic", encoder=trained.fingerprint))
    export_repository(checkpoints[0], [tmp_path / "au"], tmp_path / "repository", parity_frames=blurred_noise(4))
    for model in ("affect", "temporal_head"):
        config = read_config(tmp_path / "repository" / model / "config.pbtxt")
        assert [output.name for output in config.output] == ["action_units"]
        assert [key for key in config.parameters if key.startswith("labels.")] == ["labels.action_units"]
    affect = read_config(tmp_path / "repository/affect/config.pbtxt")
    assert dict(affect.ensemble_scheduling.step[1].output_map) == {"action_units": "action_units"}


def test_head_of_another_encoder_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    head = TemporalHead(demo_head_config())
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic", encoder="0123456789abcdef"))
    with pytest.raises(ExportError, match="features of encoder 0123456789abcdef"):
        export_repository(checkpoints[0], [tmp_path / "head"], tmp_path / "out", parity_frames=blurred_noise(4))
    assert not (tmp_path / "out").exists()


def test_two_heads_for_one_task_are_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="overlap"):
        export_repository(checkpoints[0], [checkpoints[1]] * 2, tmp_path / "out", parity_frames=blurred_noise(4))


def test_a_folder_of_something_else_is_not_overwritten(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="not a repository written by affserve"):
        export_repository(checkpoints[0], [checkpoints[1]], tmp_path, parity_frames=blurred_noise(4))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_altered_weights_are_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    head, _ = load_head(checkpoints[1])
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic"))
    weights = tmp_path / "head" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="not the file"):
        load_head(tmp_path / "head")


def test_unknown_schema_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    head, _ = load_head(checkpoints[1])
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic"))
    config = tmp_path / "head" / "config.json"
    config.write_text(config.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(CheckpointError, match="schema 99"):
        load_head(tmp_path / "head")
