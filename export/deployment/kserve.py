"""The service under KServe: a runtime of our own with the pinned server, and an inference service that uses it.

KServe's own runtime for Triton is old and small. KServe brings the repository to the pod, makes the network around it
and, by KEDA, scales it; container, probes and rights are those of the Kubernetes manifests.
"""

from __future__ import annotations

from typing import Any

from affserve.export.deployment.container import GRPC_PORT, METRICS_PORT, NAME, Part, yaml_text
from affserve.export.deployment.dashboard import QUEUE_THRESHOLD_US, queue_time_us
from affserve.export.deployment.kubernetes import CLAIM
from affserve.export.deployment.pod import ClusterOptions, notes, pod_config, pod_spec, serving_container, volumes
from affserve.export.server.config import ServerConfig
from affserve.train.errors import ServerError

STORED = "/mnt/models"  # where KServe puts what storageUri names
PROTOCOL, FORMAT = "grpc-v2", {"name": NAME, "version": "1"}
# Newer releases say Standard, and know both words.
MODE = {"serving.kserve.io/deploymentMode": "RawDeployment", "serving.kserve.io/autoscalerClass": "keda"}
METRICS = {"prometheus.kserve.io/port": str(METRICS_PORT), "prometheus.kserve.io/path": "/metrics"}


def kserve_manifests(config: ServerConfig, options: ClusterOptions) -> str:
    """Return a ServingRuntime and an InferenceService as YAML."""
    if config.tls is not None or config.serves_http:
        raise ServerError(
            "KServe takes gRPC's port alone, and its gateway encrypts: leave --tls-... and --http-port away"
        )
    config = pod_config(config, options)
    runtime = {
        "annotations": METRICS,
        "supportedModelFormats": [{**FORMAT, "autoSelect": False}],
        "protocolVersions": [PROTOCOL],
        "multiModel": False,
        # The port's name tells KServe's gateway and Knative that it speaks HTTP/2 without TLS.
        "containers": [{**serving_container(config, options, STORED, {"h2c": GRPC_PORT}), "name": "kserve-container"}],
        "volumes": volumes(config),
    }
    documents = [
        _object("v1alpha1", "ServingRuntime", options, runtime),
        _object("v1beta1", "InferenceService", options, _service(config, options), annotations=MODE),
    ]
    stored = "" if options.storage else f", and the claim {CLAIM} holds the repository's content"
    note = f"The service account {NAME} may read the storage (KServe's documentation tells how){stored}."
    return yaml_text([*notes(config, options), note], documents)


def _object(version: str, kind: str, options: ClusterOptions, spec: Part, **metadata: Any) -> Part:
    named = {"name": NAME, "namespace": options.namespace, **metadata}
    return {"apiVersion": f"serving.kserve.io/{version}", "kind": kind, "metadata": named, "spec": spec}


def _service(config: ServerConfig, options: ClusterOptions) -> Part:
    query = {"backend": "prometheus", "serverAddress": options.prometheus, "query": queue_time_us(options.namespace)}
    target = {"type": "Value", "value": str(QUEUE_THRESHOLD_US)}
    model = {"modelFormat": FORMAT, "protocolVersion": PROTOCOL, "runtime": NAME}
    predictor = {
        "minReplicas": options.replicas,
        "maxReplicas": options.most,
        "autoScaling": {"metrics": [{"type": "External", "external": {"metric": query, "target": target}}]},
        **pod_spec(config),
        "model": {**model, "storageUri": options.storage or f"pvc://{CLAIM}"},
    }
    return {"predictor": predictor}
