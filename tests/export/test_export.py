"""Export: what is placed is what was trained, and nothing is placed when it is not."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from conftest import blurred_noise
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.export.artefacts.choice import Chosen, candidates, check_usable, choose, wanted
from affserve.export.artefacts.comparing import Check
from affserve.export.artefacts.material import parity_only
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.sessions import Candidate
from affserve.export.contract import CPU, GPU
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.graphs.flops import count_flops
from affserve.export.graphs.head import HeadGraph
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.exporting import CPU_FP32, ExportOptions, ExportSummary, export_repository
from affserve.export.repository.templates import read_config
from affserve.train.errors import CheckpointError, ExportError, ParityError
from affserve.train.models.checkpoint import load_encoder, load_head, save_encoder, save_head
from affserve.train.models.temporal_head import TemporalHead, demo_head_config
from affserve.train.provenance import Provenance

FEW = parity_only(blurred_noise(4))


def export(checkpoints: tuple[Path, Path], target: Path, **more: Any) -> ExportSummary:
    settings: dict[str, Any] = {"material": FEW, "options": CPU_FP32, **more}
    return export_repository(checkpoints[0], [checkpoints[1]], target, **settings)


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
    version = manifest["versions"][str(manifest["served"])]
    assert version["trained_on"] == "synthetic"
    assert version["labels"]["expression"][4] == "Happiness"
    for artefact in version["artefacts"]:
        assert artefact["precision"] == "fp32"
        assert all(check["figure"] is not None for check in artefact["parity"])
    for config in ("affect/config.pbtxt", "temporal_head/config.pbtxt", "temporal_head/configs/cpu.pbtxt"):
        parameters = {k: v.string_value for k, v in read_config(repository / config).parameters.items()}
        assert parameters["trained_on"] == "synthetic"
        assert parameters["labels.action_units"].startswith("AU1,AU2,AU4")
        assert parameters["encoder"] == version["encoder"]["fingerprint"]


def test_a_graph_that_fails_parity_stops_the_export_and_keeps_the_old_repository(
    checkpoints: tuple[Path, Path], repository: Path, tmp_path: Path
) -> None:
    """A weight beyond float16 becomes infinite, whatever stays float32."""
    target = tmp_path / "repository"
    shutil.copytree(repository, target)
    before = snapshot(target)
    encoder, checkpoint = load_encoder(checkpoints[0])
    with torch.no_grad():
        next(encoder.visual.parameters()).view(-1)[0] = 1e5
    fingerprint = save_encoder(tmp_path / "loud", encoder, checkpoint.provenance)
    head, _ = load_head(checkpoints[1])
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic", encoder=fingerprint))
    options = ExportOptions(uses=(GPU,), precision=Precision.FP16)
    with pytest.raises(
        ParityError, match=r"nothing was placed:\nclip_encoder in onnxruntime fp16:\n(.*\n)*  FAIL +features"
    ):
        export((tmp_path / "loud", tmp_path / "head"), target, options=options)
    assert snapshot(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head", "loud", "repository"]


def test_head_for_one_task_gives_a_repository_for_that_task(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    _, trained = load_encoder(checkpoints[0])
    head = TemporalHead(demo_head_config(tasks=("action_units",)))
    save_head(tmp_path / "au", head, Provenance(trained_on="synthetic", encoder=trained.fingerprint))
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/manifest.json").write_text('{"schema": 1}')  # of an older affserve: may be replaced whole
    export((checkpoints[0], tmp_path / "au"), tmp_path / "repository")
    for model in ("affect", "temporal_head"):
        config = read_config(tmp_path / "repository" / model / "config.pbtxt")
        assert [output.name for output in config.output] == ["action_units"]
        assert [key for key in config.parameters if key.startswith("labels.")] == ["labels.action_units"]
    affect = read_config(tmp_path / "repository/affect/config.pbtxt")
    assert dict(affect.ensemble_scheduling.step[1].output_map) == {"action_units": "action_units"}


def test_head_of_another_encoder_is_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    head = TemporalHead(demo_head_config())
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic", encoder="0123456789abcdef"))
    with pytest.raises(CheckpointError, match="features of encoder 0123456789abcdef"):
        export((checkpoints[0], tmp_path / "head"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_heads_for_one_task_are_refused(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="overlap"):
        export_repository(checkpoints[0], [checkpoints[1]] * 2, tmp_path / "out", material=FEW, options=CPU_FP32)


def test_a_folder_of_something_else_is_not_overwritten(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="not a repository written by affserve"):
        export(checkpoints, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_fingerprint_is_that_of_the_whole_file(tmp_path: Path) -> None:
    head = TemporalHead(demo_head_config(feature_width=512, width=256))
    told = save_head(tmp_path / "head", head, Provenance(trained_on="synthetic"))
    content = (tmp_path / "head" / "weights.safetensors").read_bytes()
    assert len(content) > 1 << 20  # more than is read at once
    assert told == hashlib.sha256(content).hexdigest()[:16]


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


# --- precisions ---


def artefact(one: Candidate, run_s: float, *, passed: bool = True, model: str = "clip_encoder") -> Artefact:
    check = Check(what="cosine of the worst frame", figure=1.0 if passed else 0.5, limit=0.9, at_least=True)
    return Artefact(
        model=model, precision=one.precision, engine=one.engine, path=Path("unused"), checks=[check], run_s=run_s
    )


def made(failing: Sequence[Candidate] = (), quick: Candidate | None = None, run_s: float = 0.5) -> list[Artefact]:
    """The encoder in every way, each run taking 1 s but for a quick one's; and a head."""
    every = wanted((CPU, GPU), None)["clip_encoder"]
    encoders = [artefact(one, run_s if one == quick else 1.0, passed=one not in failing) for one in every]
    return encoders + [artefact(one, 1.0, model="temporal_head") for one in every]


