"""Plans for RTX cards: real ones, built here by NVIDIA's library without a GPU, judged by what it says it compiled."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import blurred_noise
from onnx import TensorProto, helper, numpy_helper
from plan_files import ADA, AMPERE
from tiny_models import tiny_vit

from affserve.export.artefacts.material import parity_only
from affserve.export.contract import CLIP_ENCODER, GPU, TEMPORAL_HEAD
from affserve.export.engine import rtx
from affserve.export.engine.plans import read_record, record_file, write_record
from affserve.export.engine.profile import HEAD_PROFILE, RTX_ENCODER_PROFILE, EngineOptions
from affserve.export.engine_sets import GPU_ONNX_FILE, RTX, RTX_PLAN_FILE
from affserve.export.export_cli import Target, _options
from affserve.export.graphs.onnx_file import export_encoder
from affserve.export.machine.gpus import Gpu, find_gpus
from affserve.export.pins import RTX_CAPABILITIES, RTX_MODULE, RTX_VERSION
from affserve.export.precision.tolerances import Precision
from affserve.export.repository import exporting
from affserve.export.repository.check import check_rtx_plan
from affserve.export.repository.exporting import ExportOptions, RtxPlans, export_repository
from affserve.export.repository.inspection import inspect_repository
from affserve.export.repository.manifest import read_manifest
from affserve.export.repository.placement import LocalTarget
from affserve.train.errors import ExportError, RepositoryError

trt = pytest.importorskip(RTX_MODULE, reason="needs the extra affserve[rtx]")
PROFILES = {CLIP_ENCODER.name: RTX_ENCODER_PROFILE, TEMPORAL_HEAD.name: HEAD_PROFILE}


@pytest.fixture(scope="module")
def exported(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, (encoder, head) = tmp_path_factory.mktemp("rtx") / "repository", checkpoints
    options = ExportOptions(uses=(GPU,), precision=Precision.FP16, rtx="required")
    export_repository(encoder, [head], target, material=parity_only(blurred_noise(2)), options=options)
    return target


def test_one_plan_for_all_cards_in_half_precision_with_its_attention_fused(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert manifest is not None
    listed = {one.model: one for one in manifest.versions[1].artefacts if one.use == RTX}
    assert set(listed) == set(PROFILES)
    for model, artefact in listed.items():
        record = read_record(record_file(exported / artefact.path))
        assert artefact.path == f"{model}/1/{RTX_PLAN_FILE}"
        assert (artefact.sha256, artefact.bytes) == (record.plan_sha256, (exported / artefact.path).stat().st_size)
        assert (record.tensorrt, record.compute_capabilities) == (RTX_VERSION, list(RTX_CAPABILITIES))
        assert record.profile == PROFILES[model].as_lists()
        summary = record.inspector
        assert summary["fused_attentions"] == summary["attentions"] > 0
        assert summary["types"]["FP16"] > 5 * summary["types"]["FP32"]
        assert sum(summary["kinds"].values()) == summary["layers"] > summary["products"] > 0


def test_a_repository_tells_of_its_plans(exported: Path) -> None:
    page = inspect_repository(LocalTarget(exported)).text()
    assert f"clip_encoder {RTX_PLAN_FILE}: " in page
    assert f"for compute capability 8.6, 8.9, 12.0, TensorRT for RTX {RTX_VERSION}, built by affserve" in page
    assert "1 attentions fused; cannot run here: clip_encoder/model.rtx.plan needs an NVIDIA GPU" in page


# --- what may run here ---


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported / CLIP_ENCODER.name / "1", tmp_path / "1")
    return tmp_path / "1"


def change(folder: Path, **changed: Any) -> None:
    path = record_file(folder / RTX_PLAN_FILE)
    write_record(path, replace(read_record(path), **changed))


def test_any_card_it_was_built_for_runs_it(folder: Path) -> None:
    check_rtx_plan("clip_encoder", folder, [AMPERE, ADA])


@pytest.mark.parametrize(
    ("changed", "gpus", "message"),
    [
        ({"tensorrt": "1.6.0.1"}, [AMPERE], rf"1\.6\.0\.1 and this machine has {RTX_VERSION}.*libs==1\.6\.0\.1"),
        ({}, [AMPERE, replace(AMPERE, compute_capability="7.5", name="Quadro T4")], "Quadro T4.*another engine"),
        ({}, [replace(AMPERE, driver="570.1")], "has driver 570.1; TensorRT for RTX needs 580 or later"),
        ({"onnx_sha256": "0"}, [AMPERE], r"built from another graph than model\.gpu\.onnx"),
    ],
    ids=["other_library", "one_card_too_old", "old_driver", "other_graph"],
)
def test_what_cannot_run_here_is_refused(folder: Path, changed: dict[str, Any], gpus: list[Gpu], message: str) -> None:
    change(folder, **changed)
    with pytest.raises(RepositoryError, match=message):
        check_rtx_plan("clip_encoder", folder, gpus)


def test_without_the_library_the_message_brings_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affserve.export.repository.check.RTX_MODULE", "no_such_module")
    with pytest.raises(RepositoryError, match=r"not installed: pip install 'affserve\[rtx\]'"):
        check_rtx_plan("clip_encoder", folder, [AMPERE])


class Quiet(trt.ILogger):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, msg: str) -> None:
        pass


def test_a_damaged_plan_is_refused_by_us_and_by_the_library(folder: Path) -> None:
    runtime, plan = trt.Runtime(logger := Quiet()), folder / RTX_PLAN_FILE
    malformed = trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE.value
    assert not runtime.get_engine_validity(plan.read_bytes())[1] & malformed, logger
    plan.write_bytes(b"damaged" + plan.read_bytes()[7:])
    assert runtime.get_engine_validity(plan.read_bytes())[1] & malformed
    with pytest.raises(RepositoryError, match="not the file its sidecar describes"):
        check_rtx_plan("clip_encoder", folder, [AMPERE])


# --- what is built when, and what is not ---


@pytest.mark.skipif(bool(find_gpus()), reason="with a GPU, TensorRT's plans may be built, too")
@pytest.mark.parametrize(
    ("target", "build", "plans"),
    [("all", None, "tried"), ("gpu", True, "required"), ("all", False, "none"), ("cpu", None, "none")],
)
def test_plans_are_built_where_they_can_be_unless_told_otherwise(
    target: Target, build: bool | None, plans: RtxPlans
) -> None:
    options = _options(target, "auto", None, build, EngineOptions())
    assert (options.rtx, options.engines) == (plans, None)


def unreadable_graph(path: Path) -> None:
    x = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 224, 224, 3])
    y = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 512])
    weights = numpy_helper.from_array(np.ones((3, 512), np.float32), "w")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    nodes = [
        helper.make_node("Cast", ["frames"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["colour"], keepdims=0),
        helper.make_node("Colourise", ["colour"], ["odd"], name="the_odd_one", domain="somebody.else"),
        helper.make_node("MatMul", ["odd", "w"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "graph", [x], [y], [weights, axes])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("somebody.else", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


def wide_graph(path: Path) -> None:
    export_encoder(tiny_vit(), path)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (unreadable_graph, r"the_odd_one \(Colourise\)"),
        (wide_graph, r"(?s)attention of node_softmax is not fused: \w+.*node_matmul\w* \(gemm\) multiplies FP32"),
    ],
)
def test_a_graph_that_would_be_slow_or_cannot_be_read_gives_no_plan(tmp_path: Path, graph: Any, message: str) -> None:
    graph(tmp_path / GPU_ONNX_FILE)
    with pytest.raises(ExportError, match=message):
        rtx.build_rtx_plan(tmp_path, RTX_ENCODER_PROFILE)
    assert not list(tmp_path.glob("*.plan*"))


def test_another_release_of_the_library_builds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "RTX_VERSION", "9.9.9.9")
    with pytest.raises(ExportError, match=rf"needs TensorRT for RTX 9\.9\.9\.9, found {RTX_VERSION}"):
        rtx.build_rtx_plan(folder, RTX_ENCODER_PROFILE)


def test_plans_that_were_only_tried_are_left_out_with_a_note(exported: Path, tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    shutil.copytree(exported, staging)
    wide_graph(staging / CLIP_ENCODER.name / "1" / GPU_ONNX_FILE)
    manifest = read_manifest(exported)
    assert manifest is not None
    record = replace(manifest.versions[1], artefacts=manifest.versions[1].artefacts[:2])
    with pytest.raises(ExportError, match="expected FP16"):
        exporting._with_rtx(staging, 1, record, "required", lambda _: None)
    told = exporting._with_rtx(staging, 1, record, "tried", lambda _: None)
    assert told.artefacts == record.artefacts
    assert any("no plans for RTX cards" in note and "expected FP16" in note for note in told.notes)
    assert not list(staging.rglob("*.plan*")), "both models have one or none has"


def test_the_pinned_release_is_the_one_that_is_installed_by_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert text.count(f"=={RTX_VERSION}; platform_machine") == 2
    assert trt.__version__ == RTX_VERSION
