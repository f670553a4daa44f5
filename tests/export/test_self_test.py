"""A server whose answers are not PyTorch's is never ready: it answers the golden inputs of its repository first."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tiny_server import needs_wheel, serve_command

from affserve.export import engine_sets
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.graphs.head import HeadGraph
from affserve.export.graphs.onnx_file import export_head
from affserve.export.repository.golden import read_golden
from affserve.export.repository.manifest import read_manifest
from affserve.export.repository.self_test import SelfTestError
from affserve.export.server.config import ServerConfig
from affserve.export.server.engine_choice import Obstacle
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import RepositoryError
from affserve.train.files import file_sha256
from affserve.train.models.temporal_head import TemporalHead, demo_head_config

pytestmark = needs_wheel
Fault = Callable[[Path], None]
ENCODER, HEAD = "clip_encoder/1/model.onnx", "temporal_head/1/model.onnx"


def reorder(graph: Any, tensor: str, order: list[int], axis: int, *, output: bool) -> None:
    """Put the values of a graph's input or output in another order on an axis."""
    inside = f"{tensor}_inside"
    for node in graph.node:
        names = node.output if output else node.input
        for k, name in enumerate(names):
            if name == tensor:
                names[k] = inside
    graph.initializer.append(numpy_helper.from_array(np.array(order), f"{tensor}_order"))
    source, target = (inside, tensor) if output else (tensor, inside)
    gather = helper.make_node("Gather", [source, f"{tensor}_order"], [target], axis=axis)
    graph.node.insert(len(graph.node) if output else 0, gather)


def swap_channels(root: Path) -> None:
    """What reads BGR for RGB."""
    model = onnx.load(root / ENCODER)
    reorder(model.graph, "frames", [2, 1, 0], 3, output=False)
    onnx.save(model, root / ENCODER)


def reverse_classes(root: Path) -> None:
    model = onnx.load(root / HEAD)
    reorder(model.graph, "expression", list(range(8))[::-1], 2, output=True)
    onnx.save(model, root / HEAD)


def take_another_head(root: Path) -> None:
    torch.manual_seed(77)
    export_head(HeadGraph([TemporalHead(demo_head_config())]).eval(), root / HEAD)


@pytest.fixture
def broken(repository: Path, tmp_path: Path) -> Callable[[Fault], Path]:
    """The repository with a fault that its hashes do not tell of, as if it had been there at export."""

    def make(fault: Fault) -> Path:
        root = tmp_path / "repository"
        shutil.copytree(repository, root)
        fault(root)
        manifest = json.loads((root / "manifest.json").read_text())
        for artefact in manifest["versions"]["1"]["artefacts"]:
            artefact["sha256"] = file_sha256(root / artefact["path"])
        manifest["configs"] = {name: file_sha256(root / name) for name in manifest["configs"]}
        (root / "manifest.json").write_text(json.dumps(manifest))
        return root

    return make


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (swap_channels, "features, "),
        (take_another_head, "valence_arousal, T = 300"),
        (reverse_classes, "expression, T = 300"),
    ],
)
def test_a_fault_in_the_answers_stops_the_start(broken: Callable[[Fault], Path], fault: Fault, told: str) -> None:
    server = TritonServer(ServerConfig(repository=broken(fault), engine=engine_sets.CPU, drain_timeout_s=0))
    with pytest.raises(SelfTestError, match="does not answer as PyTorch did when it was exported") as refused:
        server.start()
    assert [line for line in str(refused.value).splitlines() if line.startswith(f"  FAIL  {told}")], refused.value
    assert server.exit_code is None
    assert server.pid == 0


def test_the_command_ends_with_the_table_and_1(broken: Callable[[Fault], Path]) -> None:
    with serve_command(broken(reverse_classes), "--engine", "cpu") as (process, line):
        _, errors = process.communicate(timeout=120)
    assert line == ""
    assert process.returncode == 1
    assert "FAIL  expression, T = 300" in errors
    assert "Traceback" not in errors


def serve_wrongly_from_gpu(root: Path) -> None:
    """A set `cuda` that this machine can load, with another head."""
    for model in ("clip_encoder", "temporal_head"):
        text = (root / model / "configs/cpu.pbtxt").read_text()
        (root / model / "configs/cuda.pbtxt").write_text(text.replace("model.onnx", "model.gpu.onnx"))
    good = (root / HEAD).read_bytes()
    take_another_head(root)
    (root / HEAD).rename(root / "temporal_head/1/model.gpu.onnx")
    (root / HEAD).write_bytes(good)
    shutil.copy(root / ENCODER, root / "clip_encoder/1/model.gpu.onnx")
    manifest = json.loads((root / "manifest.json").read_text())
    artefacts = manifest["versions"]["1"]["artefacts"]
    for one in list(artefacts):
        artefacts.append(
            {**one, "use": "gpu", "engine": "", "path": one["path"].replace("model.onnx", "model.gpu.onnx")}
        )
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_auto_passes_on_to_the_next_set_and_says_why(
    broken: Callable[[Fault], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {engine_sets.CUDA, engine_sets.CPU}
    monkeypatch.setattr(
        "affserve.export.server.server.machine_obstacle",
        lambda name, _: None if name in there else Obstacle("not on this machine", "buy one"),
    )
    config = ServerConfig(repository=broken(serve_wrongly_from_gpu), drain_timeout_s=0)
    with SupervisedServer(config, on_event=lambda _: None) as server:
        line = server.describe()
    assert f"Triton 2.51.0, set {engine_sets.CPU}, " in line
    assert "not tensorrt, rtx: not on this machine; not cuda: " in line
    assert "with --engine cuda does not answer as PyTorch did" in line
    assert list(ENGINE_SETS)[-1] == engine_sets.CPU  # the last resort


def test_a_golden_file_that_was_altered_is_refused(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    golden = tmp_path / "repository/clip_encoder/1/golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"x")
    with pytest.raises(RepositoryError, match=r"golden\.npz was altered after export"):
        TritonServer(ServerConfig(repository=tmp_path / "repository", drain_timeout_s=0)).start()


def test_only_the_machines_own_limits_are_not_the_files_fault(repository: Path, tmp_path: Path) -> None:
    """What has come to a limit may be readable in a moment: a server waits, and says what the machine lacks."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        for read in (lambda: read_golden(repository, 1), lambda: read_manifest(repository)):
            with pytest.raises(OSError, match="Too many open files"):
                read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    with pytest.raises(RepositoryError, match=r"golden\.npz cannot be read: .*; write it again with: affserve export"):
        read_golden(tmp_path, 1)


def test_golden_inputs_that_hold_something_else_are_refused(repository: Path, tmp_path: Path) -> None:
    golden = tmp_path / "repository/clip_encoder/1/golden.npz"
    shutil.copytree(repository, tmp_path / "repository")
    for content in (b"", b"PK\x03\x04 of no archive", (repository / "temporal_head/1/golden.npz").read_bytes()):
        golden.write_bytes(content)
        with pytest.raises(RepositoryError, match=r"holds something else \(.*write it again with"):
            read_golden(tmp_path / "repository", 1)


def test_a_set_that_this_machine_cannot_run_is_refused_before_anything_starts(tiny: Path) -> None:
    with serve_command(tiny, "--engine", "rtx") as (process, line):
        _, errors = process.communicate(timeout=120)
    assert (line, process.returncode) == ("", 1)
    told = errors.strip().splitlines()[-1]
    assert "--engine rtx cannot be served: " in told
    assert "--engine cpu" in told or "pip install" in told
