"""What keeps a server answering, and what is left when it ends: kills, hangs, signals, refused starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_server import (
    RECOVERY_S,
    Tensors,
    ask,
    assert_nothing_left,
    family,
    has_ended,
    healthy,
    leftovers,
    needs_wheel,
    pause,
    run_in_process,
    serve_command,
    server_name,
    stub_of,
    url_of,
    vouch,
    wait_for,
    wait_for_answer,
    write_head,
)

from affserve.export.contract import FEATURE_WIDTH, MANIFEST_FILE
from affserve.export.server import own_folder, supervisor
from affserve.export.server.config import ServerConfig
from affserve.export.server.events import Event
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import ServerError

pytestmark = needs_wheel


def test_paths_with_a_space_are_served(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts its Python processes through a shell, which would take `my temporary` for two words."""
    shutil.copytree(tiny, tmp_path / "my repository")
    (tmp_path / "my temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "my temporary"))
    config = ServerConfig(repository=tmp_path / "my repository", drain_timeout_s=0)
    with TritonServer(config) as server:
        assert healthy(server)

    monkeypatch.setattr(own_folder, "_PLAIN", re.compile(".*"))  # all the same: noticed at once, with its own words
    with pytest.raises(ServerError, match=r"process behind a model has ended. Its log says:\n.*my: No such file"):
        TritonServer(config).start()


def test_a_watching_server_changes_over_to_what_may_be_served(repository: Path, tmp_path: Path) -> None:
    """Another version is one file more and another number in the configurations and the manifest."""
    root, events = tmp_path / "repository", list[Event]()
    shutil.copytree(repository, root)
    config = ServerConfig(repository=root, watch=True)
    with SupervisedServer(config, on_event=events.append) as running:
        manifest = (root / MANIFEST_FILE).read_text()
        (root / MANIFEST_FILE).write_text(manifest.replace('"sha256": "', '"sha256": "0'))
        wait_for(lambda: any(event["event"] == "not changed over" for event in events))
        pid = running.pid
        (root / MANIFEST_FILE).write_text(manifest + "\n")
        wait_for(lambda: events[-1]["event"] == "ready")
        assert running.pid != pid
        assert [event["event"] for event in events] == ["not changed over", "restarting", "ready"]
        assert events[-1]["version"] == 1
        wait_for_answer(running.grpc_url)


@pytest.mark.parametrize("victim", ["stub", "server_twice"])
def test_recovers_on_the_same_address(tiny: Path, victim: str) -> None:
    events: list[Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        url, pid, name = running.grpc_url, running.pid, server_name(running.pid)
        for _ in range(2 if victim == "server_twice" else 1):
            os.kill(stub_of(pid, "clip_encoder") if victim == "stub" else running.pid, signal.SIGKILL)
            wait_for(lambda before=pid: running.pid not in (0, before))
            wait_for_answer(url)
            wait_for(lambda: events[-1]["event"] == "ready")
            pid = running.pid
        assert running.grpc_url == url
        assert events[0]["event"] == "restarting"
        assert not leftovers(name)


def test_a_stopped_model_that_answers_nobody_is_restarted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub that hangs is alive to the process table; only a true request shows it."""
    events: list[Event] = []

    def be_patient_again(event: Event) -> None:
        monkeypatch.undo()
        events.append(event)

    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=be_patient_again) as running:
        pause(stub_of(running.pid, "temporal_head"))
        for name in ("PROBE_PERIOD_S", "PROBE_TIMEOUT_S", "STUCK_AFTER_S"):
            monkeypatch.setattr(supervisor, name, 0.1)
        wait_for(lambda: events)
        # Whichever notices first: the supervisor, or Triton while it waits for the stub.
        assert any(words in str(events[0]["reason"]) for words in ("answered nothing", "is not healthy"))
        wait_for_answer(running.grpc_url)


def test_the_model_that_has_been_silent_for_longest_counts() -> None:
    assert supervisor.silence([0.0, 100.0], now_s=120) is None
    assert supervisor.silence([0.0, 100.0], now_s=121) == "a model has answered nothing for 121 s"


def test_failures_count_for_a_quarter_of_an_hour_and_pauses_between_restarts_grow() -> None:
    failures: deque[float] = deque()
    assert [supervisor.count_failure(failures, now_s) for now_s in (0, 150, 900, 901, 1050, 3000)] == [1, 2, 3, 3, 4, 1]
    assert [supervisor.pause_s(failures) for failures in (1, 2, 3, 4, 8, 9, 900)] == [0, 0.5, 1, 2, 32, 60, 60]


def test_gives_up_on_a_server_that_cannot_live(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    with SupervisedServer(ServerConfig(repository=own, drain_timeout_s=0), on_event=lambda event: None) as running:
        (own / "clip_encoder" / "1" / "model.onnx").unlink()
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"after 3 attempts: .* has no clip_encoder/1/model\.onnx"):
            running.wait()


def test_command_drains_and_leaves_nothing(own: Path) -> None:
    write_head(own / "temporal_head" / "1" / "model.onnx", detours=500)  # a second or so for 300 frames
    features = np.random.default_rng(0).normal(size=(300, FEATURE_WIDTH)).astype(np.float32)
    with serve_command(own, "--threads=1") as (process, line):
        assert line.startswith(f"serving {own} on grpc://127.0.0.1:"), process.stderr and process.stderr.read()
        processes, name = family(process)
        assert leftovers(name), "the server's shared memory has another name: the check below would prove nothing"
        stub = next(child for child in processes if "temporal_head_0_0" in child.cmdline())
        with ThreadPoolExecutor(1) as client:

            def in_flight() -> Future[Tensors]:
                idle_s = stub.cpu_times().user
                asked = client.submit(ask, url_of(line), "temporal_head", {"features": features})
                wait_for(lambda: stub.cpu_times().user > idle_s + 0.05 or asked.done())
                return asked

            # One that was answered before it could be seen at work would not be drained: the next one may be.
            asked = next(one for one in iter(in_flight, None) if not one.done())
            process.send_signal(signal.SIGTERM)
            served = asked.result()
        write_head(own / "temporal_head" / "1" / "model.onnx")
        expected = run_in_process(own, "temporal_head", {"features": features[None]})
        np.testing.assert_allclose(served["expression"], expected["expression"][0], rtol=1e-5)
        assert process.wait(RECOVERY_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert_nothing_left(processes, name)


def test_nothing_is_noted_for_others(tiny: Path) -> None:
    with serve_command(tiny) as (process, _):
        opened = {file.path for one in family(process)[0] for file in one.open_files()}
    assert not [path for path in opened if "onnxruntime.db" in path]  # where its wheels keep what they report


def test_a_signal_that_another_thread_takes_ends_it(tiny: Path) -> None:
    with serve_command(tiny) as (process, _):
        threads = {int(name) for name in os.listdir(f"/proc/{process.pid}/task")} - {process.pid}
        ctypes.CDLL(None).tgkill(process.pid, max(threads), signal.SIGTERM)  # the kernel may choose any
        assert process.wait(RECOVERY_S) == 0


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
        wait_for_answer(running.grpc_url)


def test_context_started_in_a_thread_that_ends_keeps_serving(tiny: Path) -> None:
    events: list[Event] = []
    running = SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append)
    starter = threading.Thread(target=running.start)
    starter.start()
    starter.join()
    guardian = psutil.Process(running.pid).parent()
    try:
        # The kernel sends death signals before a thread is gone from its list.
        wait_for(lambda: not Path(f"/proc/self/task/{starter.native_id}").exists())
        wait_for_answer(running.grpc_url)
        assert not has_ended(guardian)
        assert not events
    finally:
        running.stop()


def test_broken_graph_is_named_and_nothing_is_left(own: Path) -> None:
    (own / "clip_encoder" / "1" / "model.onnx").write_bytes(b"not a graph")
    vouch(own)
    server = TritonServer(ServerConfig(repository=own, drain_timeout_s=0))
    with pytest.raises(ServerError, match=r"clip_encoder: ONNX Runtime cannot load model\.onnx") as caught:
        server.start()
    assert "affserve export" in str(caught.value)
    assert server.pid == 0
    assert server.exit_code is None


def test_graph_that_does_not_fit_its_configuration_is_refused(own: Path) -> None:
    write_head(own / "clip_encoder" / "1" / "model.onnx")
    with pytest.raises(ServerError, match="clip_encoder: the graph has no input frames; it has features"):
        TritonServer(ServerConfig(repository=own, drain_timeout_s=0)).start()


def test_taken_port_is_an_error_that_names_it(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}.*--grpc-port"):
            TritonServer(ServerConfig(repository=tiny, grpc_port=port)).start()


@pytest.mark.parametrize(("crashes", "starts"), [(1, True), (2, False)])
def test_a_server_that_crashes_while_it_starts_is_started_once_more(tiny: Path, crashes: int, starts: bool) -> None:
    server = TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0))
    crashed: list[int] = []

    def crash() -> None:
        while len(crashed) < crashes:
            if server.pid and server.pid not in crashed:
                crashed.append(server.pid)
                os.kill(server.pid, signal.SIGABRT)
            time.sleep(0.01)

    thread = threading.Thread(target=crash)
    thread.start()
    try:
        with contextlib.nullcontext() if starts else pytest.raises(ServerError, match="signal 6 ended it"):
            server.start()
        assert not starts or healthy(server)
    finally:
        server.stop()
        thread.join()
    assert len(crashed) == crashes
