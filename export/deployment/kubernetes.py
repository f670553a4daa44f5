"""The service in a Kubernetes cluster: everything from the pods to who may call them and when there are more.

Callers find every pod's address behind the one name of a service without an address of its own, and choose themselves:
a gRPC connection through a service's address would stay with one pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from affserve.export.deployment.container import GRPC_PORT, NAME, Part, uses_gpu, yaml_text
from affserve.export.deployment.dashboard import QUEUE_THRESHOLD_US, queue_time_us
from affserve.export.deployment.pod import (
    LABELS,
    MAY_NOTHING,
    ClusterOptions,
    notes,
    pod_config,
    pod_spec,
    ports,
    repository_gib,
    serving_container,
    volumes,
)
from affserve.export.pins import S3_CLIENT_IMAGE
from affserve.export.server.config import ServerConfig

MODELS_PLACE = "/repository"
CLAIM = f"{NAME}-models"
S3_SECRET = (
    f"{NAME}-s3"  # AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, where they are needed
)
SELECTOR = {"matchLabels": LABELS}
DNS_AND_HTTPS = [*({"port": 53, "protocol": name} for name in ("UDP", "TCP")), {"port": 443, "protocol": "TCP"}]


def kubernetes_manifests(config: ServerConfig, options: ClusterOptions) -> str:
    """Return the manifests as YAML; RepositoryError or ServerError where the repository cannot be served so."""
    config = pod_config(config, options)
    endpoint = {"port": "metrics", "path": "/metrics", "interval": "15s"}
    kinds: dict[tuple[str, str], Part] = {
        ("apps/v1", "Deployment"): _deployment(config, options),
        ("v1", "Service"): _service(config),
        ("networking.k8s.io/v1", "NetworkPolicy"): _network_policy(config, options),
        ("policy/v1", "PodDisruptionBudget"): {"maxUnavailable": 1, "selector": SELECTOR},
        ("monitoring.coreos.com/v1", "PodMonitor"): {"selector": SELECTOR, "podMetricsEndpoints": [endpoint]},
    }
    if options.most > options.replicas:
        kinds["keda.sh/v1alpha1", "ScaledObject"] = _scaling(options)
    documents = [_object("v1", "ServiceAccount", options, automountServiceAccountToken=False)]
    if options.storage is None:
        size = {"requests": {"storage": f"{repository_gib(config, 4)}Gi"}}
        claim = {"accessModes": ["ReadWriteMany"], "resources": size}
        documents.append(_object("v1", "PersistentVolumeClaim", options, name=CLAIM, spec=claim))
    documents += [_object(version, kind, options, spec=spec) for (version, kind), spec in kinds.items()]
    return yaml_text([*notes(config, options), *_notes(options)], documents)


def _object(version: str, kind: str, options: ClusterOptions, *, name: str = NAME, **content: Any) -> Part:
    metadata = {"name": name, "namespace": options.namespace, "labels": LABELS}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _deployment(config: ServerConfig, options: ClusterOptions) -> Part:
    serving = serving_container(config, options, MODELS_PLACE, ports(config))
    serving["volumeMounts"].append({"name": "models", "mountPath": MODELS_PLACE, "readOnly": True})
    claimed = {"persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}}
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    pod = {
        **pod_spec(config),
        "topologySpreadConstraints": [{**spread, "labelSelector": SELECTOR}],
        **({"initContainers": [_fetcher(options.storage)]} if options.storage else {}),
        "containers": [serving],
        "volumes": [*volumes(config), {"name": "models", **({"emptyDir": {}} if options.storage else claimed)}],
    }
    # A GPU more than there are replicas need not be there: with GPUs a pod stops before the next one starts.
    step = {"maxSurge": 0, "maxUnavailable": 1} if uses_gpu(config) else {"maxSurge": 1, "maxUnavailable": 0}
    return {
        # Where KEDA decides, a number here would undo that whenever the manifests are applied.
        **({"replicas": options.replicas} if options.most == options.replicas else {}),
        "selector": SELECTOR,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": step},
        "template": {"metadata": {"labels": LABELS}, "spec": pod},
    }


def _fetcher(storage: str) -> Part:
    return {
        "name": "fetch",
        "image": S3_CLIENT_IMAGE,
        "command": ["aws", "s3", "sync", "--no-progress", storage, MODELS_PLACE],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "envFrom": [{"secretRef": {"name": S3_SECRET, "optional": True}}],
        "resources": {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": MAY_NOTHING,
        "volumeMounts": [{"name": "models", "mountPath": MODELS_PLACE}, {"name": "tmp", "mountPath": "/tmp"}],
    }


def _service(config: ServerConfig) -> Part:
    # Without an address of its own a service translates no ports: they are those of the pods.
    named = [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
        for name, port in ports(config).items()
        if name != "metrics"
    ]
    return {"clusterIP": "None", "selector": LABELS, "ports": named}


def _network_policy(config: ServerConfig, options: ClusterOptions) -> Part:
    open_ports = {name: {"port": name, "protocol": "TCP"} for name in ports(config)}
    metrics = {"from": [{"namespaceSelector": {}}], "ports": [open_ports.pop("metrics")]}
    return {
        "podSelector": SELECTOR,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": list(open_ports.values())}, metrics],
        "egress": [{"ports": DNS_AND_HTTPS}] if options.storage else [],
    }


def _scaling(options: ClusterOptions) -> Part:
    query = queue_time_us(options.namespace)
    asked = {"serverAddress": options.prometheus, "query": query, "threshold": str(QUEUE_THRESHOLD_US)}
    return {
        "scaleTargetRef": {"name": NAME},
        "minReplicaCount": options.replicas,
        "maxReplicaCount": options.most,
        # A value, not one per pod: the time is a mean already.
        "triggers": [{"type": "prometheus", "metricType": "Value", "metadata": asked}],
    }


def _notes(options: ClusterOptions) -> Iterator[str]:
    yield f"Callers of the namespace say --url {NAME}:{GRPC_PORT} and ask every pod behind the name; let others in by a"
    yield "NetworkPolicy of yours. PodMonitor needs the Prometheus operator, ScaledObject KEDA."
    if options.storage is None:
        yield f"Copy the repository's content into the volume of the claim {CLAIM}: pods wait for it, failing."
    else:
        yield f"The secret {S3_SECRET} may hold AWS_ACCESS_KEY_ID and what else the AWS client reads; or give the"
        yield f"service account {NAME} a role. Pods may call DNS and port 443 only: allow another port yourself."
