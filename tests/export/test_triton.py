"""Serving on the real tritonserver of the wheel, with graphs small enough to check by arithmetic."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tritonclient.grpc as triton
from tiny_server import (
    POISON,
    RECOVERY_S,
    Frames,
    Tensors,
    ask,
    expected_features,
    healthy,
    make_frames,
    needs_wheel,
    run_in_process,
    stub_of,
    vouch,
    wait_for,
    write_repository,
)
from tritonclient.utils import InferenceServerException

from affserve.export.contract import AFFECT, CLIP_ENCODER, FEATURE_WIDTH, TASK_OUTPUTS, TEMPORAL_HEAD
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.server import installation
from affserve.export.server.config import ServerConfig
from affserve.export.server.probe import Prober
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer

pytestmark = needs_wheel


@pytest.fixture(scope="module", params=[ONNX_RUNTIME, OPENVINO])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    """Every test that asks it runs once for each engine of CPUs: both answer and refuse alike."""
    root = tmp_path_factory.mktemp(engine) / "repository"
    write_repository(root, engine)
    with SupervisedServer(ServerConfig(repository=root, threads=1, drain_timeout_s=0)) as running:
        yield running


@pytest.mark.parametrize("count", [1, 32, 33, 300], ids=lambda count: f"{count}_frames")
def test_encoder_answers_what_onnxruntime_computes(
    server: SupervisedServer, engine: str, tiny: Path, count: int
) -> None:
    frames = make_frames(count, seed=count)
    served = ask(server.grpc_url, "clip_encoder", {"frames": frames})["features"]
    # Relative 1e-5: the sum of 50,176 pixels and the blocking of the product depend on how many frames share a run.
    np.testing.assert_allclose(served, expected_features(frames), rtol=1e-5, atol=1e-3)
    computed = run_in_process(tiny, "clip_encoder", {"frames": frames[:32]})["features"]
    tolerance = {ONNX_RUNTIME: 0.0, OPENVINO: 1e-5}[engine]
    np.testing.assert_allclose(served[:32], computed, rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("length", [1, 300], ids=lambda length: f"T_{length}")
def test_head_answers_what_onnxruntime_computes(server: SupervisedServer, tiny: Path, length: int) -> None:
    features = np.random.default_rng(length).normal(size=(length, FEATURE_WIDTH)).astype(np.float32)
    served = ask(server.grpc_url, "temporal_head", {"features": features})
    expected = run_in_process(tiny, "temporal_head", {"features": features[None]})
    assert served.keys() == TASK_OUTPUTS.keys()
    for name, values in served.items():
        np.testing.assert_allclose(values, expected[name][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 300], ids=lambda length: f"T_{length}")
def test_ensemble_is_encoder_then_head(server: SupervisedServer, length: int) -> None:
    frames = make_frames(length, seed=5)
    served = ask(server.grpc_url, "affect", {"frames": frames})
    features = ask(server.grpc_url, "clip_encoder", {"frames": frames})
    for name, values in ask(server.grpc_url, "temporal_head", features).items():
        np.testing.assert_array_equal(served[name], values)


def test_only_requested_outputs_are_sent(server: SupervisedServer) -> None:
    features = np.zeros((2, FEATURE_WIDTH), np.float32)
    assert list(ask(server.grpc_url, "temporal_head", {"features": features}, ["expression"])) == ["expression"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that answers single frames at once and everything else when 68 frames have met in a batch."""
    root = tmp_path_factory.mktemp("patient") / "repository"
    write_repository(root)
    config = root / "clip_encoder" / "configs" / "cpu.pbtxt"
    text = config.read_text()
    assert "dynamic_batching { }" in text
    batching = "preferred_batch_size: [ 1, 68 ] max_queue_delay_microseconds: 3600000000"
    config.write_text(text.replace("dynamic_batching { }", f"dynamic_batching {{ {batching} }}"))
    vouch(root)
    with TritonServer(ServerConfig(repository=root, drain_timeout_s=0)) as running:
        yield running


def ask_together(url: str, requests: list[Frames]) -> list[Tensors | BaseException]:
    """Send requests with 68 frames in all; return answers or errors in order."""
    assert sum(map(len, requests)) == 68
    with ThreadPoolExecutor(len(requests)) as clients:
        futures = [clients.submit(ask, url, "clip_encoder", {"frames": frames}) for frames in requests]
        return [future.exception() or future.result() for future in futures]


