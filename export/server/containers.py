"""The same service in a container: a file for Docker Compose.

In comes what `affserve serve` would be told, out comes text. The server's options are those of config.py, only
with the container's own paths and addresses. Nothing is run here, and no container engine is needed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from affserve.export import engine_sets
from affserve.export.contract import AFFECT, CLIP_ENCODER
from affserve.export.pins import TRITON_CONTAINER_TAG, image
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config
from affserve.export.server.config import ServerConfig, arguments, serving_options
from affserve.export.server.installation import BACKENDS, SHARED_MODULE, own_backends, requirements
from affserve.export.server.security import is_private
from affserve.train.errors import RepositoryError, ServerError

NAME = "affserve"
OWN_IMAGE = f"{NAME}-triton:{TRITON_CONTAINER_TAG}"
NATIVE_BACKENDS = {"onnxruntime", "openvino", "tensorrt"}  # of the container
MODELS_PLACE, TLS_PLACE, BACKENDS_PLACE = "/models", "/tls", "/opt/tritonserver/backends"
GRPC_PORT, HTTP_PORT, METRICS_PORT = 8001, 8000, 8002  # inside the container
# What NVIDIA's containers ask for at their start; /dev/shm carries tensors to and from the python backend's processes.
SHM_SIZE = "1g"
ULIMITS = {"memlock": -1, "stack": 67108864}
HEALTH = {"interval": "30s", "timeout": "20s", "retries": 3, "start_period": "300s"}
GRACE_S = 10  # for the server to end after it has drained


def compose_file(config: ServerConfig) -> str:
    """Return a compose.yaml. All its strings are written as JSON, which is YAML."""
    _check(config)
    gpus, backends = _uses_gpu(config), _needed_backends(config)
    lines = [f"# {note}" for note in _notes(config, gpus)]
    lines += ["", f"name: {NAME}", "services:", "  triton:", *_image(backends), "    restart: unless-stopped"]
    lines += [f"    stop_grace_period: {round(config.drain_timeout_s) + GRACE_S}s"]
    # With the machine's own IPC the container sees all of its /dev/shm.
    lines += ["    ipc: host" if config.shared_memory else f"    shm_size: {SHM_SIZE}"]
    lines += ["    ulimits:", *(f"      {name}: {value}" for name, value in ULIMITS.items())]
    lines += ['    security_opt: ["no-new-privileges:true"]']
    lines += ["    ports:", *(f"      - {_word(port)}" for port in _ports(config)), "    volumes:"]
    for place, source in _mounts(config, backends).items():
        lines += ["      - type: bind", f"        source: {_word(str(source))}"]
        lines += [f"        target: {_word(place)}", "        read_only: true"]
    lines += ["    command:", *(f"      - {_word(word)}" for word in _command(config))]
    lines += ["    healthcheck:", f'      test: ["CMD-SHELL", {_word(health_command())}]']
    lines += [f"      {name}: {value}" for name, value in HEALTH.items()]
    if gpus:
        lines += ["    deploy:", "      resources:", "        reservations:", "          devices:"]
        lines += ["            - driver: nvidia", "              count: all", "              capabilities: [gpu]"]
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """Quote a string for Compose, which replaces $NAME in all of them."""
    return json.dumps(text.replace("$", "$$"))


def _image(backends: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of the image: the published one, or one with what backends of ours need besides."""
    packages = sorted({_pinned(name) for backend in backends for name in requirements(backend) if name != "numpy"})
    yield f"    image: {_word(OWN_IMAGE if packages else image())}"
    if packages:
        yield from ("    build:", "      dockerfile_inline: |", f"        FROM {image()}")
        # The variable for Pythons that belong to the distribution: in a container there is nobody else to break.
        install = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir"
        yield f"        RUN {install} {' '.join(packages)}"


