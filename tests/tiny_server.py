"""A repository whose answers are simple arithmetic, the real tritonserver on it, and how tests ask and watch it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.export.contract import (
    FEATURE_WIDTH,
    JPEG_MODELS,
    MANIFEST_FILE,
    STRIDE_FRAMES,
    TASK_OUTPUTS,
    WINDOW_FRAMES,
    default_head_description,
)
from affserve.export.engine_sets import ONNX_RUNTIME
from affserve.export.repository.check import served_models
from affserve.export.repository.manifest import ArtefactRecord, Manifest, VersionRecord
from affserve.export.repository.templates import write_configs
from affserve.export.server.server import TritonServer
from affserve.train.files import file_sha256

needs_wheel = pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the extra affserve[serve]")

SHARED_MEMORY = Path("/dev/shm")
RECOVERY_S = 120.0  # only turns a hang into a failure: about 1.5 s on two idle cores
POISON = 255  # the encoder below fails on a frame whose first value is this

Frames = NDArray[np.uint8]
Tensors = dict[str, NDArray[Any]]


def write_repository(root: Path, engine: str = ONNX_RUNTIME, precision: str = "fp32") -> None:
    """Without the models for JPEG: every process less is a faster start."""
    computed_by = dict.fromkeys(("clip_encoder", "temporal_head"), (engine, precision))
    write_configs(root, default_head_description(), version=1, computed_by=computed_by)
    for name in JPEG_MODELS:
        shutil.rmtree(root / name)
    for model in served_models(root):
        (root / model.name / "1").mkdir()
    write_encoder(root / "clip_encoder" / "1" / "model.onnx")
    write_head(root / "temporal_head" / "1" / "model.onnx")
    vouch(root)


def vouch(root: Path) -> None:
    """Write the manifest of what lies there now: of a test's own changes nobody else would know."""
    written = sorted(path for path in root.rglob("*.*") if path.suffix in (".onnx", ".py", ".pbtxt"))
    files = {path.relative_to(root).as_posix(): file_sha256(path) for path in written}
    facts: dict[str, Any] = {"use": "cpu", "precision": "fp32", "bytes": 1, "flops": 1, "parity": ()}
    record = VersionRecord(
        trained_on="unknown",
        labels=default_head_description().labels,
        window_frames=WINDOW_FRAMES,
        stride_frames=STRIDE_FRAMES,
        encoder={"fingerprint": "unknown"},
        heads=(),
        built_with={},
        artefacts=tuple(
            ArtefactRecord(path=file, model=Path(file).parts[0], sha256=digest, **facts)
            for file, digest in files.items()
            if not file.endswith(".pbtxt")
        ),
    )
    configs = {file: digest for file, digest in files.items() if file.endswith(".pbtxt")}
    (root / MANIFEST_FILE).write_bytes(Manifest(served=1, versions={1: record}, configs=configs).to_json())


def healthy(server: TritonServer) -> bool:
    """Say whether every model answers."""
    with server.prober() as prober:
        try:
            for model in server.models:
                prober.infer(model, 10)
        except InferenceServerException:
            return False
    return True


def save(model: Any, path: Path) -> None:
    import onnx

    onnx.save(model, path)
    if len(path.parents) > 2 and (path.parents[2] / MANIFEST_FILE).exists():
        vouch(path.parents[2])


def projection() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(3, FEATURE_WIDTH)).astype(np.float32)


def write_encoder(path: Path) -> None:
    """features = (mean colour of the frame) @ projection, and a look-up that fails on POISON."""
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
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def write_head(path: Path, detours: int = 0) -> None:
    """Each output is activation(features @ weights of its own), after so many products with the identity."""
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
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


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


def ask(
    url: str, model: str, inputs: Tensors, outputs: list[str] | None = None, timeout_s: float = RECOVERY_S
) -> Tensors:
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


def wait_for_answer(url: str) -> None:
    """Ask as a retrying client does, until there is an answer from every model."""

    def answers() -> bool:
        with contextlib.suppress(InferenceServerException):
            ask(url, "affect", {"frames": make_frames(1, seed=0)}, timeout_s=20)  # a dead model may never refuse
            return True
        return False

    wait_for(answers)


def server_name(pid: int) -> str:
    """Return the identity that tritonserver `pid` was started with; its shared memory begins with it."""
    words: list[str] = psutil.Process(pid).cmdline()
    return next(word.removeprefix("--id=") for word in words if word.startswith("--id="))


def leftovers(name: str) -> list[str]:
    return [file.name for file in SHARED_MEMORY.glob(f"{name}*")]


def stub_of(pid: int, model: str) -> int:
    children: list[psutil.Process] = psutil.Process(pid).children()
    return int(next(child.pid for child in children if f"{model}_0_0" in child.cmdline()))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def pause(pid: int) -> None:
    """Stop a process, and wait until each of its threads has: on a busy machine some still answer for a while."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    wait_for(lambda: all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads.glob("*/stat")))


@contextlib.contextmanager
def serve_command(root: Path, *options: str, **streams: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `affserve serve` and yield it with the line it prints when it is ready."""
    command = [sys.executable, "-m", "affserve.client", "serve", str(root), "--grpc-port=0", *options]
    streams = {"stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **streams) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def url_of(line: str) -> str:
    """The gRPC address in the line that `affserve serve` prints when it is ready."""
    assert "grpc://" in line, line
    return line.split("grpc://")[1].split()[0].rstrip(":")


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


def process_of(url: str) -> psutil.Process:
    """Return the tritonserver that listens on a gRPC address."""
    flag = f"--grpc-port={url.rpartition(':')[2]}"
    return next(process for process in psutil.process_iter(["cmdline"]) if flag in (process.info["cmdline"] or []))


def http_of(url: str) -> str:
    """Return the HTTP address of the server with this gRPC address."""
    words: list[str] = process_of(url).cmdline()
    port = next(word.partition("=")[2] for word in words if word.startswith("--http-port="))
    return f"127.0.0.1:{port}"
