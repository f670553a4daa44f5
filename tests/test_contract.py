"""Every committed Triton config says what the contract says, in Triton's own protobuf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from affserve.export.contract import (
    MODELS,
    ONNX_CONFIG_NAME,
    HeadDescription,
    TensorSpec,
    default_head_description,
)
from affserve.export.model_config import read_config
from affserve.train.errors import RepositoryError

MODEL_REPOSITORY = Path(__file__).parents[1] / "model_repository"
CONFIGS = sorted(MODEL_REPOSITORY.rglob("*.pbtxt"))


def described(tensors: Any) -> list[TensorSpec]:
    from tritonclient.grpc import model_config_pb2

    return [
        TensorSpec(
            name=tensor.name,
            datatype=model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_"),
            shape=tuple(tensor.dims),
        )
        for tensor in tensors
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(MODEL_REPOSITORY)) for path in CONFIGS])
def test_config_equals_contract(path: Path) -> None:
    config = read_config(path)
    spec = MODELS[path.relative_to(MODEL_REPOSITORY).parts[0]]
    assert config.name == spec.name
    assert config.max_batch_size == spec.max_batch_size
    assert described(config.input) == list(spec.inputs)
    assert described(config.output) == list(spec.outputs)
    if config.parameters:
        told = {key: value.string_value for key, value in config.parameters.items()}
        assert HeadDescription.from_parameters(told, path.name) == default_head_description()


def test_every_model_has_its_configs_and_no_python() -> None:
    assert {path.name for path in MODEL_REPOSITORY.iterdir()} == set(MODELS)
    for model in ("clip_encoder", "temporal_head"):
        assert read_config(MODEL_REPOSITORY / model / "config.pbtxt").platform == "tensorrt_plan"
        assert read_config(MODEL_REPOSITORY / model / f"configs/{ONNX_CONFIG_NAME}.pbtxt").backend == "onnxruntime"
    assert not list(MODEL_REPOSITORY.rglob("*.py"))


def test_description_of_a_head_for_one_task_survives_the_config() -> None:
    described = HeadDescription(labels={"action_units": ("AU1", "AU2")}, trained_on="synthetic", encoder="abc")
    assert HeadDescription.from_parameters(described.to_parameters(), "x") == described


def test_a_model_that_tells_no_labels_is_refused() -> None:
    with pytest.raises(RepositoryError, match="temporal_head tells no labels"):
        HeadDescription.from_parameters({"window_frames": "300"}, "temporal_head")
