"""What `affserve serve` can be told: encryption, closed interfaces, instances, logs; all of it on the real server."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import trustme
from tiny_server import RECOVERY_S, ask, expected_features, healthy, make_frames, needs_wheel, serve_command, wait_for
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from affserve.export import engine_sets
from affserve.export.machine.cores import Parallelism, choose_parallelism
from affserve.export.repository.instances import lay_out_models
from affserve.export.repository.templates import read_config
from affserve.export.server import guardian
from affserve.export.server.config import ServerConfig, serving_options
from affserve.export.server.events import EventLog
from affserve.export.server.installation import WHEEL_VERSION
from affserve.export.server.probe import Prober
from affserve.export.server.security import CallerTls, ServerTls, check_host
from affserve.export.server.server import TritonServer
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import OutputError, ServerError

pytestmark = needs_wheel

SERVER_NAME = "affect.example.com"


def test_one_port_for_two_protocols_is_refused_before_anything_starts() -> None:
    with pytest.raises(ServerError, match="grpc_port and http_port are both 8001; each needs a port of its own"):
        ServerConfig(repository=Path("none"), grpc_port=8001, http_port=8001)


# --- who may do what ---


@pytest.fixture(scope="module")
def closed(tiny: Path) -> Iterator[TritonServer]:
    """A server that closes shared memory, too, and runs two instances of the encoder."""
    config = ServerConfig(repository=tiny, shared_memory=False, instances=2, threads=1, http_port=0, drain_timeout_s=0)
    with TritonServer(config) as server:
        yield server


CLOSED_CALLS = [
    pytest.param("RepositoryIndex", service_pb2.RepositoryIndexRequest(), id="index"),
    pytest.param("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="affect"), id="load"),
    pytest.param("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="affect"), id="unload"),
    pytest.param("LogSettings", service_pb2.LogSettingsRequest(), id="logging"),
    pytest.param("TraceSetting", service_pb2.TraceSettingRequest(), id="trace"),
    pytest.param("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest(), id="shm_status"),
    pytest.param(
        "SystemSharedMemoryRegister",
        service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1),
        id="shm_register",
    ),
]


@pytest.mark.parametrize(("method", "request_"), CLOSED_CALLS)
def test_closed_interface_refuses_grpc_callers_without_the_key(
    closed: TritonServer, method: str, request_: Any
) -> None:
    with grpc.insecure_channel(closed.grpc_url) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        with pytest.raises(grpc.RpcError, match="restricted"):
            call(request_, timeout=RECOVERY_S)
        with pytest.raises(grpc.RpcError, match="restricted"):
            call(request_, timeout=RECOVERY_S, metadata=[("triton-grpc-protocol-affserve", "guessed")])


CLOSED_PATHS = [
    "repository/index",
    "repository/models/affect/load",
    "repository/models/affect/unload",
    "logging",
    "trace/setting",
    "models/affect/trace/setting",
    "systemsharedmemory/status",
    "systemsharedmemory/region/x/register",
    "cudasharedmemory/status",
]


@pytest.mark.parametrize("path", CLOSED_PATHS)
def test_closed_interface_refuses_http_callers_without_the_key(closed: TritonServer, path: str) -> None:
    body = b"{}" if "repository" in path or path.endswith("register") else None
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            urllib.request.Request(f"http://{closed.http_url}/v2/{path}", data=body), timeout=RECOVERY_S
        )
    assert caught.value.code == 403, caught.value.read()
    caught.value.close()


def test_open_interfaces_still_answer(closed: TritonServer) -> None:
    assert healthy(closed)
    with urllib.request.urlopen(f"http://{closed.http_url}/v2/models/affect/config", timeout=RECOVERY_S) as answer:
        assert json.load(answer)["name"] == "affect"


def test_shared_memory_is_open_to_this_machine_alone(server_url: str) -> None:
    with contextlib.closing(triton.InferenceServerClient(server_url)) as client:
        client.get_system_shared_memory_status()  # refused where it is closed
    for host, shared in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.7", False)):
        options = serving_options(ServerConfig(repository=Path(), host=host, http_port=0), Path(), None)
        for name in ("grpc-restricted-protocol", "http-restricted-api"):
            closed_here = str(options[name]).partition(":")[0].split(",")
            assert ("shared-memory" not in closed_here) is shared, host
            assert {"model-repository", "logging", "trace"} <= set(closed_here)
    asked = ServerConfig(repository=Path(), host="0.0.0.0", shared_memory=True)
    assert "shared-memory" not in str(serving_options(asked, Path(), None)["grpc-restricted-protocol"])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "affect.example.com"])
def test_listening_beyond_this_machine_is_refused_unless_accepted(tiny: Path, host: str) -> None:
    with pytest.raises(ServerError, match=r"2\.51 will not listen on .*CVE-2025-23319?.*--i-know"):
        TritonServer(ServerConfig(repository=tiny, host=host)).start()
    check_host(WHEEL_VERSION, host, accepted=True)
    check_host((2, 72), host, accepted=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1"])
def test_this_machine_may_always_be_listened_on(host: str) -> None:
    check_host(WHEEL_VERSION, host, accepted=False)


# --- instances and threads ---


def test_instances_share_the_work(closed: TritonServer, tiny: Path) -> None:
    encoders = [p for p in psutil.Process(closed.pid).children() if any("clip_encoder_0_" in w for w in p.cmdline())]
    assert len(encoders) == 2
    before = (tiny / "clip_encoder" / "configs" / "cpu.pbtxt").read_text()
    assert "count: 1" in before, "the repository itself stays as it is"
    frames = make_frames(40, seed=1)
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: ask(closed.grpc_url, "clip_encoder", {"frames": frames}), range(8)))
    for answer in answers:
        np.testing.assert_allclose(answer["features"], expected_features(frames), rtol=1e-5, atol=1e-3)


def test_the_encoder_alone_has_more_instances(tiny: Path, tmp_path: Path) -> None:
    for name in (engine_sets.CUDA, engine_sets.CPU):
        (tmp_path / name).mkdir()
        root = lay_out_models(tiny, name, 2, tmp_path / name)
        assert (root / "temporal_head").is_symlink()
        assert read_config(root / "clip_encoder" / "config.pbtxt").instance_group[0].count == 2


def test_sets_for_a_gpu_have_instances_of_their_own() -> None:
    asked = {"repository": Path("r")}
    assert str(ServerConfig(**asked, engine=engine_sets.CUDA).parallelism) == "4 instances on each GPU"
    assert ServerConfig(**asked, engine=engine_sets.TENSORRT).parallelism.instances == 1
    assert ServerConfig(**asked, engine=engine_sets.CUDA, instances=2).parallelism.instances == 2


@pytest.mark.parametrize(
    ("cores", "given", "chosen"),
    [
        pytest.param(1, {}, (1, 1), id="one_core"),
        pytest.param(2, {}, (1, 2), id="laptop"),
        pytest.param(12, {}, (1, 12), id="between"),
        pytest.param(32, {}, (4, 8), id="server"),
        pytest.param(32, {"threads": 4}, (8, 4), id="threads_given"),
        pytest.param(32, {"instances": 2}, (2, 16), id="instances_given"),
        pytest.param(2, {"instances": 8, "threads": 3}, (8, 3), id="both_given"),
    ],
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, int], chosen: tuple[int, int]
) -> None:
    monkeypatch.setattr("affserve.export.machine.cores.usable_cores", lambda: cores)
    assert choose_parallelism(**given) == Parallelism(instances=chosen[0], threads=chosen[1])


# --- encryption ---


class Authority:
    """Certificates for one test: an authority, a server behind an intermediate one, and a caller."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.ca = folder / "ca.pem"
        self.server = self._write("server", self.authority.create_child_ca().issue_cert(SERVER_NAME))
        self.caller = self._write("caller", self.authority.issue_cert("caller@example.com"))

    def _write(self, name: str, certificate: trustme.LeafCert) -> tuple[Path, Path]:
        chain, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        return chain, key

    def expired(self) -> tuple[Path, Path]:
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        return self._write("expired", self.authority.issue_cert(SERVER_NAME, not_after=yesterday))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def call(url: str, tls: CallerTls | None) -> str:
    with Prober(url, tls=tls) as prober:
        return prober.identity(RECOVERY_S)[1]


