"""Serving on the real tritonserver of the wheel, with graphs small enough to check by arithmetic."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.export import supervisor, triton_installation
from affserve.export.contract import (
    AFFECT,
    CLIP_ENCODER,
    FEATURE_WIDTH,
    ONNX_FILE,
    TASK_OUTPUTS,
    TEMPORAL_HEAD,
    default_head_description,
)
from affserve.export.cores import cgroup_cpus, usable_cores
from affserve.export.manifest import CPU, ArtefactRecord, Manifest, VersionRecord
from affserve.export.plans import file_sha256
from affserve.export.repository_check import verify_repository
from affserve.export.supervisor import SupervisedServer
from affserve.export.triton import ServerConfig, TritonServer
from affserve.train.errors import MissingExtraError, RepositoryError, ServerError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the extra affserve[serve]")

CONFIGS = Path(__file__).parents[1] / "model_repository"
SHARED_MEMORY = Path("/dev/shm")
RECOVERY_S = 10.0  # a client that retries must be served again by then; about 1.5 s on two idle cores
POISON = 255  # the encoder below fails on a frame whose first value is this
SERVE = "import typer; from affserve.export.cli import serve; typer.run(serve)"

Frames = NDArray[np.uint8]
Tensors = dict[str, NDArray[Any]]


# --- a repository with known arithmetic ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "repository"
    write_repository(root)
    return root


def write_repository(root: Path) -> None:
    shutil.copytree(CONFIGS, root)
    for name in ("clip_encoder", "temporal_head", "affect"):
        (root / name / "1").mkdir()
    write_encoder(root / "clip_encoder" / "1" / "model.onnx")
    write_head(root / "temporal_head" / "1" / "model.onnx")


def projection() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(3, FEATURE_WIDTH)).astype(np.float32)


def write_encoder(path: Path) -> None:
    """features = (mean colour of the frame) @ projection, and a look-up that fails on POISON."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants: Tensors = {
        "height_width": np.array([1, 2], np.int64),
        "projection": projection(),
        "table": np.zeros((POISON, 1), np.float32),
        "zero": np.zeros(1, np.int64),
        "one": np.ones(1, np.int64),
        "pixels": np.array([-1, 224 * 224 * 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "height_width"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "projection"], ["projected"]),
        helper.make_node("Reshape", ["frames", "pixels"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "one", "one"], ["first"]),
        helper.make_node("Cast", ["first"], ["index"], to=TensorProto.INT64),
        helper.make_node("GatherND", ["table", "index"], ["looked_up"]),
        helper.make_node("Add", ["projected", "looked_up"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 224, 224, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURE_WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def write_head(path: Path, detours: int = 0) -> None:
    """Each output is activation(features @ weights of its own), after so many products with the identity."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    activations = {"valence_arousal": "Tanh", "expression": "Softmax", "action_units": "Sigmoid"}
    weights = [numpy_helper.from_array(np.eye(FEATURE_WIDTH, dtype=np.float32), "identity")]
    nodes = [helper.make_node("MatMul", [f"step_{i}", "identity"], [f"step_{i + 1}"]) for i in range(detours)]
    outputs = []
    for name, spec in TASK_OUTPUTS.items():
        width = spec.shape[-1]
        values = np.random.default_rng(width).normal(scale=0.001, size=(FEATURE_WIDTH, width)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weights_{name}"))
        nodes.append(helper.make_node("MatMul", [f"step_{detours}", f"weights_{name}"], [f"raw_{name}"]))
        nodes.append(helper.make_node(activations[name], [f"raw_{name}"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "T", width]))
    nodes.insert(0, helper.make_node("Identity", ["features"], ["step_0"]))
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, "T", FEATURE_WIDTH])
    graph = helper.make_graph(nodes, "head", [features], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def make_frames(count: int, seed: int) -> Frames:
    """Plain frames of random colours, none of them poisoned: (count, 224, 224, 3)."""
    colours = np.random.default_rng(seed).integers(0, POISON, size=(count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, 224, 224, 3)).copy()


def expected_features(frames: Frames) -> NDArray[np.float32]:
    return np.asarray(frames[:, 0, 0, :].astype(np.float32) @ projection())


def run_in_process(root: Path, model: str, feeds: Tensors) -> Tensors:
    import onnxruntime

    session = onnxruntime.InferenceSession(root / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


# --- asking a server ---


def ask(url: str, model: str, inputs: Tensors, outputs: list[str] | None = None, timeout_s: float = 20) -> Tensors:
    kinds = {"uint8": "UINT8", "float32": "FP32"}
    with contextlib.closing(
        triton.InferenceServerClient(url, channel_args=[("grpc.use_local_subchannel_pool", 1)])
    ) as client:
        tensors = []
        for name, values in inputs.items():
            tensors.append(triton.InferInput(name, list(values.shape), kinds[values.dtype.name]))
            tensors[-1].set_data_from_numpy(values)
        wanted = None if outputs is None else [triton.InferRequestedOutput(name) for name in outputs]
        result = client.infer(model, tensors, outputs=wanted, client_timeout=timeout_s)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def seconds_until_answer(url: str) -> float:
    """Ask as a retrying client does, until there is an answer from every model; return how long that took."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < RECOVERY_S:
        with contextlib.suppress(InferenceServerException):
            ask(url, "affect", {"frames": make_frames(1, seed=0)}, timeout_s=2)
            return waited
        time.sleep(0.05)
    pytest.fail(f"no answer on {url} within {RECOVERY_S} s")


def server_name(pid: int) -> str:
    """Return the identity that tritonserver `pid` was started with; its shared memory begins with it."""
    words: list[str] = psutil.Process(pid).cmdline()
    return next(word.removeprefix("--id=") for word in words if word.startswith("--id="))


def leftovers(name: str) -> list[str]:
    return [file.name for file in SHARED_MEMORY.glob(f"{name}*")]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[SupervisedServer]:
    with SupervisedServer(ServerConfig(repository=tiny, threads=1, drain_timeout_s=0)) as running:
        yield running


# --- right answers ---


@pytest.mark.parametrize("count", [1, 32, 33, 300], ids=lambda count: f"{count}_frames")
def test_encoder_answers_what_onnxruntime_computes(server: SupervisedServer, tiny: Path, count: int) -> None:
    frames = make_frames(count, seed=count)
    served = ask(server.grpc_url, "clip_encoder", {"frames": frames})["features"]
    # Relative 1e-5: the sum of 50,176 pixels and the blocking of the product depend on how many frames share a run.
    np.testing.assert_allclose(served, expected_features(frames), rtol=1e-5, atol=1e-3)
    chunk = frames[:32]
    np.testing.assert_array_equal(served[:32], run_in_process(tiny, "clip_encoder", {"frames": chunk})["features"])


@pytest.mark.parametrize("length", [1, 300], ids=lambda length: f"T_{length}")
def test_head_answers_what_onnxruntime_computes(server: SupervisedServer, tiny: Path, length: int) -> None:
    features = np.random.default_rng(length).normal(size=(length, FEATURE_WIDTH)).astype(np.float32)
    served = ask(server.grpc_url, "temporal_head", {"features": features})
    expected = run_in_process(tiny, "temporal_head", {"features": features[None]})
    assert served.keys() == TASK_OUTPUTS.keys()
    for name, values in served.items():
        np.testing.assert_allclose(values, expected[name][0], rtol=1e-6, atol=1e-6)


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
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    """A server that waits for company, so that requests sent together share a batch."""
    root = tmp_path_factory.mktemp("patient") / "repository"
    write_repository(root)
    config = root / "clip_encoder" / "configs" / "onnx.pbtxt"
    text = config.read_text()
    assert "dynamic_batching { }" in text
    config.write_text(text.replace("dynamic_batching { }", "dynamic_batching { max_queue_delay_microseconds: 400000 }"))
    with SupervisedServer(ServerConfig(repository=root, drain_timeout_s=0)) as running:
        yield running


def ask_together(url: str, requests: list[Frames]) -> tuple[list[Tensors | BaseException], int]:
    """Send the requests at once; return answers or errors in order, and in how many batches they were computed."""
    before = executions(url)
    with ThreadPoolExecutor(len(requests)) as clients:
        futures = [clients.submit(ask, url, "clip_encoder", {"frames": frames}) for frames in requests]
        answers = [future.exception() or future.result() for future in futures]
    return answers, executions(url) - before


def executions(url: str) -> int:
    with contextlib.closing(triton.InferenceServerClient(url)) as client:
        statistics = client.get_inference_statistics("clip_encoder").model_stats[0]
    return int(statistics.execution_count)


def test_batched_clients_get_their_own_answers(patient: SupervisedServer) -> None:
    requests = [make_frames(count, seed=count) for count in (1, 40, 2, 3, 7, 1, 5, 9)]  # 68 frames: three slices
    answers, batches = ask_together(patient.grpc_url, requests)
    assert batches < len(requests), "nothing was batched, so nothing was tested"
    for frames, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_allclose(answer["features"], expected_features(frames), rtol=1e-5, atol=1e-3)


def test_a_bad_request_fails_alone(patient: SupervisedServer) -> None:
    requests = [make_frames(2, seed=seed) for seed in range(6)]
    requests.insert(3, np.full((2, 224, 224, 3), POISON, np.uint8))
    answers, batches = ask_together(patient.grpc_url, requests)
    assert batches <= 2, "nothing was batched, so nothing was tested"
    for k, (frames, answer) in enumerate(zip(requests, answers, strict=True)):
        if k == 3:
            assert isinstance(answer, InferenceServerException)
            assert "clip_encoder cannot answer this request" in answer.message()
        else:
            assert isinstance(answer, dict), answer
            np.testing.assert_allclose(answer["features"], expected_features(frames), rtol=1e-5, atol=1e-3)


# --- wrong requests ---

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
    server: SupervisedServer, model: str, inputs: Tensors, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(server.grpc_url, model, inputs)
    text = caught.value.message()
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"), text
    assert "/" not in text
    assert ".py" not in text


def test_callers_cannot_change_models_or_logs(server: SupervisedServer) -> None:
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("affect")
        with pytest.raises(InferenceServerException, match="restricted"):
            client.update_log_settings({"log_info": False})


# --- what the server tells ---


def test_describe_names_address_engine_threads_and_models(server: SupervisedServer) -> None:
    import onnxruntime

    line = server.describe()
    assert f"grpc://{server.grpc_url} http://{server.http_url}" in line
    assert f"Triton 2.51.0, ONNX Runtime {onnxruntime.__version__} CPU, 1 thread, " in line
    assert line.endswith("models affect clip_encoder temporal_head")


def test_healthy_tells_a_dead_model_from_a_living_one(tiny: Path) -> None:
    with TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as unwatched:
        assert unwatched.healthy()
        os.kill(stub_of(unwatched.pid, "temporal_head"), signal.SIGKILL)
        assert not unwatched.healthy()


def stub_of(pid: int, model: str) -> int:
    children: list[psutil.Process] = psutil.Process(pid).children()
    return int(next(child.pid for child in children if f"{model}_0_0" in child.cmdline()))


# --- recovery ---


@pytest.mark.parametrize("victim", ["stub", "server", "stopped_twice"])
def test_recovers_on_the_same_address(tiny: Path, victim: str) -> None:
    events: list[supervisor.Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        url, pid, name = running.grpc_url, running.pid, server_name(running.pid)
        for _ in range(2 if victim == "stopped_twice" else 1):
            os.kill(stub_of(pid, "clip_encoder") if victim == "stub" else running.pid, signal.SIGKILL)
            wait_for(lambda before=pid: running.pid not in (0, before))
            assert seconds_until_answer(url) < RECOVERY_S
            wait_for(lambda: events[-1]["event"] == "ready")
            pid = running.pid
        assert running.grpc_url == url
        assert events[0]["event"] == "restarting"
        assert not leftovers(name)


def wait_for(condition: Any, timeout_s: float = RECOVERY_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_stopped_model_that_answers_nobody_is_restarted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub that hangs is alive to the process table; only a true request shows it."""
    for name, value in {"PROBE_PERIOD_S": 0.2, "PROBE_TIMEOUT_S": 0.5, "STUCK_AFTER_S": 1.0}.items():
        monkeypatch.setattr(supervisor, name, value)
    events: list[supervisor.Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        os.kill(stub_of(running.pid, "temporal_head"), signal.SIGSTOP)
        wait_for(lambda: events)
        assert "answered nothing" in str(events[0]["reason"])
        assert seconds_until_answer(running.grpc_url) < RECOVERY_S


def test_gives_up_on_a_server_that_cannot_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    root = tmp_path / "repository"
    write_repository(root)
    with SupervisedServer(ServerConfig(repository=root, drain_timeout_s=0), on_event=lambda event: None) as running:
        (root / "clip_encoder" / "1" / "model.onnx").unlink()
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"failed 5 times .* has no clip_encoder/1/model\.onnx"):
            running.wait()


# --- the command ---


@contextlib.contextmanager
def serve_command(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `affserve serve` and yield it with the line it prints when it is ready."""
    command = [sys.executable, "-c", SERVE, str(root), "--grpc-port=0", "--http-port=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def family(process: subprocess.Popen[str]) -> tuple[list[psutil.Process], str]:
    """Return the processes below the command, and the identity of its tritonserver."""
    below = psutil.Process(process.pid).children(recursive=True)
    return below, server_name(next(child.pid for child in below if child.name() == "tritonserver"))


def has_ended(process: psutil.Process) -> bool:
    """Say whether it is gone; a zombie is, only the machine's init has not noticed yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def assert_nothing_left(processes: list[psutil.Process], name: str) -> None:
    wait_for(lambda: all(has_ended(process) for process in processes))
    assert not leftovers(name)
    assert not list(Path(tempfile.gettempdir()).glob(f"{name}*"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_command_drains_and_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    root = tmp_path / "repository"
    write_repository(root)
    write_head(root / "temporal_head" / "1" / "model.onnx", detours=500)  # a second or so for 300 frames
    features = np.random.default_rng(0).normal(size=(300, FEATURE_WIDTH)).astype(np.float32)
    with serve_command(root, "--threads=1") as (process, line):
        assert line.startswith(f"serving {root} on grpc://127.0.0.1:"), process.stderr and process.stderr.read()
        processes, name = family(process)
        assert leftovers(name), "the server's shared memory has another name: the check below would prove nothing"
        url = line.split("grpc://")[1].split()[0]
        with ThreadPoolExecutor(1) as client:
            in_flight = client.submit(ask, url, "temporal_head", {"features": features})
            time.sleep(0.25)
            assert not in_flight.done(), "answered before the signal: nothing would be drained"
            process.send_signal(how)
            served = in_flight.result()
        write_head(root / "temporal_head" / "1" / "model.onnx")
        expected = run_in_process(root, "temporal_head", {"features": features[None]})
        np.testing.assert_allclose(served["expression"], expected["expression"][0], rtol=1e-5)
        assert process.wait(RECOVERY_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert_nothing_left(processes, name)


def test_server_does_not_outlive_a_killed_command(tiny: Path) -> None:
    with serve_command(tiny) as (process, _):
        processes, name = family(process)
        process.kill()
        assert_nothing_left(processes, name)


def test_stubs_and_shared_memory_go_with_the_server_when_nobody_watches(tiny: Path) -> None:
    with serve_command(tiny) as (process, _):
        processes, name = family(process)
        stubs = [child for child in processes if "triton_python" in child.name()]
        process.send_signal(signal.SIGSTOP)
        next(child for child in processes if child.name() == "tritonserver").kill()
        assert stubs
        # On their own the stubs would linger for seconds, and the shared memory for good.
        wait_for(lambda: all(has_ended(stub) for stub in stubs) and not leftovers(name), timeout_s=2)
    for folder in Path(tempfile.gettempdir()).glob(f"{name}*"):  # its removal is the task of who was stopped here
        shutil.rmtree(folder)


def test_killed_guardian_takes_the_server_along_and_it_comes_back(tiny: Path) -> None:
    events: list[supervisor.Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        tritonserver = psutil.Process(running.pid)
        stubs = tritonserver.children(recursive=True)
        assert stubs
        tritonserver.parent().kill()
        wait_for(lambda: all(has_ended(process) for process in (tritonserver, *stubs)))
        wait_for(lambda: events and events[-1]["event"] == "ready")
        assert seconds_until_answer(running.grpc_url) < RECOVERY_S


def test_context_started_in_a_thread_that_ends_keeps_serving(tiny: Path) -> None:
    running = SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0))
    starter = threading.Thread(target=running.start)
    starter.start()
    starter.join()
    try:
        time.sleep(0.5)
        assert seconds_until_answer(running.grpc_url) < 1
    finally:
        running.stop()


# --- refusals ---


def test_broken_graph_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_repository(root)
    (root / "clip_encoder" / "1" / "model.onnx").write_bytes(b"not a graph")
    server = TritonServer(ServerConfig(repository=root, drain_timeout_s=0))
    with pytest.raises(ServerError, match=r"clip_encoder: ONNX Runtime cannot load model\.onnx") as caught:
        server.start()
    assert "affserve export" in str(caught.value)
    assert server.pid == 0
    assert server.exit_code is None


def test_graph_that_does_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    write_repository(root)
    write_head(root / "clip_encoder" / "1" / "model.onnx")
    with pytest.raises(ServerError, match="clip_encoder: the graph has no input frames; it has features"):
        TritonServer(ServerConfig(repository=root, drain_timeout_s=0)).start()


def test_taken_port_is_an_error_that_names_it(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}.*--grpc-port"):
            TritonServer(ServerConfig(repository=tiny, grpc_port=port)).start()


def test_listening_beyond_this_machine_is_refused(tiny: Path) -> None:
    with pytest.raises(ServerError, match=r"2\.51 will not listen on 0\.0\.0\.0"):
        TritonServer(ServerConfig(repository=tiny, host="0.0.0.0")).start()


def test_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_installation, "WHEEL_MODULE", "pytriton_is_not_here")
    with pytest.raises(MissingExtraError, match=r"pip install 'affserve\[serve\]'"):
        triton_installation.find_installation()


# --- the repository check ---

BREAKAGES = [
    pytest.param("clip_encoder/1/model.onnx", "has no clip_encoder/1/model.onnx; write it with", id="no_graph"),
    pytest.param("temporal_head", "has no temporal_head/config.pbtxt", id="no_model"),
    pytest.param("affect/1", "has no affect/1/, the empty folder", id="no_ensemble_version"),
    pytest.param("", "is not a folder; write a model repository with", id="nothing"),
]


@pytest.mark.parametrize(("gone", "message"), BREAKAGES)
def test_incomplete_repository_is_refused(tmp_path: Path, gone: str, message: str) -> None:
    root = tmp_path / "repository"
    write_repository(root)
    path = root / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(RepositoryError, match=message):
        TritonServer(ServerConfig(repository=root, drain_timeout_s=0)).start()


@pytest.fixture
def with_manifest(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_repository(root)
    artefacts = tuple(
        ArtefactRecord(
            path=f"{model.name}/1/{ONNX_FILE}",
            model=model.name,
            use=CPU,
            precision="fp32",
            sha256=file_sha256(root / model.name / "1" / ONNX_FILE),
            bytes=0,
            flops=0,
            parity=(),
        )
        for model in (CLIP_ENCODER, TEMPORAL_HEAD)
    )
    described = default_head_description()
    version = VersionRecord(
        trained_on="synthetic",
        labels=described.labels,
        window_frames=described.window_frames,
        stride_frames=described.stride_frames,
        encoder={"fingerprint": "unknown"},
        heads=(),
        built_with={},
        artefacts=artefacts,
    )
    configs = {path.relative_to(root).as_posix(): file_sha256(path) for path in root.rglob("*.pbtxt")}
    manifest = Manifest(served=1, versions={1: version}, configs=configs)
    (root / "manifest.json").write_bytes(manifest.to_json())
    return root


def test_manifest_of_an_unaltered_repository_is_returned(with_manifest: Path, tiny: Path) -> None:
    manifest = verify_repository(with_manifest)
    assert manifest is not None
    assert manifest.versions[1].trained_on == "synthetic"
    assert verify_repository(tiny) is None


def test_altered_file_is_refused(with_manifest: Path) -> None:
    write_head(with_manifest / "clip_encoder" / "1" / "model.onnx")
    with pytest.raises(RepositoryError, match=r"clip_encoder/1/model\.onnx was altered after export"):
        TritonServer(ServerConfig(repository=with_manifest)).start()


def test_version_that_the_manifest_does_not_know_is_refused(with_manifest: Path) -> None:
    shutil.copytree(with_manifest / "clip_encoder" / "1", with_manifest / "clip_encoder" / "2")
    with pytest.raises(RepositoryError, match=r"clip_encoder/2/model\.onnx would be served"):
        verify_repository(with_manifest)


@pytest.mark.parametrize(
    "text",
    ["{", '{"schema": 99}', '{"schema": 2}', '{"schema": 2, "served": 1, "versions": {}, "configs": {}}', "[]"],
    ids=["cut_off", "newer", "empty", "nothing_served", "list"],
)
def test_unreadable_manifest_is_refused(with_manifest: Path, text: str) -> None:
    (with_manifest / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json.*affserve export"):
        verify_repository(with_manifest)


# --- threads ---


def test_affinity_limits_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        pytest.param("0::/pod/app", {"pod/cpu.max": "150000 100000", "pod/app/cpu.max": "max 100000"}, 1.5, id="v2"),
        pytest.param("0::/app", {"app/cpu.max": "max 100000"}, None, id="v2_unlimited"),
        pytest.param(
            "4:cpu,cpuacct:/app",
            {"cpu/app/cpu.cfs_quota_us": "400000", "cpu/app/cpu.cfs_period_us": "100000"},
            4.0,
            id="v1",
        ),
        pytest.param(
            "1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, id="v1_unlimited"
        ),
    ],
)
def test_container_quota_is_read(tmp_path: Path, membership: str, files: dict[str, str], cpus: float | None) -> None:
    (tmp_path / "membership").write_text(f"9:pids:/app\n{membership}\n")
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "membership") == cpus


# --- the backend's own rules ---


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The backend as Triton's stub imports it, with the wheel's own triton_python_backend_utils."""
    wheel = triton_installation.find_installation().wheel
    assert wheel is not None
    sys.path.append(str(wheel / "backends" / "python"))
    spec = importlib.util.spec_from_file_location("affserve_backend_model", triton_installation.BACKEND_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(wheel / "backends" / "python"))


def test_instance_kind_decides_the_device(backend: ModuleType) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert backend.choose_providers("CPU", 0, both) == ["CPUExecutionProvider"]
    assert backend.choose_providers("GPU", 1, both)[0] == ("CUDAExecutionProvider", {"device_id": 1})
    with pytest.raises(backend.LoadError, match="onnxruntime-gpu"):
        backend.choose_providers("GPU", 0, ["CPUExecutionProvider"])


def test_messages_lose_their_paths_and_nothing_else(backend: ModuleType) -> None:
    message = "Load of /srv/models/clip_encoder/1/model.onnx failed: idx=255 of 10/12"
    assert backend.without_paths(message) == "Load of ... failed: idx=255 of 10/12"


def test_contract_and_ensemble_are_what_is_served(server: SupervisedServer) -> None:
    with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
        for model in (CLIP_ENCODER, TEMPORAL_HEAD, AFFECT):
            metadata = client.get_model_metadata(model.name)
            batch = [-1] * (model.max_batch_size > 0)
            assert [list(tensor.shape) for tensor in metadata.inputs] == [batch + list(s.shape) for s in model.inputs]
            assert {t.name: list(t.shape) for t in metadata.outputs} == {
                s.name: batch + list(s.shape) for s in model.outputs
            }
