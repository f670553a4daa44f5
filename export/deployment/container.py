"""What holds for a container of any kind: whether it can serve a repository, its command line, its health check.

In comes what `affserve serve` would be told. The server's options are those of server/config.py, only with the
container's own paths and addresses.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from affserve.export import engine_sets
from affserve.export.contract import AFFECT, CLIP_ENCODER
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config
from affserve.export.server.config import ServerConfig, arguments, serving_options
from affserve.export.server.security import is_private
from affserve.train.errors import RepositoryError, ServerError

Part = dict[str, Any]  # of a file for a container engine or a cluster

NAME = "affserve"
TLS_PLACE = "/tls"
TLS_FILES = {
    "certificate": "server.pem",
    "key": "server.key",
    "client_ca": "ca.pem",
}  # field of ServerTls -> file there
GRPC_PORT, HTTP_PORT, METRICS_PORT = 8001, 8000, 8002  # inside the container
# What NVIDIA's containers ask for at their start; /dev/shm carries tensors to and from the python backend's processes.
SHM_GIB = 1
GRACE_S = 10  # for the server to end after it has drained
HEALTH_TIMEOUT_S = 20


def checked(config: ServerConfig) -> ServerConfig:
    """Return what a container is to serve, the engine set chosen; an error where none can serve it."""
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
    if config.engine == engine_sets.AUTO:  # where the container will run is not known here
        config = dataclasses.replace(config, engine=engine_sets.CPU)
    for model in served_models(config.repository):
        config_path(config.repository, model.name, config.engine)
    if config.threads is not None or config.instances is not None:
        raise ServerError(
            "--threads and --instances are for the server on this machine; in a container they stand in the models' "
            "configurations (instance_group, and the parameter intra_op_thread_count): leave them away"
        )
    if 0 in (config.grpc_port, config.http_port, config.metrics_port):
        raise ServerError("a container needs given ports, not any free one: choose --grpc-port, --http-port, ...")
    return config


def uses_gpu(config: ServerConfig) -> bool:
    """Say whether the engine set computes the encoder on a GPU."""
    encoder = read_config(config_path(config.repository, CLIP_ENCODER.name, config.engine))
    return all(group.Kind.Name(group.kind) != "KIND_CPU" for group in encoder.instance_group)


def command(config: ServerConfig, models: str) -> list[str]:
    """Return the command line of tritonserver; models: the folder that it takes for its repository."""
    inside = dataclasses.replace(
        config,
        host="0.0.0.0",  # of the container's own network; who reaches it is decided by the published ports
        grpc_port=GRPC_PORT,
        http_port=None if config.http_port is None else HTTP_PORT,
        metrics_port=None if config.metrics_port is None else METRICS_PORT,
        shared_memory=bool(config.shared_memory),
    )
    callers = (
        Path(TLS_PLACE, TLS_FILES["client_ca"]) if inside.tls is not None and inside.tls.client_ca is not None else None
    )
    options = serving_options(inside, Path(models), callers)
    if inside.tls is not None:
        own = {name: f"{TLS_PLACE}/{file}" for name, file in TLS_FILES.items()}
        options |= {"grpc-server-cert": own["certificate"], "grpc-server-key": own["key"]}
    if not inside.serves_http:
        # Of the container's own loopback, for the health check inside: nobody else reaches it.
        options |= {"allow-http": "true", "http-address": "127.0.0.1", "http-port": HTTP_PORT}
        options["http-restricted-api"] = options["grpc-restricted-protocol"]
    if inside.metrics_port is not None:
        options["metrics-address"] = inside.host
    return ["tritonserver", *arguments(options)]


def health_command(port: int = HTTP_PORT) -> str:
    """Return a shell command that has the encoder and the head answer one black frame; it fails when they do not.

    Readiness alone would not do: a Triton whose python process died keeps saying that it is ready. The frame travels as
    bytes behind the JSON, which Triton calls the binary tensor extension.
    """
    frames = AFFECT.inputs[0]
    shape = [1, *frames.shape[1:]]
    size = frames.numpy_dtype.itemsize * math.prod(shape)
    tensor = {"name": frames.name, "shape": shape, "datatype": frames.datatype}
    request = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}, separators=(",", ":"))
    return (
        f"{{ printf %s '{request}'; head -c {size} /dev/zero; }} | curl --fail --silent --show-error "
        f"--max-time {HEALTH_TIMEOUT_S - 5} --output /dev/null --data-binary @- "
        f"--header 'Inference-Header-Content-Length: {len(request)}' "
        f"http://127.0.0.1:{port}/v2/models/{AFFECT.name}/infer"
    )


def yaml_text(notes: Iterable[str], documents: Iterable[Part]) -> str:
    """Return documents as YAML behind what whoever applies them should know; long texts keep their lines."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
        """Writes what stands in two places twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if text.count("\n") > 1 else None)

    Dumper.add_representer(str, represent)
    head = "".join(f"# {note}\n" for note in notes)
    return f"{head}---\n{yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120)}"