def _check(config: ServerConfig) -> None:
    if is_private(config.host):
        raise ServerError(f"a container publishes ports, not socket files: choose another --host than {config.host}")
    if not config.repository.is_dir():
        raise RepositoryError(
            f"{config.repository} is not a folder; write a model repository with: affserve export ..."
        )
    if config.engine == engine_sets.RTX:
        raise ServerError(
            "the container's TensorRT does not run plans for RTX cards, TensorRT for RTX does, without a container: "
            f"affserve serve --engine {engine_sets.RTX}; in the container it is --engine {engine_sets.TENSORRT}"
        )
    for model in served_models(config.repository):
        config_path(config.repository, model.name, config.engine)
    if config.threads is not None or config.instances is not None:
        raise ServerError(
            "--threads and --instances are for the server on this machine; in a container they stand in the models' "
            "configurations (instance_group, and the parameter intra_op_thread_count): leave them away"
        )
    if 0 in (config.grpc_port, config.http_port, config.metrics_port):
        raise ServerError("a container needs given ports, not any free one: choose --grpc-port, --http-port, ...")


def _needed_backends(config: ServerConfig) -> list[Path]:
    """Return the backends of ours that the models name and the container has not."""
    wanted = {
        read_config(config_path(config.repository, model.name, config.engine)).backend
        for model in served_models(config.repository)
    }
    return [model for model in own_backends() if model.parent.name in wanted - NATIVE_BACKENDS]


def _uses_gpu(config: ServerConfig) -> bool:
    encoder = read_config(config_path(config.repository, CLIP_ENCODER.name, config.engine))
    return all(group.Kind.Name(group.kind) != "KIND_CPU" for group in encoder.instance_group)


def _pinned(package: str) -> str:
    """Return a package with the version that is installed here, which is the one that was tried."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _command(config: ServerConfig) -> list[str]:
    inside = dataclasses.replace(
        config,
        host="0.0.0.0",  # of the container's own network; who reaches it is decided by the published ports
        grpc_port=GRPC_PORT,
        http_port=None if config.http_port is None else HTTP_PORT,
        metrics_port=None if config.metrics_port is None else METRICS_PORT,
        shared_memory=bool(config.shared_memory),
    )
    callers = Path(TLS_PLACE, "ca.pem") if inside.tls is not None and inside.tls.client_ca is not None else None
    options = serving_options(inside, Path(MODELS_PLACE), callers)
    if inside.tls is not None:
        options |= {"grpc-server-cert": f"{TLS_PLACE}/server.pem", "grpc-server-key": f"{TLS_PLACE}/server.key"}
    if not inside.serves_http:
        # Of the container's own loopback, for the health check inside: nobody else reaches it.
        options |= {"allow-http": "true", "http-address": "127.0.0.1", "http-port": HTTP_PORT}
        options["http-restricted-api"] = options["grpc-restricted-protocol"]
    if inside.metrics_port is not None:
        options["metrics-address"] = inside.host
    return ["tritonserver", *arguments(options)]


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
        files = {"server.pem": tls.certificate, "server.key": tls.key, "ca.pem": tls.client_ca}
        mounts |= {f"{TLS_PLACE}/{name}": path.resolve() for name, path in files.items() if path is not None}
    return mounts


def health_command(port: int = HTTP_PORT) -> str:
    """Return a shell command that has the encoder and the head answer one black frame; it fails when they do not.

    Readiness alone would not do: a Triton whose python process died keeps saying that it is ready. The frame travels as
    bytes behind the JSON, which Triton calls the binary tensor extension.
    """
    frames = AFFECT.inputs[0]
    shape = [1, *frames.shape[1:]]
    size = frames.numpy_dtype.itemsize
    for length in shape:
        size *= length
    tensor = {"name": frames.name, "shape": shape, "datatype": frames.datatype}
    request = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}, separators=(",", ":"))
    return (
        f"{{ printf %s '{request}'; head -c {size} /dev/zero; }} | curl --fail --silent --show-error --max-time 15 "
        f"--output /dev/null --data-binary @- --header 'Inference-Header-Content-Length: {len(request)}' "
        f"http://127.0.0.1:{port}/v2/models/{AFFECT.name}/infer"
    )


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
