"""What `affserve serve --print kubernetes|kserve|grafana` prints: checked by schemas, by one another, by a server."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import CRDS, problems
from tiny_server import needs_wheel, vouch
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.export.contract import JPEG_MODELS
from affserve.export.deployment import verify_models
from affserve.export.deployment.dashboard import PANELS, queue_time_us
from affserve.export.deployment.kserve import kserve_manifests
from affserve.export.deployment.kubernetes import kubernetes_manifests
from affserve.export.deployment.pod import ClusterOptions
from affserve.export.pins import image
from affserve.export.server.config import ServerConfig
from affserve.export.server.security import ServerTls
from affserve.export.server.server import TritonServer
from affserve.train.errors import RepositoryError, ServerError

Part = dict[str, Any]
STORE = "s3://models/affect"


def printed(text: str) -> list[Part]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def kubernetes(repository: Path, options: ClusterOptions | None = None, **served: Any) -> list[Part]:
    config = ServerConfig(**{"repository": repository, "grpc_port": 8001, **served})
    return printed(kubernetes_manifests(config, options or ClusterOptions(storage=STORE)))


def kserve(repository: Path, options: ClusterOptions | None = None, **served: Any) -> list[Part]:
    config = ServerConfig(**{"repository": repository, "grpc_port": 8001, **served})
    return printed(kserve_manifests(config, options or ClusterOptions(storage=STORE)))


def of_kind(documents: list[Part], kind: str) -> Part:
    return next(document["spec"] for document in documents if document["kind"] == kind)


def serving(documents: list[Part]) -> Part:
    kinds = {document["kind"]: document.get("spec", {}) for document in documents}
    holder = kinds["ServingRuntime"] if "ServingRuntime" in kinds else kinds["Deployment"]["template"]["spec"]
    container: Part = holder["containers"][0]
    return container


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    import trustme

    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("affect.example.com")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    return ServerTls(certificate=folder / "tls.crt", key=folder / "tls.key", client_ca=folder / "ca.crt")


# --- all that is printed is valid ---


CASES = {
    "store": (ClusterOptions(storage=STORE), {}),
    "volume": (ClusterOptions(replicas=3, most_replicas=3), {"http_port": 8000}),
    "gpus": (ClusterOptions(gpus=2, namespace="lab", image="mirror.lab/triton:1"), {"engine": "tensorrt"}),
    "tls": (ClusterOptions(), {"tls": True, "drain_timeout_s": 100}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("make", [kubernetes, kserve])
def test_what_is_printed_is_valid(tiny: Path, tls: ServerTls, make: Callable[..., list[Part]], case: str) -> None:
    options, served = CASES[case]
    served = {**served, **({"tls": tls} if "tls" in served else {})}
    if make is kserve and served.keys() & {"tls", "http_port"}:
        with pytest.raises(ServerError, match="gRPC's port alone"):
            make(tiny, options, **served)
        return
    assert problems(make(tiny, options, **served)) == []


def test_custom_resources_are_compared_with_their_schemas() -> None:
    if not CRDS.is_dir():
        pytest.skip("no ../shared/data/crds beside this checkout: custom resources are compared with nothing")
    broken = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": {"triggers": [{"kind": "cpu"}]}}
    assert len(problems([broken])) >= 3, "a target is missing, a trigger without a type, an unknown field"


def set_at(path: str, value: Any) -> Callable[[list[Part]], None]:
    """Return a mistake: the value at a path whose first step is a kind."""

    def change(documents: list[Part]) -> None:
        kind, *steps, last = path.split("/")
        place: Any = next(document for document in documents if document["kind"] == kind)
        for step in steps:
            place = place[int(step) if step.isdecimal() else step]
        place[int(last) if last.isdecimal() else last] = value

    return change


POD = "Deployment/spec/template/spec"
BOX = f"{POD}/containers/0"
MISTAKES = {
    "port": (set_at(f"{BOX}/ports/0/containerPort", 9001), "listens elsewhere"),
    "named_port": (set_at("Service/spec/ports/0/targetPort", "rpc"), "names no port rpc"),
    "service_port": (set_at("Service/spec/ports/0/port", 9001), "port 9001, where no pod listens"),
    "monitored_port": (set_at("PodMonitor/spec/podMetricsEndpoints/0/port", "prom"), "names no port prom"),
    "volume": (set_at(f"{POD}/volumes", []), "mounts no volume shm"),
    "claim": (set_at(f"{POD}/volumes/0", {"name": "shm", "persistentVolumeClaim": {"claimName": "x"}}), "no claim x"),
    "unknown_field": (set_at(f"{BOX}/securitycontext", {}), "securitycontext"),
    "misplaced_field": (set_at(f"{POD}/replicas", 2), "replicas"),
    "type": (set_at("PodDisruptionBudget/spec/maxUnavailable", [1]), "maxUnavailable"),
    "probe": (set_at(f"{BOX}/livenessProbe/exec/command/2", "curl http://127.0.0.1:80"), "does not listen"),
    "labels": (set_at("NetworkPolicy/spec/podSelector/matchLabels", {"app": "x"}), "selects other pods"),
    "account": (set_at(f"{POD}/serviceAccountName", "root"), "no service account root"),
    "grace": (set_at(f"{POD}/terminationGracePeriodSeconds", 30), "killed before"),
    "models": (set_at(f"{BOX}/args/1", "--model-repository=/models"), "laid out"),
    "root": (set_at(f"{POD}/securityContext/runAsNonRoot", False), "be root"),
    "scaled": (set_at("ScaledObject/spec/scaleTargetRef/name", "x"), "scales what is not there"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_planted_mistake_is_found(tiny: Path, kind: str) -> None:
    plant, message = MISTAKES[kind]
    documents = copy.deepcopy(kubernetes(tiny))
    plant(documents)
    assert any(message in problem for problem in problems(documents)), problems(documents)


@pytest.mark.skipif(not CRDS.is_dir(), reason="no ../shared/data/crds beside this checkout")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ServingRuntime/spec/containers/0/prots", []),
        ("InferenceService/spec/predictor/model/modelFormat/name", "onnx"),
    ],
    ids=["unknown_field", "format"],
)
def test_a_planted_mistake_is_found_in_kserve(tiny: Path, path: str, value: Any) -> None:
    documents = kserve(tiny)
    set_at(path, value)(documents)
    assert problems(documents)


# --- and it is what `serve` does ---


@pytest.mark.parametrize("make", [kubernetes, kserve])
def test_the_server_is_told_what_serve_tells_it(repository: Path, make: Callable[..., list[Part]]) -> None:
    container = serving(make(repository))
    assert container["image"] == image()
    assert not re.search(r"\{\{|\$\(", json.dumps(container)), "KServe and Kubernetes would replace it"
    closed = "model-repository,logging,trace,shared-memory:nobody:\n=closed"
    wanted = {"--model-control-mode=none", f"--grpc-restricted-protocol={closed}", "--model-config-name=cpu"}
    assert wanted <= set(container["args"])
    linked = {path.split("/")[0] for path in json.loads(container["command"][-3])}
    assert linked.isdisjoint(JPEG_MODELS), "the container has no backend for them"
    assert {"clip_encoder", "temporal_head", "affect"} <= linked


def test_gpus_and_replicas_are_those_asked_for(tiny: Path) -> None:
    documents = kubernetes(tiny, ClusterOptions(gpus=2, replicas=2, most_replicas=6), engine="tensorrt")
    assert serving(documents)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    scaled = of_kind(documents, "ScaledObject")
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 6)
    assert of_kind(documents, "Deployment")["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert of_kind(kubernetes(tiny, ClusterOptions(replicas=2, most_replicas=2)), "Deployment")["replicas"] == 2


@needs_wheel
def test_metrics_that_are_asked_for_are_tritons(tiny: Path) -> None:
    asked = {query for _, _, lines in PANELS for query in lines.values()} | {queue_time_us("affserve")}
    names = {name for query in asked for name in re.findall(r"nv_\w+", query)}
    with (
        TritonServer(ServerConfig(repository=tiny, metrics_port=0)) as server,
        urllib.request.urlopen(f"http://{server.config.metrics_host}:{server.config.metrics_port}/metrics") as answer,
    ):
        served = set(re.findall(r"^nv_\w+", answer.read().decode(), flags=re.MULTILINE))
    # Told only where there is a GPU; the names are those of Triton's documentation.
    of_gpus = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_power_usage"}
    assert names - served <= of_gpus
    assert len(names - of_gpus) == 7


# --- in the pod ---


def verify(command: list[str], source: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run what the pod runs first, with the server's place taken by a program that says where it was started."""
    python, option, script, _, version, hashes, _, end = command
    words = [sys.executable, option, script, str(source), version, hashes, str(place), end, "echo", "serving"]
    assert python == "python3"
    return subprocess.run(words, capture_output=True, text=True, check=False, env={})


