"""What another user of the machine, and a machine that is in trouble, can do to `affserve serve`.

Each test does what an attacker did. The other user is 65534 (nobody), which only root can become.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from tiny_server import (
    RECOVERY_S,
    SHARED_MEMORY,
    ask,
    assert_nothing_left,
    family,
    healthy,
    make_frames,
    needs_wheel,
    serve_command,
    server_name,
    url_of,
    vouch,
    wait_for,
    wait_for_answer,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.wire.shared_memory import Region
from affserve.export.repository.templates import read_config
from affserve.export.server import guardian, supervisor
from affserve.export.server.config import ServerConfig
from affserve.export.server.events import Event
from affserve.export.server.probe import Prober
from affserve.export.server.security import UNSENDABLE_HEADER
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import RepositoryError, ServerError

pytestmark = needs_wheel

OTHER_USER: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}

EVIL_CONFIG = {
    "name": "evil",
    "backend": "python",
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
}
# Says that it ran, with the server's rights.
EVIL_MODEL = """
class TritonPythonModel:
    def initialize(self, args):
        open({witness!r}, "w").close()
"""

# Run by the other user, with the standard library alone. It writes its own bytes: a polite client library would refuse
# to send what the server must refuse to take.
ATTACK = r"""
import glob, json, re, socket, struct, sys

task = json.load(sys.stdin)
keys = set()
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        words = open(path, encoding="latin-1").read()
    except OSError:
        continue
    keys |= set(re.findall(r'restricted-(?:protocol|api)=[\w,-]+:([^=\0]*)=([^"\0]*)', words))

def exchange(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(data)
        connection.settimeout(120)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
                if b"grpc-status" in part:
                    break
        except OSError:
            pass
    return answer.decode("latin-1")

def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

def literal(name, value):
    return b"".join([b"\0", *(bytes([len(one)]) + one for one in (name.encode(), value.encode()))])

def grpc(method, message, headers):
    pseudo = {":method": "POST", ":scheme": "http", ":path": "/inference.GRPCInferenceService/" + method,
              ":authority": "x", "te": "trailers", "content-type": "application/grpc"}
    block = b"".join(literal(*one) for one in [*pseudo.items(), *headers])
    body = b"\0" + struct.pack(">I", len(message)) + message
    return exchange(task["grpc"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block)
                    + frame(0, 1, 1, body))

def http(path, body, header):
    head = f"POST /v2/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{header}\r\n"
    return exchange(task["http"], head.encode("latin-1") + body.encode())

answers = {}
for name, value in sorted(keys):
    header = [("triton-grpc-protocol-" + name, value)]
    for method, message in task["calls"].items():
        answers[f"gRPC {method} {name!r}={value}"] = grpc(method, bytes.fromhex(message), header)
    for path, body in task["posts"].items():
        answers[f"HTTP {path} {name!r}={value}"] = http(path, body, f"{name}: {value}\r\n")
    folded = value.replace("\n", "\r\n ")
    answers[f"HTTP folded {name!r}={value}"] = http("repository/index", "{}", f"{name}: {folded}\r\n")
print(json.dumps(answers))
"""


@functools.cache
def python_of_others() -> str:
    """Return a Python that another user may run; skip where there is none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-I", "-S", "-c", ""], **OTHER_USER).returncode == 0:
                return python
    pytest.skip("another user has no Python to run here")


def as_nobody(program: str, task: Any = None) -> Any:
    """Run a Python program as another user with `task` on standard input; return the JSON it prints."""
    command = [python_of_others(), "-I", "-S", "-c", program]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=120, **OTHER_USER)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the key that everybody can read ---


def test_who_reads_the_key_in_the_command_line_opens_nothing_with_it(tiny: Path, tmp_path: Path) -> None:
    witness = tmp_path / "it ran"
    code = EVIL_MODEL.format(witness=str(witness)).encode()
    load = service_pb2.RepositoryModelLoadRequest(model_name="evil")
    load.parameters["config"].string_param = json.dumps(EVIL_CONFIG)
    load.parameters["file:1/model.py"].bytes_param = code
    with TritonServer(ServerConfig(repository=tiny, http_port=0, drain_timeout_s=0)) as server:
        task = {
            "grpc": server.config.grpc_port,
            "http": server.config.http_port,
            "calls": {
                "RepositoryModelLoad": load.SerializeToString().hex(),
                **dict.fromkeys(("RepositoryIndex", "LogSettings", "TraceSetting"), ""),
            },
            "posts": {
                "repository/models/evil/load": json.dumps(
                    {
                        "parameters": {
                            "config": json.dumps(EVIL_CONFIG),
                            "file:1/model.py": base64.b64encode(code).decode(),
                        }
                    }
                ),
                "repository/index": "{}",
                "logging": "{}",
            },
        }
        answers = as_nobody(ATTACK, task)
        assert len(answers) >= 8, "no key was found: nothing was attacked"
        taken = [call for call, answer in answers.items() if "grpc-status\x010" in answer or "200 OK" in answer]
        assert not taken, {call: answers[call] for call in taken}
        assert not witness.exists(), "another user's program ran as the server's user"
        assert healthy(server)


