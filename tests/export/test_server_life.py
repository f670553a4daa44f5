"""What keeps a server answering, and what is left when it ends: kills, hangs, signals, refused starts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_server import (
    RECOVERY_S,
    ask,
    assert_nothing_left,
    family,
    has_ended,
    leftovers,
    needs_wheel,
    run_in_process,
    seconds_until_answer,
    serve_command,
    server_name,
    stub_of,
    wait_for,
    write_head,
    write_repository,
)

from affserve.export.contract import FEATURE_WIDTH
from affserve.export.server import supervisor
from affserve.export.server.config import ServerConfig
from affserve.export.server.events import Event
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import ServerError

pytestmark = needs_wheel


@pytest.mark.parametrize("victim", ["stub", "server_twice"])
def test_recovers_on_the_same_address(tiny: Path, victim: str) -> None:
    events: list[Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        url, pid, name = running.grpc_url, running.pid, server_name(running.pid)
        for _ in range(2 if victim == "server_twice" else 1):
            os.kill(stub_of(pid, "clip_encoder") if victim == "stub" else running.pid, signal.SIGKILL)
            wait_for(lambda before=pid: running.pid not in (0, before))
            assert seconds_until_answer(url) < RECOVERY_S
            wait_for(lambda: events[-1]["event"] == "ready")
            pid = running.pid
        assert running.grpc_url == url
        assert events[0]["event"] == "restarting"
        assert not leftovers(name)


def test_a_stopped_model_that_answers_nobody_is_restarted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub that hangs is alive to the process table; only a true request shows it."""
    for name, value in {"PROBE_PERIOD_S": 0.2, "PROBE_TIMEOUT_S": 0.5, "STUCK_AFTER_S": 1.0}.items():
        monkeypatch.setattr(supervisor, name, value)
    events: list[Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        os.kill(stub_of(running.pid, "temporal_head"), signal.SIGSTOP)
        wait_for(lambda: events)
        assert "answered nothing" in str(events[0]["reason"])
        assert seconds_until_answer(running.grpc_url) < RECOVERY_S


def test_a_server_is_restarted_at_once_and_then_after_growing_pauses() -> None:
    assert [supervisor.pause_s(failures) for failures in (1, 2, 3, 4)] == [0, 0.5, 1, 2]


def test_gives_up_on_a_server_that_cannot_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    root = tmp_path / "repository"
    write_repository(root)
    with SupervisedServer(ServerConfig(repository=root, drain_timeout_s=0), on_event=lambda event: None) as running:
        (root / "clip_encoder" / "1" / "model.onnx").unlink()
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"failed 5 times .* has no clip_encoder/1/model\.onnx"):
            running.wait()


def test_command_drains_and_leaves_nothing(tmp_path: Path) -> None:
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
            stub = next(child for child in processes if "temporal_head_0_0" in " ".join(child.cmdline()))
            idle_s = stub.cpu_times().user
            in_flight = client.submit(ask, url, "temporal_head", {"features": features})
            wait_for(lambda: stub.cpu_times().user > idle_s + 0.05 or in_flight.done())
            assert not in_flight.done(), "answered before the signal: nothing would be drained"
            process.send_signal(signal.SIGTERM)
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
        # On its own the shared memory would stay for good.
        wait_for(lambda: all(has_ended(stub) for stub in stubs) and not leftovers(name))
    for folder in Path(tempfile.gettempdir()).glob(f"{name}*"):  # its removal is the task of who was stopped here
        shutil.rmtree(folder)


def test_killed_guardian_takes_the_server_along_and_it_comes_back(tiny: Path) -> None:
    events: list[Event] = []
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
    pid = running.pid
    try:
        time.sleep(0.5)  # time to be ended with the thread, and to be started again
        assert seconds_until_answer(running.grpc_url) < RECOVERY_S
        assert running.pid == pid
    finally:
        running.stop()


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