def test_a_pod_serves_the_very_files_that_were_printed_for(own: Path, tmp_path: Path) -> None:
    command = serving(kubernetes(own))["command"]
    for _ in range(2):  # the container may be started again
        done = verify(command, own, tmp_path / "models")
        assert (done.returncode, done.stdout) == (0, "serving\n"), done.stderr
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"affect", "clip_encoder", "temporal_head"}

    (own / "temporal_head/1/model.onnx").write_bytes(b"another")
    vouch(own)  # a manifest that vouches for the other file helps nobody
    done = verify(command, own, tmp_path / "models")
    assert done.returncode == 1
    assert "temporal_head/1/model.onnx (of 1)" in done.stderr

    (own / "affect/1/model.py").write_text("a program")
    assert "affect/1/model.py" in verify(command, own, tmp_path / "models").stderr
    shutil.rmtree(own / "clip_encoder")
    assert "clip_encoder/1/model.onnx" in verify(command, own, tmp_path / "models").stderr


def test_the_script_in_the_pod_needs_no_package() -> None:
    imported = re.findall(r"^(?:import|from) ([\w.]+)", Path(verify_models.__file__).read_text(), flags=re.MULTILINE)
    assert {name.split(".")[0] for name in imported} <= {"__future__", *sys.stdlib_module_names}