def test_no_model_can_be_loaded_even_where_the_interface_is_open(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affserve.export.server.config.restriction", lambda **_: f"trace:{UNSENDABLE_HEADER}=closed")
    with (
        TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as server,
        contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client,
    ):
        assert len(client.get_model_repository_index().models) == 3, "the interface is closed: nothing is tested"
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
                change("affect")
        assert healthy(server)


def test_what_lies_beside_our_models_is_not_loaded(own: Path, tmp_path: Path) -> None:
    """Triton loads all there is in its repository: a model.py that somebody put there would run."""
    witness = tmp_path / "it ran"
    (own / "evil" / "1").mkdir(parents=True)
    (own / "evil" / "1" / "model.py").write_text(EVIL_MODEL.format(witness=str(witness)))
    (own / "evil" / "config.pbtxt").write_text('name: "evil"\nbackend: "python"\n')
    with TritonServer(ServerConfig(repository=own, drain_timeout_s=0)) as server, Prober(server.grpc_url) as prober:
        served = {model.name for model in prober.statistics(RECOVERY_S)}
    assert served == {"clip_encoder", "temporal_head", "affect"}
    assert not witness.exists()


# --- repositories of strangers ---


def test_a_repository_without_a_manifest_is_not_served_unless_trusted(own: Path) -> None:
    (own / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no manifest\.json: nothing says who wrote .*--trust"):
        TritonServer(ServerConfig(repository=own)).start()
    refused = CliRunner().invoke(app, ["infer", str(own), "--crops", "--repository", str(own)])
    assert refused.exit_code == 1
    with serve_command(own, "--trust") as (_, line):
        wait_for_answer(url_of(line))


@pytest.mark.parametrize("how", ["python", "environment"])
def test_a_configuration_that_runs_a_program_is_not_served_unless_trusted(own: Path, tmp_path: Path, how: str) -> None:
    """Its owner wrote the manifest, too."""
    witness, model = tmp_path / "it ran", own / "temporal_head"
    (model / "1" / "model.py").write_text(EVIL_MODEL.format(witness=str(witness)))
    for path in (model / "config.pbtxt", model / "configs" / "cpu.pbtxt"):
        config = read_config(path)
        if how == "python":
            config.platform, config.backend, config.default_model_filename = "", "python", "model.py"
        else:
            config.parameters["EXECUTION_ENV_PATH"].string_value = str(tmp_path / "env.tar.gz")
        path.write_text(text_format.MessageToString(config))
    vouch(own)
    expected = "'python'" if how == "python" else "the parameter EXECUTION_ENV_PATH"
    with pytest.raises(RepositoryError, match=rf"cpu\.pbtxt asks for {expected}, by which .* as you.*--trust"):
        TritonServer(ServerConfig(repository=own)).start()
    assert not witness.exists()
    if how == "python":
        with pytest.raises(ServerError):
            TritonServer(ServerConfig(repository=own, trust=True)).start()
        assert witness.exists(), "trusted, it runs: else this proves nothing"


# --- stderr, the temporary folder and the watching thread ---


def kill_server(process: subprocess.Popen[str]) -> None:
    next(
        child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "tritonserver"
    ).kill()


def full_pipe() -> tuple[int, int]:
    """Return a pipe that takes nothing more: its reader is there, and reads nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("stderr", ["reader_gone", "disk_full", "reader_asleep"])
def test_server_comes_back_although_nobody_hears_of_it(own: Path, stderr: str) -> None:
    with contextlib.ExitStack() as stack:
        target: Any = subprocess.STDOUT
        if stderr == "disk_full":
            target = stack.enter_context(open("/dev/full", "w"))
        if stderr == "reader_asleep":
            reader, target = full_pipe()
            stack.callback(os.close, reader)
            stack.callback(os.close, target)
        process, line = stack.enter_context(serve_command(own, stderr=target))
        if stderr == "reader_gone":
            assert process.stdout is not None
            process.stdout.close()  # as with `2>&1 | head -1`
        processes, name = family(process)
        for _ in range(2):
            kill_server(process)
            wait_for_answer(url_of(line))
        (own / "clip_encoder" / "1" / "model.onnx").unlink()
        kill_server(process)
        assert process.wait(RECOVERY_S) == 1, "it gave up, and its exit code does not tell"
    assert_nothing_left(processes, name)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Mount a small disk on `folder`; yield what fills it to the last byte, for the length of a block."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "affserve-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk of its own takes root, and a machine where root may mount")

    @contextlib.contextmanager
    def fill() -> Iterator[None]:
        ballast = folder / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
        ballast.unlink()

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def vanishing_folder(folder: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Yield what takes `folder` away for the length of a block."""

    @contextlib.contextmanager
    def vanish() -> Iterator[None]:
        away = folder.rename(folder.with_name("away"))
        yield
        away.rename(folder)

    yield vanish


TROUBLES = [pytest.param(full_disk, id="full"), pytest.param(vanishing_folder, id="gone")]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_server_comes_back_when_the_temporary_folder_has_room_again(tiny: Path, tmp_path: Path, trouble: Any) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with trouble(folder) as no_room, serve_command(tiny, env={**os.environ, "TMPDIR": str(folder)}) as (process, line):
        assert process.stderr is not None
        process.send_signal(signal.SIGSTOP)  # so that the folder is full before the server is started again
        kill_server(process)
        for left in folder.glob("affserve-*"):
            shutil.rmtree(left)
        with no_room():
            process.send_signal(signal.SIGCONT)
            events = [json.loads(process.stderr.readline()) for _ in range(2)]
            assert [event["event"] for event in events] == ["restarting", "waiting"]
            assert "TMPDIR" in events[1]["reason"]
        wait_for_answer(url_of(line))
        process.send_signal(signal.SIGTERM)
        assert process.wait(RECOVERY_S) == 0
        assert not list(folder.glob("affserve-*"))


def wait_at_most(running: SupervisedServer) -> None:
    """Wait as `serve` does, so long that only what never ends is a failure; stopping ends the wait."""
    timer = threading.Timer(RECOVERY_S, running.stop)
    timer.start()
    try:
        running.wait()
    finally:
        timer.cancel()


def test_waiting_for_room_ends_with_an_error(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ROOM_TIMEOUT_S", 0.0)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as running:
        shutil.rmtree(folder)
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"cannot be prepared: .*No such file or directory.*TMPDIR"):
            wait_at_most(running)


def test_an_owner_that_fails_to_listen_does_not_end_watching(tiny: Path) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("no time for events")

    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=fail) as running:
        for _ in range(2):
            before = running.pid
            os.kill(before, signal.SIGKILL)
            wait_for(lambda before=before: running.pid not in (0, before))
            wait_for_answer(running.grpc_url)


def test_watching_that_cannot_go_on_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PROBE_PERIOD_S", 0.1)

    class Blind(SupervisedServer):
        def _probe(self) -> str | None:
            raise RuntimeError("a mistake of ours")

    with (
        Blind(ServerConfig(repository=tiny, drain_timeout_s=0)) as running,
        pytest.raises(ServerError, match=r"watching tritonserver failed: .*a mistake of ours"),
    ):
        wait_at_most(running)


# --- frames that others could read ---

# Opens whatever it can below the folders it is told, until its standard input ends.
READ_FILES = r"""
import json, os, select, sys

folders = json.loads(sys.stdin.readline())
seen, opened = set(), set()
print("looking", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith("affserve") or path in opened:
                continue
            seen.add(path)
            try:
                os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
                opened.add(path)
            except OSError:
                pass
print(json.dumps({"seen": sorted(seen), "opened": sorted(opened)}))
"""


@contextlib.contextmanager
def another_user_looking(found: dict[str, list[str]]) -> Iterator[None]:
    """For the length of a block, have another user open what it can of ours; put into `found` what that was."""
    command = [python_of_others(), "-I", "-S", "-c", READ_FILES]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **OTHER_USER) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([str(SHARED_MEMORY), tempfile.gettempdir()]), file=process.stdin, flush=True)
        process.stdout.readline()
        yield
        process.stdin.close()
        found |= json.loads(process.stdout.read())


