"""The pod that serves: one container and what it needs around it, the same for Kubernetes and KServe.

In come the options of `affserve serve` and those of a cluster, out come plain dictionaries. It runs as a user without
rights, its disk is read only, and before the server starts the models are compared with those that were printed for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from affserve.export.contract import JPEG_MODELS, MANIFEST_FILE
from affserve.export.deployment import container, verify_models
from affserve.export.deployment.container import NAME, SHM_GIB, TLS_FILES, TLS_PLACE, Part, uses_gpu
from affserve.export.pins import TRITON_CONTAINER_TAG, image
from affserve.export.repository.check import served_models
from affserve.export.repository.manifest import EXPORT_COMMAND, read_manifest
from affserve.export.server.config import ServerConfig
from affserve.train.errors import RepositoryError, ServerError

LABELS = {"app.kubernetes.io/name": NAME}
LAID_OUT = "/tmp/models"  # what the server takes for its repository: links to the models, and nothing else
USER = 1000  # triton-server, of the container
TLS_SECRET, SECRET_KEYS = f"{NAME}-tls", {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}
PRE_STOP_S = 5  # Kubernetes takes a pod's address away while it stops: nobody new may come when the server does
CPUS, CPUS_BESIDE_GPU = 4, 2
BASE_GIB, MEMORY_PER_FILE_BYTE = 2, 3  # the server; weights as they are read, as they are packed, and activations
STARTUP_PERIOD_S = 10
MAY_NOTHING = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What a cluster adds to the options of `affserve serve`."""

    storage: str | None = None  # s3://BUCKET/FOLDER of the repository; None: a volume that is filled by hand
    namespace: str = NAME
    image: str | None = None  # None: the pinned one
    replicas: int = 1  # the fewest
    most_replicas: int | None = None  # None: four times as many
    gpus: int | None = None  # of each replica; None: one, where the engine set computes on GPUs
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"  # which KEDA asks

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{,61}[a-z0-9])?", self.namespace):
            raise ServerError(
                f"namespace is {self.namespace!r}; expected up to 63 lower-case letters, digits and hyphens"
            )
        if self.replicas < 1 or self.most < self.replicas:
            raise ServerError(f"replicas are {self.replicas} to {self.most}; expected at least 1, the most last")
        if self.storage is not None and not self.storage.startswith("s3://"):
            raise ServerError(f"the repository is at {self.storage}; expected s3://BUCKET/FOLDER or a local folder")

    @property
    def most(self) -> int:
        """The most replicas; where they are the fewest, too, nothing scales."""
        return 4 * self.replicas if self.most_replicas is None else self.most_replicas


def pod_config(config: ServerConfig, options: ClusterOptions) -> ServerConfig:
    """Return what a pod is to serve, its metrics on; ServerError for what a cluster does otherwise."""
    config = container.checked(dataclasses.replace(config, metrics_port=config.metrics_port or container.METRICS_PORT))
    if config.watch or config.shared_memory:
        raise ServerError(
            "--watch and --shared-memory are not for pods: each serves the version that was printed, to other machines"
        )
    if options.gpus is not None and (options.gpus > 0) is not uses_gpu(config):
        raise ServerError(
            f"--gpus is {options.gpus} with --engine {config.engine}; GPUs are for --engine tensorrt or cuda, which "
            "need at least one"
        )
    return config


def ports(config: ServerConfig) -> dict[str, int]:
    """Return the ports that others reach, by name."""
    http = {"http": container.HTTP_PORT} if config.serves_http else {}
    return {"grpc": container.GRPC_PORT, **http, "metrics": container.METRICS_PORT}