def encoder_of(chosen: list[Chosen]) -> list[tuple[str, Candidate]]:
    return [(one.use, one.artefact.candidate) for one in chosen if one.artefact.model == "clip_encoder"]


INT8, FP16, FP32 = Candidate(Precision.INT8), Candidate(Precision.FP16), Candidate(Precision.FP32)
VINO_INT8, VINO_BF16 = Candidate(Precision.INT8, OPENVINO), Candidate(Precision.BF16, OPENVINO)
FAILED = "cosine of the worst frame is 0.5, limit 0.9"
AUTOMATIC = [
    pytest.param({}, [INT8, FP16], [], id="all_are_alike"),
    pytest.param({"quick": FP32}, [FP32, FP16], [], id="fp32_is_fastest"),
    pytest.param({"quick": VINO_INT8}, [VINO_INT8, FP16], [], id="openvino_is_fastest"),
    pytest.param({"quick": VINO_INT8, "run_s": 0.95}, [INT8, FP16], [], id="openvino_gains_too_little"),
    pytest.param({"quick": VINO_BF16, "run_s": 0.1}, [VINO_BF16, FP16], [], id="bf16_is_fastest"),
    pytest.param(
        {"quick": VINO_INT8, "failing": [VINO_INT8]},
        [INT8, FP16],
        [f"for cpu is onnxruntime int8, not openvino int8: {FAILED}"],
        id="openvino_is_fastest_and_wrong",
    ),
    pytest.param({"failing": [FP16]}, [INT8, FP32], [f"for gpu is fp32, not fp16: {FAILED}"], id="fp16_fails"),
]


@pytest.mark.parametrize(("measured", "expected", "said"), AUTOMATIC)
def test_auto_takes_the_fastest_that_passes_and_says_what_it_left(
    measured: dict[str, Any], expected: list[Candidate], said: list[str]
) -> None:
    chosen = choose(made(**measured), (CPU, GPU), None)
    assert encoder_of(chosen) == list(zip((CPU, GPU), expected, strict=True))
    notes = [note for one in chosen if one.artefact.model == "clip_encoder" for note in one.notes]
    assert notes == [f"clip_encoder {note}" for note in said]
    told = {(one["engine"], one["precision"]): one["run_ms"] for one in chosen[0].tried}
    assert told.keys() == {(engine, precision.value) for precision, engine in candidates(CPU, None)}
    assert min(told.values()) == 1000 * measured.get("run_s", 0.5 if "quick" in measured else 1)


