"""What any local process, or bad luck, could do to end the service: each test does it, and the service goes on.

Also what is left when everybody who would clear up is killed at once.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from tiny_server import (
    RECOVERY_S,
    SHARED_MEMORY,
    ask,
    assert_nothing_left,
    family,
    has_ended,
    healthy,
    make_frames,
    needs_wheel,
    serve_command,
    url_of,
    wait_for,
    wait_for_answer,
)
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.client import AffectClient
from affserve.client.connection import Connection, connected
from affserve.export.server import supervisor, triton_log
from affserve.export.server.config import ServerConfig
from affserve.export.server.events import Event
from affserve.export.server.own_folder import OwnFolder, remove_orphans
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import ServerError

pytestmark = needs_wheel

CHUNKS = b"1\r\n0\r\n" * 600_000


def listening_ports(pid: int) -> list[int]:
    return [one.laddr.port for one in psutil.Process(pid).net_connections("inet") if one.status == psutil.CONN_LISTEN]


def test_a_body_of_many_chunks_reaches_nothing_that_it_could_crash(tiny: Path) -> None:
    with TritonServer(ServerConfig(repository=tiny, metrics_port=0, drain_timeout_s=0)) as server:
        ports = listening_ports(server.pid)
        assert sorted(ports) == sorted([server.config.grpc_port, server.config.metrics_port])
        for port in ports:
            with socket.create_connection(("127.0.0.1", port)) as caller, contextlib.suppress(OSError):
                caller.settimeout(RECOVERY_S)
                head = b"POST /v2/models/temporal_head/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                caller.sendall(head + CHUNKS + b"0\r\n\r\n")
                caller.shutdown(socket.SHUT_WR)
                while caller.recv(65536):
                    pass
        assert server.exit_code is None
        assert healthy(server)


def crash_by_truncated_region(url: str) -> None:
    """Have the server read a region that ends before it: SIGBUS."""
    file = SHARED_MEMORY / f"affserve-test-{os.getpid()}"
    try:
        with file.open("w+b") as region, contextlib.closing(triton.InferenceServerClient(url)) as client:
            size = 32 * 224 * 224 * 3
            region.truncate(size)
            with mmap.mmap(region.fileno(), size):
                client.register_system_shared_memory(file.name, f"/{file.name}", size)
                region.truncate(0)
                tensor = triton.InferInput("frames", [32, 224, 224, 3], "UINT8")
                tensor.set_shared_memory(file.name, size)
                with pytest.raises(InferenceServerException):
                    client.infer("clip_encoder", [tensor], client_timeout=RECOVERY_S)
    finally:
        file.unlink(missing_ok=True)


def test_who_crashes_the_server_again_and_again_makes_it_wait_not_end(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    events: list[Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        for crash in range(6):
            before = running.pid
            if crash == 0:
                crash_by_truncated_region(running.grpc_url)
            else:
                os.kill(before, signal.SIGKILL)
            wait_for(lambda before=before: running.pid not in (0, before))
            wait_for_answer(running.grpc_url)
            wait_for(lambda: events[-1]["event"] == "ready")
    restarts = [event for event in events if event["event"] == "restarting"]
    assert [event["failures"] for event in restarts] == [1, 2, 3, 4, 5, 6]
    assert [event["pause_s"] for event in restarts] == [0, 0.01, 0.02, 0.04, 0.08, 0.16]
    assert "log" in restarts[-1]


def test_status_says_that_it_waits_and_why(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", RECOVERY_S)
    monkeypatch.setattr(supervisor, "LONGEST_DELAY_S", RECOVERY_S)
    events: list[Event] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as running:
        for restarts in (1, 2):
            wait_for(lambda: running.pid)
            os.kill(running.pid, signal.SIGKILL)
            wait_for(lambda restarts=restarts: sum(one["event"] == "restarting" for one in events) == restarts)
            if restarts == 1:
                wait_for(lambda: events[-1]["event"] == "ready")

        def told() -> str:
            return CliRunner().invoke(app, ["status", running.grpc_url]).stdout

        wait_for(lambda: "affserve serve restarts it, the next time at " in told())
        assert (
            "it failed 2 times within 15 minutes, the last time because tritonserver ended with exit code 137" in told()
        )


def tritonservers() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.name() == "tritonserver"}


def test_a_server_that_is_started_for_a_client_is_reached_by_no_other_user(tiny: Path) -> None:
    others = tritonservers()  # of other tests
    with connected(Connection(repository=tiny, quiet=True)) as client:
        assert client.transport == "shm"
        assert client.affect(make_frames(4, seed=0)).keys() == client.describe().labels.keys()
        (pid,) = tritonservers() - others
        assert listening_ports(pid) == []
        socket_file = Path(client.url.removeprefix("unix:"))
        assert socket_file.stat().st_mode & 0o077 == 0
        assert socket_file.parent.stat().st_mode & 0o077 == 0
        os.kill(pid, signal.SIGKILL)
        client.affect(make_frames(4, seed=0))  # it comes back at the same place
    assert not socket_file.parent.exists()


def test_a_service_may_be_this_users_alone(tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "s"
    with serve_command(tiny, f"--host=unix:{place}", "--metrics-port=0") as (process, line):
        assert f"on unix:{place}:" in line, process.stderr and process.stderr.read()
        url = line.split(" on ")[1].split()[0]
        with AffectClient(url) as client:
            assert client.transport == "shm"
            assert len(client.encode(make_frames(2, seed=0))) == 2
        assert CliRunner().invoke(app, ["status", url]).exit_code == 0
        second = TritonServer(ServerConfig(repository=tiny, host=f"unix:{place}"))
        with pytest.raises(ServerError, match="another server listens on unix:"):
            second.start()
    with pytest.raises(ServerError, match="from the root on"):
        ServerConfig(repository=tiny, host="unix:here")


# --- what nobody is left to clear up ---


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One in which no other start clears up."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_a_later_start_removes_what_supervisor_and_guardian_left(tiny: Path, own_temporary_folder: Path) -> None:
    with serve_command(tiny) as (process, line):
        url = url_of(line)
        ask(url, "affect", {"frames": make_frames(1, seed=0)})
        processes, name = family(process)
        guardian = next(child for child in processes if "guardian.py" in " ".join(child.cmdline()))
        assert len(list(own_temporary_folder.glob("affserve-*"))) == 2, "one of tritonserver, one of its supervisor"
        process.send_signal(signal.SIGSTOP)
        guardian.send_signal(signal.SIGSTOP)
        process.kill()
        guardian.kill()
        wait_for(lambda: all(has_ended(one) for one in processes))
        assert len(list(own_temporary_folder.glob("affserve-*"))) == 2
        (SHARED_MEMORY / f"{name}-region").touch()  # as where the Python processes are killed, too
        with TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)):
            pass
        assert_nothing_left(processes, name)
        assert not list(own_temporary_folder.glob("affserve-*"))


@pytest.mark.usefixtures("own_temporary_folder")
def test_folders_of_the_living_and_of_others_stay() -> None:
    alive, older = OwnFolder(), Path(tempfile.mkdtemp(prefix=f"affserve-{'0' * 16}-"))
    script = "from affserve.export.server.own_folder import OwnFolder; print(OwnFolder().path)"
    dead = Path(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip())
    try:
        assert dead.is_dir()
        remove_orphans()
        assert not dead.exists()
        assert alive.path.is_dir()
        assert older.is_dir(), "it has no owner's file: nobody knows whose it is"
    finally:
        alive.remove()
        older.rmdir()
    assert not alive.path.exists()


@pytest.mark.usefixtures("own_temporary_folder")
def test_a_note_that_is_none_is_not_read() -> None:
    folder = OwnFolder()
    try:
        for text in ("", "[1]", json.dumps({"url": None})):
            (folder.path / "note.json").write_text(text)
            assert CliRunner().invoke(app, ["status", "127.0.0.1:1", "--timeout=1"]).exit_code == 1
    finally:
        folder.remove()


def test_a_server_that_a_signal_ended_is_no_fault_of_the_repository() -> None:
    assert triton_log.advice("I1126 ready", 128 + 11) == (
        "signal 11 ended it: is there enough memory (free -h, ulimit -v)?"
    )
    assert "ulimit -n 4096" in triton_log.advice("[warn] epoll_create: Too many open files", 1)
    assert triton_log.advice("E1126 odd", 1) == ""