def test_command_encrypts_asks_for_certificates_and_keeps_a_log(
    tiny: Path, tmp_path: Path, certificates: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chain, key), log = certificates.server, Path("logs/serve.jsonl")
    monkeypatch.chdir(tmp_path)  # a path that is meant from here
    options = [f"--tls-cert={chain}", f"--tls-key={key}", f"--tls-ca={certificates.ca}"]
    with serve_command(tiny, *options, "--metrics-port=0", f"--log={log}") as (process, line):
        assert " on grpcs://127.0.0.1:" in line, process.stderr and process.stderr.read()
        assert line.count("http://") == 1, "HTTP cannot be encrypted; only metrics are left, for this machine"
        url, metrics = line.split("grpcs://")[1].split()[0], line.split("http://")[1].split("/metrics")[0]
        known = CallerTls(
            root=certificates.ca,
            certificate=certificates.caller[0],
            key=certificates.caller[1],
            server_name=SERVER_NAME,
        )
        assert call(url, known) == "2.51.0"
        with pytest.raises(InferenceServerException):
            call(url, CallerTls(root=certificates.ca, server_name=SERVER_NAME))  # no certificate of its own
        with pytest.raises(InferenceServerException):
            call(url, None)
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=RECOVERY_S) as answer:
            assert b"nv_inference_request_success" in answer.read()
        process.send_signal(signal.SIGHUP)  # as when its terminal is closed
        assert process.wait(RECOVERY_S) == 0
    events = [json.loads(text) for text in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["starting", "ready", "stopping", "stopped"]
    assert events[1]["url"] == url
    assert events[2]["reason"] == "SIGHUP"
    assert all(datetime.datetime.fromisoformat(event["time"]) for event in events)
    assert "successfully loaded 'affect'" in log.with_name("serve.jsonl.triton.log").read_text()


def test_expired_certificate_is_named(tiny: Path, certificates: Authority) -> None:
    chain, key = certificates.expired()
    with pytest.raises(ServerError, match=r"expired\.pem.*certificate has expired.*renew"):
        TritonServer(
            ServerConfig(repository=tiny, tls=ServerTls(certificate=chain, key=key), drain_timeout_s=0)
        ).start()


def test_unusable_certificates_are_refused(certificates: Authority, tmp_path: Path) -> None:
    (chain, key), (_, other_key) = certificates.server, certificates.caller
    with pytest.raises(ServerError, match=r"server\.pem and .*caller\.key are not a PEM certificate and its"):
        ServerTls(certificate=chain, key=other_key)
    with pytest.raises(ServerError, match=r"--tls-key .*nowhere is not a file"):
        ServerTls(certificate=chain, key=tmp_path / "nowhere")
    with pytest.raises(ServerError, match=r"--tls-ca .* holds no PEM certificate"):
        ServerTls(certificate=chain, key=key, client_ca=key)


# --- ports and logs ---


def test_second_server_on_the_same_ports_says_who_is_there(closed: TritonServer, tiny: Path) -> None:
    port = closed.config.grpc_port
    with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port}: .*--grpc-port.* a server of affserve \(Triton 2\.51"):
        TritonServer(ServerConfig(repository=tiny, grpc_port=port)).start()


def test_unwritable_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another --log"):
        EventLog(tmp_path / "file" / "serve.jsonl")


def test_event_log_starts_over_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affserve.export.server.events.LIMIT_BYTES", 1000)
    file = tmp_path / "serve.jsonl"
    log = EventLog(file)
    for number in range(100):
        log.record({"event": "restarting", "number": number})
    assert json.loads(file.read_text().splitlines()[-1])["number"] == 99
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["serve.jsonl", "serve.jsonl.1"]
    assert all(path.stat().st_size < 1200 for path in tmp_path.iterdir())


def test_tritons_log_starts_over_while_it_writes(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with log.open("a") as triton_writes:
        for number in range(300):
            print("line", number, file=triton_writes, flush=True)
            guardian.limit_log(log, 1000)
    assert log.read_text().endswith("line 299\n")
    assert log.read_text().startswith("line ")  # no hole where the writer was before
    assert log.stat().st_size <= 1000
    assert 1000 < log.with_name("triton.log.1").stat().st_size < 1020


def test_refused_requests_are_events(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affserve.export.server.supervisor.PROBE_PERIOD_S", 0.2)
    events: list[Any] = []
    with SupervisedServer(ServerConfig(repository=tiny, drain_timeout_s=0), on_event=events.append) as server:
        with contextlib.closing(triton.InferenceServerClient(server.grpc_url)) as client:
            tensor = triton.InferInput("features", [2, 512], "FP32")
            tensor.set_data_from_numpy(np.full((2, 512), np.nan, np.float32))
            for _ in range(3):
                with pytest.raises(InferenceServerException, match="no finite number, the first in frame 0"):
                    client.infer("temporal_head", [tensor])
        wait_for(lambda: sum(event["count"] for event in events) == 3)
    assert {event["event"] for event in events} == {"errors"}
    assert "temporal_head could not answer" in events[-1]["last"]