def test_batched_clients_get_their_own_answers(patient: TritonServer) -> None:
    requests = [make_frames(count, seed=count) for count in (40, 2, 3, 7, 2, 5, 9)]  # three slices
    for frames, answer in zip(requests, ask_together(patient.grpc_url, requests), strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_allclose(answer["features"], expected_features(frames), rtol=1e-5, atol=1e-3)
    with Prober(patient.grpc_url) as prober:
        wait_for(lambda: 68 in {one.name: one.batches for one in prober.statistics(RECOVERY_S)}["clip_encoder"])


def test_a_bad_request_fails_alone(patient: TritonServer) -> None:
    requests = [make_frames(11, seed=seed) for seed in range(6)]
    requests.insert(3, np.full((2, 224, 224, 3), POISON, np.uint8))
    for k, (frames, answer) in enumerate(zip(requests, ask_together(patient.grpc_url, requests), strict=True)):
        if k == 3:
            assert isinstance(answer, InferenceServerException)
            assert "clip_encoder cannot answer this request" in answer.message()
        else:
            assert isinstance(answer, dict), answer
            np.testing.assert_allclose(answer["features"], expected_features(frames), rtol=1e-5, atol=1e-3)


FRAME = np.zeros((1, 224, 224, 3), np.uint8)
WRONG_REQUESTS = [
    pytest.param("clip_encoder", {"frames": FRAME[:, :200]}, "unexpected shape", id="wrong_shape"),
    pytest.param("clip_encoder", {"frames": FRAME.astype(np.float32)}, "data-type", id="wrong_type"),
    pytest.param("clip_encoder", {"images": FRAME}, "unexpected inference input", id="wrong_name"),
    pytest.param("clip_encoder", {"frames": np.repeat(FRAME, 301, 0)}, "batch-size must be <= 300", id="too_many"),
    pytest.param("clip_encoder", {"frames": FRAME + np.uint8(POISON)}, "invalid index", id="runtime"),
    pytest.param("temporal_head", {"features": np.zeros((0, 512), np.float32)}, "expected 1 to 300", id="no_frames"),
    pytest.param("temporal_head", {"features": np.zeros((301, 512), np.float32)}, "expected 1 to 300", id="too_long"),
    pytest.param("temporal_head", {"features": np.zeros((5, 768), np.float32)}, "unexpected shape", id="wrong_width"),
    pytest.param("affect", {"frames": np.repeat(FRAME, 301, 0)}, "batch-size must be <= 300", id="ensemble_too_many"),
    pytest.param("no_such_model", {"frames": FRAME}, "no_such_model", id="unknown_model"),
]


@pytest.mark.parametrize(("model", "inputs", "message"), WRONG_REQUESTS)
def test_wrong_request_is_refused_without_paths(
    server: SupervisedServer, engine: str, model: str, inputs: Tensors, message: str
) -> None:
    if (engine, message) == (OPENVINO, "invalid index"):
        pytest.skip("OpenVINO looks up what it is told without looking")
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(server.grpc_url, model, inputs)
    text = caught.value.message()
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"), text
    assert "/" not in text
    assert ".py" not in text


def test_describe_names_address_engine_threads_and_models(server: SupervisedServer, engine: str) -> None:
    import onnxruntime

    line = server.describe()
    assert f" on grpc://{server.grpc_url}: " in line
    if engine == ONNX_RUNTIME:
        assert f"Triton 2.51.0, set cpu, ONNX Runtime {onnxruntime.__version__} CPU, 1 thread, " in line
    else:
        assert re.search(r"Triton 2\.51\.0, set cpu, OpenVINO [\d.]+ CPU, 1 thread, ", line)
    assert "models affect clip_encoder temporal_head" in line


@pytest.mark.parametrize("without", [(), (OPENVINO,)], ids=["openvino", "onnxruntime_in_its_place"])
def test_a_bf16_model_is_served_with_and_without_openvino(without: tuple[str, ...], tmp_path: Path) -> None:
    write_repository(tmp_path / "repository", OPENVINO, "bf16")
    config = ServerConfig(repository=tmp_path / "repository", without=without, drain_timeout_s=0)
    frames = make_frames(3, seed=1)
    with TritonServer(config) as server:
        assert ("in bf16" in server.engine, "ONNX Runtime" in server.engine) == (not without, bool(without))
        features = ask(server.grpc_url, "clip_encoder", {"frames": frames})["features"]
    expected = expected_features(frames)
    assert np.abs(features - expected).max() <= (1e-5 if without else 1e-2) * np.abs(expected).max()


def test_healthy_tells_a_dead_model_from_a_living_one(tiny: Path) -> None:
    with TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as unwatched:
        assert healthy(unwatched)
        os.kill(stub_of(unwatched.pid, "temporal_head"), signal.SIGKILL)
        assert not healthy(unwatched)


def test_contract_and_ensemble_are_what_is_served(server: SupervisedServer) -> None:
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        for model in (CLIP_ENCODER, TEMPORAL_HEAD, AFFECT):
            metadata = client.get_model_metadata(model.name)
            batch = [-1] * (model.max_batch_size > 0)
            assert [list(tensor.shape) for tensor in metadata.inputs] == [batch + list(s.shape) for s in model.inputs]
            assert {t.name: list(t.shape) for t in metadata.outputs} == {
                s.name: batch + list(s.shape) for s in model.outputs
            }


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The backend as Triton's stub imports it, with the wheel's own triton_python_backend_utils."""
    wheel = installation.find_installation().wheel
    assert wheel is not None
    paths = [str(wheel / "backends" / "python"), str(installation.BACKENDS)]
    sys.path += paths
    spec = importlib.util.spec_from_file_location("affserve_backend_model", installation.BACKEND_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for path in paths:
        sys.path.remove(path)


def test_instance_kind_decides_the_device(backend: ModuleType) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert backend.choose_providers("CPU", 0, both) == ["CPUExecutionProvider"]
    assert backend.choose_providers("GPU", 1, both)[0] == ("CUDAExecutionProvider", {"device_id": 1})
    with pytest.raises(backend.LoadError, match="onnxruntime-gpu"):
        backend.choose_providers("GPU", 0, ["CPUExecutionProvider"])


def test_a_gpu_computes_longer_slices(backend: ModuleType) -> None:
    assert backend.slice_frames(["CPUExecutionProvider"]) == 32
    assert backend.slice_frames(["CUDAExecutionProvider", "CPUExecutionProvider"]) == 128


def test_messages_lose_their_paths_and_nothing_else(backend: ModuleType) -> None:
    message = "Load of /srv/models/clip_encoder/1/model.onnx failed: idx=255 of 10/12"
    assert sys.modules["affserve_backend"].without_paths(message) == "Load of ... failed: idx=255 of 10/12"