# --- the command ---


def test_the_command_prints_each_form(tiny: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["serve", str(tiny), *words])

    for form in ("kubernetes", "kserve"):
        done = run("--print", form, "--namespace", "lab", "--replicas", "2")
        assert done.exit_code == 0, done.output
        assert {document["metadata"]["namespace"] for document in printed(done.stdout)} == {"lab"}
    dashboard = json.loads(run("--print", "grafana", "--namespace", "lab").stdout)
    assert len(dashboard["panels"]) == len(PANELS)
    assert run("--print", "compose", "--gpus", "2").exit_code == 2, "it is for clusters"


@pytest.mark.parametrize(
    ("options", "served", "message"),
    [
        pytest.param({"namespace": "My Lab"}, {}, "namespace is 'My Lab'; expected", id="namespace"),
        pytest.param({"replicas": 3, "most_replicas": 2}, {}, "replicas are 3 to 2", id="replicas"),
        pytest.param({"storage": "gs://models"}, {}, "expected s3://BUCKET", id="storage"),
        pytest.param({"gpus": 1}, {"engine": "cpu"}, "--gpus is 1 with --engine cpu", id="gpus"),
        pytest.param({}, {"watch": True}, "--watch and --shared-memory are not for pods", id="watch"),
    ],
)
def test_what_no_pod_can_do_is_refused(tiny: Path, options: Part, served: Part, message: str) -> None:
    with pytest.raises(ServerError, match=re.escape(message)):
        kubernetes(tiny, ClusterOptions(**options), **served)


def test_a_repository_without_a_manifest_is_refused(own: Path) -> None:
    (own / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no manifest\.json"):
        kubernetes(own)
