"""What `affserve serve --print compose` prints: read back by a YAML parser and the real tritonserver."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from tiny_server import http_of, needs_wheel
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.export.deployment.compose import compose_file
from affserve.export.deployment.container import health_command
from affserve.export.machine.ports import choose_ports
from affserve.export.pins import image
from affserve.export.repository.check import served_models
from affserve.export.server import installation
from affserve.export.server.config import ServerConfig
from affserve.export.server.installation import find_installation, server_environment
from affserve.export.server.security import ServerTls
from affserve.train.errors import RepositoryError, ServerError


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("affect.example.com")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "server.key"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return ServerTls(certificate=folder / "server.pem", key=folder / "server.key", client_ca=folder / "ca.pem")


def served(repository: Path, **changes: Any) -> ServerConfig:
    return ServerConfig(**{"repository": repository, "grpc_port": 8001, "http_port": 8000, **changes})


def service(config: ServerConfig) -> Any:
    return yaml.safe_load(compose_file(config))["services"]["triton"]


def test_a_service_is_read_only_limited_and_stopped_in_time(repository: Path, tls: ServerTls) -> None:
    composed = service(served(repository, tls=tls, http_port=None, metrics_port=8002, engine="tensorrt"))
    assert all(mount["read_only"] is True for mount in composed["volumes"])
    assert composed["security_opt"] == ["no-new-privileges:true"]
    assert composed["shm_size"] == "1g"
    assert composed["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert composed["stop_grace_period"] == "40s", "what it may take to drain, and ten seconds"


def test_exactly_the_models_of_the_repository_are_loaded(repository: Path) -> None:
    composed = service(served(repository))
    mounted = {mount["target"] for mount in composed["volumes"] if mount["target"].startswith("/models")}
    assert mounted == {f"/models/{model.name}" for model in served_models(repository)}
    assert "--model-control-mode=none" in composed["command"]
    closed = "model-repository,logging,trace,shared-memory:nobody:\n=closed"
    assert {f"--grpc-restricted-protocol={closed}", f"--http-restricted-api={closed}"} <= set(composed["command"])


@needs_wheel
def test_options_are_known_to_the_real_tritonserver(repository: Path, tls: ServerTls, tmp_path: Path) -> None:
    config = served(repository, tls=tls, http_port=None, metrics_port=8002)
    installation = find_installation()
    environment = server_environment(installation, tmp_path)

    def parsed(*words: str) -> str:
        command = [str(installation.binary), *words, "--help"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stderr

    assert parsed(*service(config)["command"][1:]).startswith("Usage: tritonserver")
    assert "unrecognized option" in parsed("--no-such-option=1"), "this server would have accepted anything"


def test_paths_with_spaces_and_dollars_survive(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a $b c's"
    copy.mkdir()
    for entry in repository.iterdir():
        (copy / entry.name).symlink_to(entry)
    sources = [mount["source"] for mount in service(served(copy))["volumes"]]
    assert f"{copy}/affect".replace("$", "$$") in sources, "Compose reads $$ as $"


# --- backends ---


def test_backends_of_ours_are_mounted_with_their_packages(repository: Path) -> None:
    """The container brings its own onnxruntime backend, but none for JPEG."""
    composed = service(served(repository))
    targets = {mount["target"]: Path(mount["source"]) for mount in composed["volumes"]}
    names = {model.name for model in served_models(repository)}
    assert ("/opt/tritonserver/backends/jpeg" in targets) is ("jpeg_decoder" in names)
    assert "/opt/tritonserver/backends/onnxruntime" not in targets
    if "jpeg_decoder" in names:
        assert (targets["/opt/tritonserver/backends/jpeg"] / "model.py").is_file()
        dockerfile = composed["build"]["dockerfile_inline"]
        assert dockerfile.splitlines()[0] == f"FROM {image()}"
        assert re.search(r"pip install --no-cache-dir simplejpeg==\d", dockerfile)
    else:
        assert composed["image"] == image()


def test_requirements_are_what_backends_import() -> None:
    found = {model.parent.name: installation.requirements(model) for model in installation.own_backends()}
    assert found["onnxruntime"] == ["numpy", "onnxruntime"]
    assert found["jpeg"] == ["numpy", "simplejpeg"]


# --- GPUs, addresses, encryption ---


@pytest.mark.parametrize(("engine", "gpus"), [("cpu", False), ("cuda", True), ("tensorrt", True)])
def test_gpus_are_asked_for_where_they_are_used(repository: Path, engine: str, gpus: bool) -> None:
    config = served(repository, engine=engine)
    devices = service(config).get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert devices == ([{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}] if gpus else [])


def test_ports_are_this_machines_unless_asked(repository: Path) -> None:
    assert service(served(repository))["ports"] == ["127.0.0.1:8001:8001", "127.0.0.1:8000:8000"]
    silent = service(served(repository, http_port=None))
    assert silent["ports"] == ["127.0.0.1:8001:8001"]
    assert "--http-address=127.0.0.1" in silent["command"], "for the health check inside"
    open_ports = service(served(repository, host="10.0.0.7", grpc_port=9001, metrics_port=9002))["ports"]
    assert open_ports == ["10.0.0.7:9001:8001", "10.0.0.7:8000:8000", "10.0.0.7:9002:8002"]


def test_with_tls_only_grpc_leaves_the_machine(repository: Path, tls: ServerTls) -> None:
    composed = service(served(repository, tls=tls, http_port=None, host="10.0.0.7", metrics_port=8002))
    assert composed["ports"] == ["10.0.0.7:8001:8001", "127.0.0.1:8002:8002"]
    sources = {mount["target"]: mount["source"] for mount in composed["volumes"]}
    assert sources["/tls/server.key"] == str(tls.key)
    assert {"--grpc-server-key=/tls/server.key", "--grpc-root-cert=/tls/ca.pem"} <= set(composed["command"])
    assert "--http-address=127.0.0.1" in composed["command"], "for the health check inside"


def test_shared_memory_is_only_shared_when_asked(repository: Path) -> None:
    assert "ipc" not in service(served(repository))
    asked = service(served(repository, shared_memory=True))
    assert asked["ipc"] == "host"
    assert not any("shared-memory" in word for word in asked["command"])


# --- the health check ---


@needs_wheel
def test_health_check_is_answered_by_a_server_and_fails_without(server_url: str) -> None:
    port = int(http_of(server_url).rpartition(":")[2])
    assert subprocess.run(["sh", "-c", health_command(port)], capture_output=True).returncode == 0
    nobody = choose_ports("127.0.0.1", {"http": 0})["http"]
    assert subprocess.run(["sh", "-c", health_command(nobody)], capture_output=True).returncode != 0
    broken = health_command(port).replace("head -c 150528", "head -c 150527")
    assert subprocess.run(["sh", "-c", broken], capture_output=True).returncode != 0


# --- refusals ---


def test_what_cannot_be_deployed_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="affserve export"):
        compose_file(served(tmp_path / "nowhere"))
    with pytest.raises(RepositoryError, match=r"has no clip_encoder/config\.pbtxt"):
        compose_file(served(tmp_path))
    with pytest.raises(ServerError, match="--threads and --instances"):
        compose_file(served(repository, threads=4))
    with pytest.raises(ServerError, match="socket files"):
        compose_file(ServerConfig(repository=repository, host="unix:/run/affserve"))
    with pytest.raises(ServerError, match=r"does not run plans for RTX cards.*--engine tensorrt"):
        compose_file(served(repository, engine="rtx"))
    with pytest.raises(ServerError, match="given ports"):
        compose_file(served(repository, grpc_port=0))


def test_command_prints_and_starts_nothing(repository: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(repository), "--print", "compose"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"# Serves {repository.resolve()} with Triton ")
    assert CliRunner().invoke(app, ["serve", str(repository), "--print", "nomad"]).exit_code == 2
