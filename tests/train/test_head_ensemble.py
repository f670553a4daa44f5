"""An ensemble of heads: the mean of its members, wherever a head can go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import blurred_noise

from affserve.export.artefacts.material import parity_only
from affserve.export.repository.exporting import CPU_FP32, export_repository
from affserve.train.models.checkpoint import load_encoder, load_head, save_head
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead, activate, demo_head_config
from affserve.train.provenance import Provenance


def heads(count: int) -> list[TemporalHead]:
    torch.manual_seed(3)
    return [TemporalHead(demo_head_config(layers=1, causal=k % 2 == 0)).eval() for k in range(count)]


def test_answer_is_the_mean_of_the_members_answers() -> None:
    members, features = heads(3), torch.randn(2, 5, 512)
    with torch.inference_mode():
        answer = HeadEnsemble(members).answers(features)
        each = [activate(member(features)) for member in members]
    for key, values in answer.items():
        torch.testing.assert_close(values, sum(one[key] for one in each) / 3)
    torch.testing.assert_close(answer["expression"].sum(-1), torch.ones(2, 5))


def test_checkpoint_exports_as_one_model(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    folds, repository = tmp_path / "folds", tmp_path / "repository"
    provenance = Provenance(trained_on="synthetic", encoder=load_encoder(checkpoints[0])[1].fingerprint)
    save_head(folds, HeadEnsemble(heads(2)), provenance)
    loaded, _ = load_head(folds)
    export_repository(checkpoints[0], [folds], repository, material=parity_only(blurred_noise(4)), options=CPU_FP32)
    graph = onnxruntime.InferenceSession(repository / "temporal_head/1/model.onnx")
    features = np.random.default_rng(0).standard_normal((1, 9, 512)).astype(np.float32)
    with torch.inference_mode():
        truth = loaded.answers(torch.from_numpy(features))
    for output, values in zip(graph.get_outputs(), graph.run(None, {"features": features}), strict=True):
        np.testing.assert_allclose(values, truth[output.name].numpy(), atol=1e-5)
    assert json.loads((folds / "config.json").read_text())["kind"] == "head_ensemble"


def test_members_for_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in tasks"):
        HeadEnsemble([*heads(1), TemporalHead(demo_head_config(tasks=("expression",)))])
