"""`affserve export --inspect`: what a repository is, told from its manifest alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import onnxruntime
import pytest
from plan_files import AMPERE, put_plan

from affserve.export.repository.inspection import closest, inspect_repository
from affserve.export.repository.placement import LocalTarget, in_order, open_target
from affserve.train.errors import RepositoryError


def inspect(repository: object, *options: str) -> str:
    command = [sys.executable, "-m", "affserve.client", "export", "--inspect", str(repository), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_page_tells_models_sizes_arithmetic_parity_and_origin(repository: Path) -> None:
    page = inspect(repository)
    size = (repository / "clip_encoder/1/model.onnx").stat().st_size
    assert "version 1 (served)" in page
    assert f"clip_encoder/1/model.onnx: fp32, {size / 1e6:.1f} MB, 0.0919 GFLOP per frame" in page
    assert "temporal_head/1/model.onnx: fp32" in page
    assert "GFLOP per window" in page
    assert "trained on   synthetic" in page
    assert "valence_arousal (2), expression (8), action_units (12); windows of 300 frames" in page
    assert f"onnxruntime {onnxruntime.__version__}" in page
    assert "closest to its limit" in page


def test_json_is_the_manifest_with_the_plans(repository: Path) -> None:
    document = json.loads(inspect(repository, "--json"))
    manifest = json.loads((repository / "manifest.json").read_text())
    assert document["versions"]["1"].pop("plans") == []
    assert document == {"repository": str(repository), **manifest}


def test_plans_are_listed_with_where_they_run(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    put_plan(tmp_path / "repository/clip_encoder/1")
    text = inspect_repository(LocalTarget(tmp_path / "repository")).text()
    assert f"clip_encoder model.sm86.plan: 180 MB, for {AMPERE.name}, TensorRT" in text
    assert "cannot run here: " in text or "may run here" in text


def test_a_repository_at_a_url_needs_no_model_file(repository: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in in_order(repository):
        if not file.endswith(".onnx"):
            memory.pipe_file(f"/inspected/{file}", (repository / file).read_bytes())
    there = inspect_repository(open_target("memory://inspected"))
    assert there.text().splitlines()[1:] == inspect_repository(LocalTarget(repository)).text().splitlines()[1:]


def test_what_is_no_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no repository"):
        inspect_repository(LocalTarget(tmp_path))


def test_worst_figure_is_the_one_nearest_to_its_limit() -> None:
    checks = [
        {"what": "difference", "figure": 1e-6, "limit": 1e-4, "at_least": False},
        {"what": "cosine", "figure": 0.9999, "limit": 0.999, "at_least": True},  # a tenth of what is allowed
        {"what": "agreement", "figure": 1.0, "limit": 0.99, "at_least": True},
    ]
    assert closest(checks).startswith("cosine 0.9999 (at least 0.999)")