def serving_container(
    config: ServerConfig, options: ClusterOptions, models: str, open_ports: Mapping[str, int]
) -> Part:
    """Return the container; models: where the repository is mounted."""
    alive = {
        "exec": {"command": ["sh", "-c", container.health_command()]},
        "timeoutSeconds": container.HEALTH_TIMEOUT_S,
    }
    patience = math.ceil(config.startup_timeout_s / STARTUP_PERIOD_S)
    tls = [{"name": "tls", "mountPath": TLS_PLACE, "readOnly": True}] if config.tls is not None else []
    return {
        "name": "triton",
        "image": options.image or image(),
        "command": [*_verifier(config, models), "--"],
        "args": container.command(config, LAID_OUT),
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in open_ports.items()],
        # Each is a true inference: a server whose model died keeps saying that it is ready.
        "startupProbe": {**alive, "periodSeconds": STARTUP_PERIOD_S, "failureThreshold": patience},
        "readinessProbe": {**alive, "periodSeconds": 15, "failureThreshold": 2},
        "livenessProbe": {**alive, "periodSeconds": 30, "failureThreshold": 4},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": _resources(config, options),
        "securityContext": MAY_NOTHING,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}, *tls],
    }


def _verifier(config: ServerConfig, models: str) -> list[str]:
    if (manifest := read_manifest(config.repository)) is None:
        raise RepositoryError(f"{config.repository} has no {MANIFEST_FILE}; write it again with: {EXPORT_COMMAND} ...")
    version = str(manifest.served)
    # Of JPEG the container has no backend, and it cannot be told of one without another image.
    names = [model.name for model in served_models(config.repository) if model.name not in JPEG_MODELS]
    hashes = json.dumps(verify_models.file_hashes(config.repository, version, names), indent=0)
    return ["python3", "-c", Path(verify_models.__file__).read_text(), models, version, hashes, LAID_OUT]


def repository_gib(config: ServerConfig, times: int) -> int:
    """Return so many times the size of the models, in whole GiB."""
    files = (path for model in served_models(config.repository) for path in (config.repository / model.name).rglob("*"))
    return math.ceil(times * sum(path.stat().st_size for path in files if path.is_file()) / (1 << 30))


def _resources(config: ServerConfig, options: ClusterOptions) -> Part:
    memory = f"{repository_gib(config, MEMORY_PER_FILE_BYTE) + BASE_GIB + SHM_GIB}Gi"
    gpus = {"nvidia.com/gpu": str(options.gpus or 1)} if uses_gpu(config) else {}
    cpus = str(CPUS_BESIDE_GPU if gpus else CPUS)
    return {"requests": {"cpu": cpus, "memory": memory}, "limits": {"memory": memory, **gpus}}


def volumes(config: ServerConfig) -> list[Part]:
    """Return what the container's mounts name, except for the models."""
    found: list[Part] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHM_GIB}Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if keys := _secret_keys(config):
        items = [{"key": SECRET_KEYS[field], "path": TLS_FILES[field]} for field in keys]
        found.append({"name": "tls", "secret": {"secretName": TLS_SECRET, "defaultMode": 0o440, "items": items}})
    return found


def _secret_keys(config: ServerConfig) -> list[str]:
    return [field for field in TLS_FILES if config.tls is not None and getattr(config.tls, field) is not None]


def pod_spec(config: ServerConfig) -> Part:
    """Return as whom the pod runs, on which nodes, and how long it may take to stop."""
    ids = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), USER)
    gpus = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": PRE_STOP_S + round(config.drain_timeout_s) + container.GRACE_S,
        **({"tolerations": gpus} if uses_gpu(config) else {}),
    }


def notes(config: ServerConfig, options: ClusterOptions) -> Iterator[str]:
    """Yield what whoever applies the manifests should know."""
    yield f"Serves {options.storage or config.repository.resolve()} with Triton {TRITON_CONTAINER_TAG}, engine set"
    yield f"{config.engine}; printed by affserve serve --print. Before: kubectl create namespace {options.namespace}"
    yield "A pod serves only the very files that were there when this was printed; print again for another version."
    yield "Models for JPEG are left out: the container has no backend for them. --image names another image or mirror."
    if uses_gpu(config):
        yield "Needs nodes with NVIDIA GPUs and NVIDIA's device plugin."
    if keys := _secret_keys(config):
        yield f"TLS: the secret {TLS_SECRET} holds {', '.join(SECRET_KEYS[field] for field in keys)}."
