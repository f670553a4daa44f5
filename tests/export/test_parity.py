"""The parity gate catches the faults that exports are known for, and lets a faithful graph through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blurred_noise
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_models import make_decisive, run_torch, tiny_head, tiny_vit

from affserve.export.artefacts.comparing import ADVERSARIAL, Check, require, steady_ccc
from affserve.export.artefacts.parity import Truth, check_encoder, check_head, establish
from affserve.export.contract import TASK_OUTPUTS
from affserve.export.graphs.head import HeadGraph
from affserve.export.graphs.onnx_file import export_encoder, export_head
from affserve.export.precision.half import to_half
from affserve.export.precision.tolerances import TOLERANCES, Precision
from affserve.train.errors import ParityError
from affserve.train.models.encoder import ClipEncoder

FACES = blurred_noise(40, seed=4)
FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return tiny_vit()


@pytest.fixture(scope="module")
def graph(encoder: ClipEncoder) -> HeadGraph:
    head = tiny_head()
    make_decisive(head, run_torch(encoder, FACES)[0])
    return HeadGraph([head]).eval()


@pytest.fixture(scope="module")
def truth(encoder: ClipEncoder, graph: HeadGraph) -> Truth:
    return establish(encoder, graph, FACES)


@pytest.fixture(scope="module")
def files(encoder: ClipEncoder, graph: HeadGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faithful")
    export_encoder(encoder, folder / "encoder.onnx")
    export_head(graph, folder / "head.onnx")
    return folder


def failed(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not check.passed]


def test_faithful_graphs_pass_in_fp32_and_fp16(truth: Truth, files: Path, tmp_path: Path) -> None:
    for name, check in (("encoder", check_encoder), ("head", check_head)):
        assert failed(check(truth, files / f"{name}.onnx", FP32)) == []
        to_half(files / f"{name}.onnx", tmp_path / f"{name}.onnx")
        checks = check(truth, tmp_path / f"{name}.onnx", FP16)
        assert failed(checks) == []
        require({name: checks}, "refused", "remedy")


def shift_means(encoder: ClipEncoder) -> None:
    encoder.shift.add_(0.2)


def swap_channels(encoder: ClipEncoder) -> None:
    weight = encoder.visual.conv1.weight
    weight.copy_(weight.flip(1))


def scale_by_imagenet_std(encoder: ClipEncoder) -> None:
    encoder.scale.copy_(1 / (255 * torch.tensor([0.229, 0.224, 0.225])))


@pytest.mark.parametrize("fault", [shift_means, swap_channels, scale_by_imagenet_std])
def test_wrong_preprocessing_is_caught_at_every_precision(
    encoder: ClipEncoder, truth: Truth, tmp_path: Path, fault: Callable[[ClipEncoder], None]
) -> None:
    faulty = copy.deepcopy(encoder)
    with torch.no_grad():
        fault(faulty)
    export_encoder(faulty, tmp_path / "faulty.onnx")
    for precision in (FP32, FP16, INT8):
        checks = check_encoder(truth, tmp_path / "faulty.onnx", precision)
        of_what = "centred cosine of the worst face" if precision is INT8 else "cosine of the worst frame"
        assert f"features, {of_what}" in failed(checks), precision
        with pytest.raises(
            ParityError, match=rf"^refused:\nencoder:\n(.*\n)*  FAIL +features, {of_what}(.*\n)*.*; remedy$"
        ):
            require({"encoder": checks}, "refused", "remedy")


def test_the_worst_frame_is_named(truth: Truth, files: Path) -> None:
    features = truth.features.values.copy()
    broken = replace(truth, features=replace(truth.features, values=features))
    features[17] *= -1
    checks = {check.what: check for check in check_encoder(broken, files / "encoder.onnx", FP32)}
    assert checks["features, cosine of the worst frame"].where == "worst is frame 17 of 43 frames"
    features[17] *= -1
    features[-1] *= -1
    checks = {check.what: check for check in check_encoder(broken, files / "encoder.onnx", FP32)}
    assert checks["features, largest difference"].where == f"worst is {ADVERSARIAL[-1]} of 43 frames"


def with_outputs(truth: Truth, change: Callable[[dict[str, NDArray[np.float32]]], None]) -> Truth:
    """The truth with its outputs changed, one window after the other: to it, a faithful graph is the altered one."""
    altered = [dict(outputs) for outputs in truth.outputs]
    for outputs in altered:
        change(outputs)
    other = copy.copy(truth)
    object.__setattr__(other, "outputs", tuple(altered))
    return other


def shuffle_classes(outputs: dict[str, NDArray[np.float32]]) -> None:
    outputs["expression"] = outputs["expression"][:, [0, 1, 2, 4, 3, 5, 6, 7]]


def swap_valence_and_arousal(outputs: dict[str, NDArray[np.float32]]) -> None:
    outputs["valence_arousal"] = outputs["valence_arousal"][:, ::-1]


def reverse_time(outputs: dict[str, NDArray[np.float32]]) -> None:
    outputs |= {key: values[::-1] for key, values in outputs.items()}


def delay_by_a_frame(outputs: dict[str, NDArray[np.float32]]) -> None:
    outputs |= {key: np.concatenate([values[:1], values[:-1]]) for key, values in outputs.items()}


@pytest.mark.parametrize("precision", [FP32, FP16, INT8], ids=lambda one: one.value)
@pytest.mark.parametrize(
    ("fault", "tasks"),
    [
        (shuffle_classes, ["expression"]),
        (swap_valence_and_arousal, ["valence_arousal"]),
        (reverse_time, list(TASK_OUTPUTS)),
        (delay_by_a_frame, list(TASK_OUTPUTS)),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_altered_answers_are_caught(
    truth: Truth,
    files: Path,
    fault: Callable[[dict[str, NDArray[np.float32]]], None],
    tasks: list[str],
    precision: Precision,
) -> None:
    names = failed(check_head(with_outputs(truth, fault), files / "head.onnx", precision))
    for key in tasks:
        assert f"{key}, T = 300, CCC" in names, names


def test_int8_that_depends_on_its_batch_is_caught(truth: Truth, files: Path, tmp_path: Path) -> None:
    quantize_dynamic(
        files / "encoder.onnx", tmp_path / "dynamic.onnx", ["MatMul"], per_channel=True, weight_type=QuantType.QInt8
    )
    assert "features of a frame alone and in a batch" in failed(check_encoder(truth, tmp_path / "dynamic.onnx", INT8))


def test_nan_never_passes() -> None:
    for at_least in (True, False):
        assert not Check(what="x", figure=float("nan"), limit=0.5, at_least=at_least).passed


@pytest.mark.parametrize(("margin", "agrees"), [(0.5, True), (2.0, False)], ids=["tie", "decision"])
def test_a_tie_may_fall_either_way_and_a_decision_may_not(
    truth: Truth, files: Path, margin: float, agrees: bool
) -> None:
    """PyTorch's margin in units of the tie; the graph decides otherwise in every frame."""
    half_margin = margin * TOLERANCES[INT8].tie / 2

    def decide_otherwise(outputs: dict[str, NDArray[np.float32]]) -> None:
        second, first = np.argsort(outputs["expression"], axis=1)[:, -2:].T
        frames = np.arange(len(first))
        values = outputs["expression"] = outputs["expression"].copy()
        middle = (values[frames, first] + values[frames, second]) / 2
        values[frames, second], values[frames, first] = middle + half_margin, middle - half_margin

    names = failed(check_head(with_outputs(truth, decide_otherwise), files / "head.onnx", INT8))
    assert ("expression, T = 300, agreement" not in names) is agrees


def test_ccc_of_what_hardly_varies_is_judged_by_its_offset() -> None:
    rng = np.random.default_rng(0)
    flat = np.full(300, 0.3, np.float32)
    noise = (1e-5 * rng.standard_normal(300)).astype(np.float32)
    assert steady_ccc(flat, flat + noise) > 0.999
    assert steady_ccc(flat, flat + 0.05) < 0.01
    wave = np.sin(np.arange(300) / 9).astype(np.float32)
    assert steady_ccc(wave, -wave) < -0.99
