"""`affserve status`: whether a server answers, and what it has done."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from rich.console import Console
from tiny_server import ask, make_frames, needs_wheel, pause, stub_of, wait_for, write_repository
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.commands.server_status import server_status, show
from affserve.export.machine.ports import choose_ports
from affserve.export.server.config import ServerConfig
from affserve.export.server.installation import find_installation, server_environment
from affserve.export.server.server import TritonServer
from affserve.train.errors import ServerError

pytestmark = needs_wheel


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    root = tmp_path_factory.mktemp("status") / "repository"
    write_repository(root)
    config = ServerConfig(repository=root, threads=1, http_port=0, drain_timeout_s=0)
    with TritonServer(config) as running:
        yield running


def answered(url: str) -> int:
    with contextlib.closing(triton.InferenceServerClient(url)) as client:
        statistics = client.get_inference_statistics("clip_encoder").model_stats
    return int(statistics[0].inference_stats.success.count)


def test_status_tells_versions_counts_and_times(server: TritonServer) -> None:
    before = answered(server.grpc_url)
    for _ in range(3):
        ask(server.grpc_url, "clip_encoder", {"frames": make_frames(32, seed=0)})
    wait_for(lambda: answered(server.grpc_url) == before + 3)  # Triton answers a moment before it counts
    (status,) = server_status(server.grpc_url)
    assert status.ready, status.problems
    assert status.problems == ()
    assert status.version == "2.51.0"
    assert status.engine == "onnxruntime fp32 on CPU"
    assert status.head is not None
    assert status.head.labels["valence_arousal"] == ("valence", "arousal")
    assert status.head.trained_on == "unknown"
    models = {model.name: model for model in status.models}
    assert models.keys() == {"clip_encoder", "temporal_head", "affect"}
    assert all(model.ready and model.answer_ms is not None and model.answer_ms > 0 for model in status.models)
    told = models["clip_encoder"].statistics
    assert told is not None
    assert told.version == "1"
    assert told.batches[32] == 3
    assert told.succeeded >= 3
    assert told.frames - told.succeeded == 3 * 31, "frames are counted, and requests"
    assert told.request_ms is not None
    assert told.queue_ms is not None
    assert told.compute_ms is not None
    assert 0 < told.queue_ms + told.compute_ms <= told.request_ms * (1 + 1e-9)


def test_json_is_one_object_for_each_server(server: TritonServer) -> None:
    nobody = choose_ports("127.0.0.1", {"grpc": 0})["grpc"]
    result = CliRunner().invoke(app, ["status", f"{server.grpc_url},127.0.0.1:{nobody}", "--json"])
    assert result.exit_code == 1, "one of the two does not answer"
    answering, silent = json.loads(result.stdout)
    assert answering["ready"] is True
    assert answering["head"]["window_frames"] == "300"
    assert [model["name"] for model in answering["models"]] == ["clip_encoder", "temporal_head", "affect"]
    assert silent["ready"] is False
    assert "affserve serve REPOSITORY" in silent["problems"][0]


def test_text_is_aligned_in_a_pipe_and_a_table_on_a_terminal(server: TritonServer) -> None:
    result = CliRunner().invoke(app, ["status", server.grpc_url])
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{server.grpc_url}: ready, serves version 1 of its repository, Triton 2.51.0")
    assert "\x1b" not in result.stdout
    header = next(k for k, line in enumerate(lines) if line.startswith("model"))
    end = lines[header].index("version") + len("version")
    assert [line[:end].split()[-1] for line in lines[header + 1 :]] == ["1"] * 3, lines
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    show(server_status(server.grpc_url), console)
    assert "\x1b[" in screen.getvalue()
    assert "temporal_head" in screen.getvalue()


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:8000", "localhost:http", ":8001"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="expected HOST:PORT"):
        server_status(url)


def test_wrong_port_says_so(server: TritonServer) -> None:
    """HTTP's port is the likeliest mistake."""
    (status,) = server_status(server.http_url, timeout_s=3)
    assert not status.ready
    assert "HTTP is spoken there: give the gRPC port" in status.problems[0]


def test_stuck_model_is_the_one_that_is_named(server: TritonServer) -> None:
    stub = stub_of(server.pid, "temporal_head")
    pause(stub)
    seen = []

    def the_encoder_answered_in_time() -> bool:
        seen[:] = server_status(server.grpc_url, timeout_s=5)
        return {model.name: model.ready for model in seen[0].models}["clip_encoder"]

    try:
        wait_for(the_encoder_answered_in_time)
    finally:
        os.kill(stub, signal.SIGCONT)
    assert not seen[0].ready
    assert [model.name for model in seen[0].models if model.ready] == ["clip_encoder"]
    assert seen[0].problems[0].startswith("temporal_head does not answer: ")


def test_server_of_something_else_is_told_apart(tmp_path: Path) -> None:
    """A Triton that serves another team's models."""
    installation = find_installation()
    ports = choose_ports("127.0.0.1", {"grpc": 0, "http": 0})
    (tmp_path / "empty").mkdir()
    command = [
        str(installation.binary),
        f"--model-repository={tmp_path / 'empty'}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false"),
        *(f"--http-port={ports['http']}", f"--grpc-port={ports['grpc']}"),
    ]
    with (tmp_path / "log").open("w") as log:
        other = psutil.Popen(command, env=server_environment(installation, tmp_path), stdout=log, stderr=log)
    try:
        url = f"127.0.0.1:{ports['grpc']}"
        with contextlib.closing(triton.InferenceServerClient(url)) as client:
            _until_live(client)
        (status,) = server_status(url)
    finally:
        other.kill()
        other.wait()
    assert not status.ready
    assert "has no clip_encoder, temporal_head, affect (its models: none)" in status.problems[0]


def _until_live(client: triton.InferenceServerClient) -> None:
    def live() -> bool:
        with contextlib.suppress(InferenceServerException):
            return bool(client.is_server_live())
        return False

    wait_for(live)