def test_a_precision_that_was_asked_for_is_taken_or_refused_with_the_table() -> None:
    assert encoder_of(choose(made(), (CPU,), Precision.INT8)) == [(CPU, INT8)]
    assert encoder_of(choose(made(quick=VINO_INT8), (CPU,), Precision.INT8, (ONNX_RUNTIME,))) == [(CPU, INT8)]
    with pytest.raises(ParityError, match=r"clip_encoder in onnxruntime int8:\n  FAIL +cosine of the worst frame"):
        choose(made([INT8, VINO_INT8]), (CPU,), Precision.INT8)


def test_only_what_may_be_served_is_made() -> None:
    def precisions(*asked: Any) -> set[str]:
        return {one.precision.value for one in wanted(*asked)["clip_encoder"]}

    assert precisions((CPU, GPU), None) == {"fp32", "fp16", "bf16", "int8"}
    assert wanted((CPU,), Precision.FP32, (ONNX_RUNTIME,))["temporal_head"] == (FP32,)
    assert precisions((CPU, GPU), Precision.INT8) == {"fp32", "fp16", "int8"}  # the GPU has no use for INT8: auto
    assert precisions((GPU,), Precision.FP16) == {"fp16"}
    with pytest.raises(
        ExportError, match=r"bf16 needs one of onnxruntime, and none is installed.*pip install openvino"
    ):
        check_usable((CPU,), Precision.BF16, (ONNX_RUNTIME,))


# --- arithmetic ---


def test_flops_are_those_that_pytorch_counts(checkpoints: tuple[Path, Path], repository: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    encoder, _ = load_encoder(checkpoints[0])
    head, _ = load_head(checkpoints[1])
    for module, example, path in (
        (encoder, torch.zeros(3, 224, 224, 3, dtype=torch.uint8), "clip_encoder/1/model.onnx"),
        (HeadGraph([head]), torch.zeros(1, 37, 512), "temporal_head/1/model.onnx"),
    ):
        name = "frames" if example.dtype == torch.uint8 else "features"
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(example)
        assert count_flops(repository / path, {name: tuple(example.shape)}) == counter.get_total_flops()


def test_arithmetic_that_is_not_known_is_an_error_not_a_smaller_number(tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, ["N", 2])],
        [tensor("y", onnx.TensorProto.FLOAT, ["N", "N"])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "g.onnx")
    with pytest.raises(ExportError, match=r"g\.onnx has the operator ai\.onnx\.Einsum"):
        count_flops(tmp_path / "g.onnx", {"x": (4, 2)})


# --- the command ---


def affserve(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--out"),
        (["--out", "r", "--head", "h"], "--encoder"),
        (["--out", "r", "--encoder", "e"], "--head"),
        (["--out", "r", "--encoder", "e", "--head", "h", "--target", "cpu", "--precision", "fp16"], "gains nothing"),
        (["--out", "r", "--encoder", "e", "--head", "h", "--target", "gpu", "--precision", "int8"], "of CPUs"),
    ],
    ids=["nothing", "no-encoder", "no-head", "fp16-on-cpu", "int8-on-gpu"],
)
def test_wrong_usage_exits_2_with_the_reason(
    tmp_path: Path, arguments: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = affserve("export", *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_command_makes_both_devices_graphs_in_the_precision_that_pays(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    options = ("--out", repository, "--parity-frames", 8, "--calibration-frames", 16, "--json")
    result = affserve("export", "--encoder", checkpoints[0], "--head", checkpoints[1], *options)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    artefacts = summary["record"]["artefacts"]
    assert {(one["model"], one["use"]) for one in artefacts} >= {
        (model, use) for model in ("clip_encoder", "temporal_head") for use in (CPU, GPU)
    }
    assert {one["precision"] for one in artefacts if one["use"] == GPU} == {"fp16"}
    assert {one["precision"] for one in artefacts if one["use"] == CPU} <= {"fp32", "bf16", "int8"}
    assert all((repository / one["path"]).stat().st_size == one["bytes"] for one in artefacts)

    script = affserve("export", "--print-trtexec", repository)
    assert script.exit_code == 0, script.stderr
    assert subprocess.run(["sh", "-n"], input=script.stdout, text=True, check=False).returncode == 0
    assert "/repository/clip_encoder/1/model.gpu.onnx" in script.stdout