@pytest.fixture
def careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("careless_umask")
def test_no_file_of_server_or_client_is_for_others(tiny: Path) -> None:
    with TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as server:
        ask(server.grpc_url, "affect", {"frames": make_frames(40, seed=0)})  # makes the shared memory grow
        name = server_name(server.pid)
        region = Region(4096)
        try:
            ours = [SHARED_MEMORY / region.name, *SHARED_MEMORY.glob(f"{name}*")]
            ours += Path(tempfile.gettempdir()).glob(f"{name}*")
            assert len(ours) >= 4, "a region of the client, one of each Python process, a folder"
            assert not {str(path): oct(path.stat().st_mode) for path in ours if path.stat().st_mode & 0o077}
        finally:
            region.unlink()


@pytest.mark.usefixtures("careless_umask")
def test_another_user_opens_nothing_not_even_while_the_server_starts(tiny: Path) -> None:
    """Who opens a file in the instant before it is closed to him reads it for as long as it is there."""
    found: dict[str, list[str]] = {}
    with another_user_looking(found), TritonServer(ServerConfig(repository=tiny, drain_timeout_s=0)) as server:
        name = server_name(server.pid)
        ask(server.grpc_url, "affect", {"frames": make_frames(4, seed=0)})
    assert len([path for path in found["seen"] if name in path]) >= 3, "nothing was looked at"
    assert not [path for path in found["opened"] if name in path]


def test_files_are_closed_afterwards_where_the_kernel_cannot_keep_them_closed() -> None:
    file = SHARED_MEMORY / f"affserve-{secrets.token_hex(8)}-region"
    file.touch()
    try:
        file.chmod(0o644)
        guardian.close_shared_memory(file.name.removesuffix("-region"))
        assert file.stat().st_mode & 0o777 == 0o600
    finally:
        file.unlink()
