"""Every committed Triton config says what the contract says, in Triton's own protobuf."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from affserve.export import engine_sets
from affserve.export.contract import (
    AFFECT,
    AFFECT_JPEG,
    CHUNK_FRAMES,
    CLIP_ENCODER,
    CLIP_ENCODER_JPEG,
    JPEG_DECODER,
    MODELS,
    MODELS_WITH_LABELS,
    MODELS_WITHOUT_FILES,
    NEXT_STATE,
    STATE,
    TEMPORAL_HEAD,
    TEMPORAL_STREAM,
    HeadDescription,
    StreamDescription,
    TensorSpec,
    default_head_description,
)
from affserve.export.engine.plans import COMPUTE_CAPABILITIES, plan_file
from affserve.export.engine.profile import ENCODER_PROFILE, HEAD_PROFILE, Profile
from affserve.export.engine_sets import GPU_ONNX_FILE, ONNX_FILE, RTX_PLAN_FILE
from affserve.export.repository.templates import read_config, write_configs
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import RepositoryError, ServerError
from affserve.train.windows import WINDOW_FRAMES

MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
CONFIGS = sorted(MODEL_REPOSITORY.rglob("*.pbtxt"))


def described(tensors: Any) -> list[TensorSpec]:
    from tritonclient.grpc import model_config_pb2

    return [
        TensorSpec(
            name=tensor.name,
            # The same type has one name in requests and another in configurations.
            datatype=model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"),
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
    assert not config.parameters, "labels and window are the heads' own: export writes them"


def test_export_writes_labels_and_window_where_clients_look_for_them(tmp_path: Path) -> None:
    write_configs(tmp_path, default_head_description(), version=1)
    for path in tmp_path.rglob("*.pbtxt"):
        told = {key: value.string_value for key, value in read_config(path).parameters.items()}
        if path.relative_to(tmp_path).parts[0] in MODELS_WITH_LABELS:
            assert HeadDescription.from_parameters(told, path.name) == default_head_description()
        else:
            assert not told


def test_a_repository_of_heads_that_stream_has_a_model_that_remembers(tmp_path: Path) -> None:
    stream = StreamDescription(reach_frames=352, lookahead_frames=10, state_values=322561)
    description = replace(default_head_description(), stream=stream)
    write_configs(tmp_path / "segments", default_head_description(), version=1)
    write_configs(tmp_path / "stream", description, version=1)
    assert not (tmp_path / "segments" / TEMPORAL_STREAM.name).exists()
    config = read_config(tmp_path / "stream" / TEMPORAL_STREAM.name / "config.pbtxt")
    (state,) = config.sequence_batching.state
    assert (state.input_name, state.output_name) == (STATE.name, NEXT_STATE.name)
    assert list(state.dims) == list(state.initial_state[0].dims) == [322561]
    assert config.sequence_batching.oldest.max_candidate_sequences >= 64
    for name in (TEMPORAL_STREAM.name, TEMPORAL_HEAD.name):
        told = read_config(tmp_path / "stream" / name / "config.pbtxt").parameters
        assert HeadDescription.from_parameters({k: v.string_value for k, v in told.items()}, name) == description


def test_every_model_has_its_configs_and_no_python() -> None:
    assert {path.name for path in MODEL_REPOSITORY.iterdir()} == set(MODELS)
    for model in MODELS_WITHOUT_FILES:  # the same for every engine
        assert [path.name for path in (MODEL_REPOSITORY / model).rglob("*.pbtxt")] == ["config.pbtxt"]
    assert not list(MODEL_REPOSITORY.rglob("*.py"))


ENSEMBLES = {
    AFFECT.name: [CLIP_ENCODER.name, TEMPORAL_HEAD.name],
    CLIP_ENCODER_JPEG.name: [JPEG_DECODER.name, CLIP_ENCODER.name],
    AFFECT_JPEG.name: [JPEG_DECODER.name, CLIP_ENCODER.name, TEMPORAL_HEAD.name],
}


@pytest.mark.parametrize("name", list(ENSEMBLES))
def test_an_ensemble_is_a_chain_of_models_that_are_there(name: str) -> None:
    """Every step takes what the step before it gives; the last one gives what the ensemble promises."""
    config, spec = read_config(MODEL_REPOSITORY / name / "config.pbtxt"), MODELS[name]
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ENSEMBLES[name]
    at_hand = {tensor.name for tensor in spec.inputs}
    for step in steps:
        model = MODELS[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.inputs}
        assert set(step.input_map.values()) == at_hand
        assert set(step.output_map) == {tensor.name for tensor in model.outputs}
        assert step.model_version == -1  # the one that is served
        at_hand = set(step.output_map.values())
    assert at_hand == {tensor.name for tensor in spec.outputs}


def test_jpeg_is_decoded_on_the_cpu_whatever_computes() -> None:
    config = read_config(MODEL_REPOSITORY / JPEG_DECODER.name / "config.pbtxt")
    (group,) = config.instance_group
    assert (config.backend, type(group).Kind.Name(group.kind), group.count) == ("jpeg", "KIND_CPU", 1)
    assert config.HasField("dynamic_batching")


TENSORRT = "config.pbtxt"
CPU = f"configs/{engine_sets.CPU}.pbtxt"
RTX = f"configs/{engine_sets.RTX}.pbtxt"
CUDA = f"configs/{engine_sets.CUDA}.pbtxt"
PROFILES = {CLIP_ENCODER.name: ENCODER_PROFILE, TEMPORAL_HEAD.name: HEAD_PROFILE}
both_models = pytest.mark.parametrize("model", list(PROFILES))


@both_models
@pytest.mark.parametrize(
    ("file", "engine", "kind", "artefact"),
    [
        (TENSORRT, "tensorrt_plan", "KIND_GPU", "model.plan"),
        (RTX, "tensorrt_plan", "KIND_GPU", RTX_PLAN_FILE),
        (CPU, "onnxruntime", "KIND_CPU", ONNX_FILE),
        (CUDA, "onnxruntime", "KIND_GPU", GPU_ONNX_FILE),
    ],
    ids=["tensorrt", "rtx", "cpu", "cuda"],
)
def test_each_server_gets_its_engine_device_and_file(
    model: str, file: str, engine: str, kind: str, artefact: str
) -> None:
    config = read_config(MODEL_REPOSITORY / model / file)
    assert (config.platform or config.backend) == engine
    assert config.default_model_filename == artefact
    (group,) = config.instance_group
    assert type(group).Kind.Name(group.kind) == kind
    assert list(group.gpus) == []  # one instance on every GPU, be there one or two
    assert group.count == 1


@both_models
def test_every_architecture_has_its_plan(model: str) -> None:
    config = read_config(MODEL_REPOSITORY / model / TENSORRT)
    assert dict(config.cc_model_filenames) == {one: plan_file(one) for one in COMPUTE_CAPABILITIES}


def engine_shape(config: Any, frames: int, dims: list[int]) -> tuple[int, ...]:
    """The shape that reaches the engine for a request of so many frames."""
    if config.max_batch_size:
        return (frames, *dims)
    return tuple(frames if length == -1 else length for length in config.input[0].reshape.shape)


def within(profile: Profile, name: str, shape: tuple[int, ...]) -> bool:
    smallest, _, largest = profile.shapes[name]
    return len(shape) == len(largest) and all(
        low <= length <= high for low, length, high in zip(smallest, shape, largest, strict=True)
    )


@both_models
def test_the_largest_request_is_the_largest_shape_of_the_plan(model: str) -> None:
    config, profile = read_config(MODEL_REPOSITORY / model / TENSORRT), PROFILES[model]
    (tensor,) = config.input
    largest = profile.shapes[tensor.name][2]
    longest = config.max_batch_size or WINDOW_FRAMES
    assert engine_shape(config, longest, list(tensor.dims)) == largest
    assert not within(profile, tensor.name, engine_shape(config, longest + 1, list(tensor.dims)))


@pytest.mark.parametrize("file", [TENSORRT, RTX, CUDA], ids=["tensorrt", "rtx", "cuda"])
def test_batches_are_made_of_chunks_and_end_at_the_plans_optimum(file: str) -> None:
    batching = read_config(MODEL_REPOSITORY / CLIP_ENCODER.name / file).dynamic_batching
    _, optimum, _ = ENCODER_PROFILE.shapes["frames"]
    assert list(batching.preferred_batch_size) == [CHUNK_FRAMES, optimum[0]]
    assert 0 < batching.max_queue_delay_microseconds <= 1000


@both_models
@pytest.mark.parametrize("file", [TENSORRT, RTX, CPU, CUDA], ids=["tensorrt", "rtx", "cpu", "cuda"])
def test_warm_up_is_a_request_that_the_model_takes(model: str, file: str) -> None:
    config, profile = read_config(MODEL_REPOSITORY / model / file), PROFILES[model]
    (tensor,) = config.input
    assert config.model_warmup
    for sample in config.model_warmup:
        ((name, warm),) = sample.inputs.items()
        assert (name, warm.data_type) == (tensor.name, tensor.data_type)
        frames = sample.batch_size if config.max_batch_size else warm.dims[0]
        expected = list(tensor.dims) if config.max_batch_size else [frames, *tensor.dims[1:]]
        assert list(warm.dims) == expected
        assert config.max_batch_size or sample.batch_size == 1
        assert within(profile, name, engine_shape(config, frames, list(warm.dims)))


def test_cuda_graphs_of_the_encoder_cover_small_batches_and_chunks() -> None:
    config = read_config(MODEL_REPOSITORY / CLIP_ENCODER.name / TENSORRT)
    covered: list[int] = []
    assert config.optimization.cuda.graphs
    for spec in config.optimization.cuda.graph_spec:
        lowest = spec.graph_lower_bound.batch_size or spec.batch_size
        covered += range(lowest, spec.batch_size + 1)
        # Triton compares a lower bound with the request only where the shape is spelled out.
        for one in (spec, spec.graph_lower_bound) if spec.HasField("graph_lower_bound") else (spec,):
            assert list(one.input["frames"].dim) == [224, 224, 3]
        assert within(ENCODER_PROFILE, "frames", (spec.batch_size, 224, 224, 3))
    assert covered == [*range(1, 9), 16, *config.dynamic_batching.preferred_batch_size]


def test_cuda_graph_of_the_head_is_for_whole_windows_only() -> None:
    config = read_config(MODEL_REPOSITORY / TEMPORAL_HEAD.name / TENSORRT)
    (spec,) = config.optimization.cuda.graph_spec
    assert spec.batch_size == config.max_batch_size == 0
    assert tuple(spec.input["features"].dim) == HEAD_PROFILE.shapes["features"][2]
    # A window shorter than the graph would attend to what an earlier one left behind it.
    assert not spec.HasField("graph_lower_bound")


def say_of_tensorrt_configs(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Start the wheel's Triton on the TensorRT configurations in `root`; return why it does not."""
    for model in MODELS:
        (root / model / "1").mkdir()
    # Our own checks would stop first: there is no GPU, and there are no plans.
    monkeypatch.setattr("affserve.export.server.server.machine_obstacle", lambda *_: None)
    monkeypatch.setattr("affserve.export.server.server.verify_repository", lambda *_, **__: None)
    config = ServerConfig(repository=root, engine=engine_sets.TENSORRT, drain_timeout_s=0)
    with pytest.raises(ServerError) as refused, TritonServer(config):
        pass
    return str(refused.value)


@pytest.mark.skipif(find_spec("pytriton") is None, reason="needs the extra affserve[serve]")
@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="this Triton may have TensorRT")
def test_triton_itself_reads_the_tensorrt_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the wheel's server says so, but only after it has read and validated a configuration."""
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "as_committed")
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "mistaken")
    said = say_of_tensorrt_configs(tmp_path / "as_committed", monkeypatch)
    for model in PROFILES:
        assert f"instance group {model}_0 of model {model} has kind KIND_GPU but no GPUs are available" in said
        path = tmp_path / "mistaken" / model / TENSORRT
        path.write_text(path.read_text().replace("graph_spec", "graph_specification"))
    assert "no GPUs" not in say_of_tensorrt_configs(tmp_path / "mistaken", monkeypatch)


def test_a_model_that_tells_no_labels_is_refused() -> None:
    with pytest.raises(RepositoryError, match="temporal_head tells no labels"):
        HeadDescription.from_parameters({"window_frames": "300"}, "temporal_head")
