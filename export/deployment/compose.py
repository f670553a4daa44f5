"""The same service in a container: a file for Docker Compose.

In comes what `affserve serve` would be told, out comes text. Nothing is run here, and no
container engine is needed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from affserve.export import engine_sets
from affserve.export.deployment.container import (
    GRACE_S,
    GRPC_PORT,
    HEALTH_TIMEOUT_S,
    HTTP_PORT,
    METRICS_PORT,
    NAME,
    SHM_GIB,
    TLS_FILES,
    TLS_PLACE,
    Part,
    checked,
    command,
    health_command,
    uses_gpu,
    yaml_text,
)
from affserve.export.pins import TRITON_CONTAINER_TAG, image
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config
from affserve.export.server.config import ServerConfig
from affserve.export.server.installation import BACKENDS, SHARED_MODULE, own_backends, requirements

OWN_IMAGE = f"{NAME}-triton:{TRITON_CONTAINER_TAG}"
NATIVE_BACKENDS = {"onnxruntime", "openvino", "tensorrt"}  # of the container
MODELS_PLACE, BACKENDS_PLACE = "/models", "/opt/tritonserver/backends"
ULIMITS = {"memlock": -1, "stack": 67108864}
HEALTH = {"interval": "30s", "timeout": f"{HEALTH_TIMEOUT_S}s", "retries": 3, "start_period": "300s"}


def compose_file(config: ServerConfig) -> str:
    """Return a compose.yaml."""
    config = checked(config)
    gpus, backends = uses_gpu(config), _needed_backends(config)
    devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    triton = {
        **_image(backends),
        "restart": "unless-stopped",
        "stop_grace_period": f"{round(config.drain_timeout_s) + GRACE_S}s",
        # With the machine's own IPC the container sees all of its /dev/shm.
        **({"ipc": "host"} if config.shared_memory else {"shm_size": f"{SHM_GIB}g"}),
        "ulimits": ULIMITS,
        "security_opt": ["no-new-privileges:true"],
        "ports": _ports(config),
        "volumes": [
            {"type": "bind", "source": _literal(str(source)), "target": place, "read_only": True}
            for place, source in _mounts(config, backends).items()
        ],
        "command": [_literal(word) for word in command(config, MODELS_PLACE)],
        "healthcheck": {"test": ["CMD-SHELL", _literal(health_command())], **HEALTH},
        **({"deploy": {"resources": {"reservations": {"devices": devices}}}} if gpus else {}),
    }
    return yaml_text(_notes(config, gpus), [{"name": NAME, "services": {"triton": triton}}])


def _literal(text: str) -> str:
    """Return what Compose, which replaces $NAME, reads as this text."""
    return text.replace("$", "$$")


def _image(backends: Sequence[Path]) -> Part:
    """Return the published image, or one with what backends of ours need besides."""
    packages = sorted({_pinned(name) for backend in backends for name in requirements(backend) if name != "numpy"})
    if not packages:
        return {"image": image()}
    # The variable for Pythons that belong to the distribution: in a container there is nobody else to break.
    install = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir"
    recipe = f"FROM {image()}\nRUN {install} {' '.join(packages)}\n"
    return {"image": OWN_IMAGE, "build": {"dockerfile_inline": recipe}}


def _needed_backends(config: ServerConfig) -> list[Path]:
    """Return the backends of ours that the models name and the container has not."""
    wanted = {
        read_config(config_path(config.repository, model.name, config.engine)).backend
        for model in served_models(config.repository)
    }
    return [model for model in own_backends() if model.parent.name in wanted - NATIVE_BACKENDS]


def _pinned(package: str) -> str:
    """Return a package with the version that is installed here, which is the one that was tried."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _ports(config: ServerConfig) -> list[str]:
    host = f"[{config.host}]" if ":" in config.host else config.host
    ports = [f"{host}:{config.grpc_port}:{GRPC_PORT}"]
    if config.serves_http:
        ports.append(f"{host}:{config.http_port}:{HTTP_PORT}")
    if config.metrics_port is not None:
        ports.append(f"{config.metrics_host}:{config.metrics_port}:{METRICS_PORT}")
    return ports


def _mounts(config: ServerConfig, backends: Sequence[Path]) -> Mapping[str, Path]:
    """Return what of this machine the container sees, read only, by its path inside."""
    # One by one: Triton loads whatever lies in the folder, and that is to be our models alone.
    names = [model.name for model in served_models(config.repository)]
    mounts = {f"{MODELS_PLACE}/{name}": config.repository.resolve() / name for name in names}
    mounts |= {f"{BACKENDS_PLACE}/{model.parent.relative_to(BACKENDS)}": model.parent for model in backends}
    if backends:
        mounts[f"{BACKENDS_PLACE}/python/{SHARED_MODULE.name}"] = SHARED_MODULE
    if (tls := config.tls) is not None:
        files = {file: getattr(tls, field) for field, file in TLS_FILES.items()}
        mounts |= {f"{TLS_PLACE}/{name}": path.resolve() for name, path in files.items() if path is not None}
    return mounts


def _notes(config: ServerConfig, gpus: bool) -> Iterator[str]:
    yield f"Serves {config.repository.resolve()} with Triton {TRITON_CONTAINER_TAG}; printed by affserve serve --print."
    if gpus:
        yield "Needs an NVIDIA GPU and the NVIDIA Container Toolkit."
    else:
        names = f"{engine_sets.TENSORRT} or {engine_sets.CUDA}"
        yield f"On the CPU. For a GPU print it with --engine {names}."
    yield f"Ports are published on {config.host}. Docker opens published ports past the machine's own firewall, so"
    yield "127.0.0.1 stays the choice behind a proxy; another address is given with --host, best with TLS."
    yield "Docker's health check is a true inference. Docker alone only restarts what has ended: an unhealthy container"
    yield "is shown as such (docker ps), and restarted by an orchestrator such as Swarm."
    yield "The key of the restricted interfaces is no secret: no header can have its name."
    if config.shared_memory:
        yield "Callers may register shared memory: the container sees all of this machine's /dev/shm."
    yield "docker compose up --detach --wait, docker compose logs, docker compose down."
