"""What is wrong with Kubernetes manifests: by their schemas, and by whether their parts fit one another."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Part = dict[str, Any]
CRDS = Path(__file__).parents[2] / "shared" / "data" / "crds"
PORT_FLAGS = {"grpc": "grpc-port", "h2c": "grpc-port", "http": "http-port", "metrics": "metrics-port"}


@functools.cache
def crd_schemas() -> Mapping[tuple[str, str], Part]:
    """The schemas of custom resources by API version and kind, unknown fields forbidden; none without ../shared."""
    found = {}
    for path in CRDS.glob("*.yaml"):
        for crd in filter(None, yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)):
            for version in crd["spec"]["versions"]:
                api = f"{crd['spec']['group']}/{version['name']}"
                found[api, crd["spec"]["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    """What the API server prunes is a mistake here."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        whole = {"apiVersion": {}, "kind": {}, "metadata": {}} if "spec" in schema["properties"] else {}
        changed = {"additionalProperties": False, **changed, "properties": {**changed["properties"], **whole}}
    return changed


def problems(documents: list[Part]) -> list[str]:
    """Return what an API server, or the pods afterwards, would stumble over."""
    kinds = {document["kind"]: document for document in documents}
    found = [problem for document in documents for problem in by_schema(document)]
    if "Deployment" in kinds:
        found += of_cluster(kinds)
    if "InferenceService" in kinds:
        found += of_kserve(kinds["ServingRuntime"]["spec"], kinds["InferenceService"]["spec"]["predictor"])
    return found


def by_schema(document: Part) -> Iterator[str]:
    kind = document["kind"]
    if "." not in document["apiVersion"].split("/")[0] or ".k8s.io" in document["apiVersion"]:
        try:
            kubernetes_validate.validate(document, "1.37", strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{kind}: {'.'.join(map(str, error.path))}: {error.message}"
    elif CRDS.is_dir():
        schema = crd_schemas()[document["apiVersion"], kind]
        for one in jsonschema.Draft7Validator(schema).iter_errors(document):
            yield f"{kind}: {'.'.join(map(str, one.absolute_path))}: {one.message}"


def of_cluster(kinds: Mapping[str, Part]) -> Iterator[str]:
    deployment = kinds["Deployment"]["spec"]
    labels, pod = deployment["template"]["metadata"]["labels"], deployment["template"]["spec"]
    yield from of_pod(pod)
    open_ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    selectors = {
        "Deployment": deployment["selector"]["matchLabels"],
        "Service": kinds["Service"]["spec"]["selector"],
        "NetworkPolicy": kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        "PodDisruptionBudget": kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "PodMonitor": kinds["PodMonitor"]["spec"]["selector"]["matchLabels"],
    }
    yield from (
        f"{kind} selects other pods" for kind, chosen in selectors.items() if not chosen.items() <= labels.items()
    )
    named = {
        "Service": [port["targetPort"] for port in kinds["Service"]["spec"]["ports"]],
        "NetworkPolicy": [port["port"] for rule in kinds["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]],
        "PodMonitor": [endpoint["port"] for endpoint in kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]],
    }
    yield from (
        f"{kind} names no port {one}" for kind, names in named.items() for one in names if one not in open_ports
    )
    for port in kinds["Service"]["spec"]["ports"]:
        if port["port"] != open_ports.get(port["targetPort"], port["port"]):
            yield f"a service without an address leads to port {port['port']}, where no pod listens"
    if (account := pod["serviceAccountName"]) != kinds["ServiceAccount"]["metadata"]["name"]:
        yield f"there is no service account {account}"
    claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
    there = kinds.get("PersistentVolumeClaim", {"metadata": {"name": None}})["metadata"]["name"]
    yield from (f"there is no claim {claim}" for claim in claims if claim != there)
    if "ScaledObject" in kinds:
        target = kinds["ScaledObject"]["spec"]["scaleTargetRef"]["name"]
        if target != kinds["Deployment"]["metadata"]["name"] or "replicas" in deployment:
            yield "KEDA scales what is not there, or what has a number of its own"
    if len({document["metadata"]["namespace"] for document in kinds.values()}) > 1:
        yield "not all are in one namespace"


def of_kserve(runtime: Part, predictor: Part) -> Iterator[str]:
    yield from of_pod({**predictor, **runtime})
    wanted, offered = predictor["model"]["modelFormat"], runtime["supportedModelFormats"]
    if not any(wanted.items() <= one.items() for one in offered):
        yield f"the runtime does not support the format {wanted}"
    if predictor["model"]["protocolVersion"] not in runtime["protocolVersions"]:
        yield "the runtime does not speak the protocol"
    if [port["name"] for port in runtime["containers"][0]["ports"]] != ["h2c"]:
        yield "KServe wants one port, named h2c for gRPC"
    if runtime["containers"][0]["name"] != "kserve-container":
        yield "KServe wants the name kserve-container"


def of_pod(pod: Part) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        yield from (f"{container['name']} mounts no volume {name}" for name in mounts if name not in volumes)
        if not container["securityContext"]["readOnlyRootFilesystem"] or not pod["securityContext"]["runAsNonRoot"]:
            yield f"{container['name']} may write its disk or be root"
    (container,) = pod["containers"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in container["args"][1:] if "=" in word)
    for port in container["ports"]:
        if flags.get(PORT_FLAGS[port["name"]]) != str(port["containerPort"]):
            yield f"port {port['name']} is {port['containerPort']}, and the server listens elsewhere"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if f"127.0.0.1:{flags['http-port']}/v2/models/" not in container[name]["exec"]["command"][-1]:
            yield f"{name} asks where the server does not listen"
    place = container["command"][container["command"].index("--") - 1]
    if flags["model-repository"] != place or not any(place.startswith(one) for one in mounts.values()):
        yield "the server reads models from elsewhere than they are laid out"
    if container["command"][-5] != "/mnt/models" and container["command"][-5] not in mounts.values():
        yield "the models are mounted elsewhere"
    patience_s = float(flags["exit-timeout-secs"]) + float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    if pod["terminationGracePeriodSeconds"] <= patience_s:
        yield "pods are killed before they have drained"
