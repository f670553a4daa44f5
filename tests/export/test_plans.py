"""Plans as files: names, sidecars, which machine may run one, and the script that has the container build them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_files import ADA, AMPERE, RECORD, put_plan

from affserve.export.contract import CLIP_ENCODER, TEMPORAL_HEAD
from affserve.export.engine.plans import obstacle, plan_file, read_record, record_file, verify_plan, write_record
from affserve.export.engine.profile import ENCODER_PROFILE, EngineOptions
from affserve.export.engine.trtexec import NOT_COMPARED, container_script, trtexec_command
from affserve.export.engine_sets import GPU_ONNX_FILE
from affserve.export.machine.gpus import Gpu, driver_obstacle, find_gpus, installed_tensorrt, parse_gpus
from affserve.export.pins import TENSORRT_REQUIREMENT, TENSORRT_VERSION, image
from affserve.export.repository.check import check_plans
from affserve.train.errors import RepositoryError


def test_a_plan_for_this_gpu_may_be_served(tmp_path: Path) -> None:
    plan = put_plan(tmp_path)
    assert verify_plan(plan, tmp_path / GPU_ONNX_FILE).gpu == AMPERE.name
    check_plans("clip_encoder", tmp_path, [AMPERE])


def test_where_a_plan_may_run_is_told_of_any_server_and_machine() -> None:
    assert obstacle(RECORD, [ADA, AMPERE]) is None
    assert obstacle(replace(RECORD, tensorrt="11.1.0.106"), [AMPERE], tensorrt="11.1.0.106") is None
    assert "serve on the CPU with --engine cpu" in str(obstacle(RECORD, []))
    assert "this machine has NVIDIA GeForce RTX 4090 (compute capability 8.9" in str(obstacle(RECORD, [ADA]))


@pytest.mark.parametrize(
    ("changed", "gpus", "message"),
    [
        ({"tensorrt": "11.1.0.106"}, [AMPERE], rf"\({image()}\) has {TENSORRT_VERSION}.*{TENSORRT_REQUIREMENT}"),
        ({}, [], "serve on the CPU with --engine cpu"),
        ({}, [ADA], r"clip_encoder has no model\.sm89\.plan for NVIDIA GeForce RTX 4090"),
        ({}, [AMPERE, ADA], r"no model\.sm89\.plan for NVIDIA GeForce RTX 4090"),
        ({}, [replace(AMPERE, driver="570.211.01")], "has driver 570.211.01; the serving container needs 580"),
        ({"onnx_sha256": "0"}, [AMPERE], r"built from another graph than model\.gpu\.onnx"),
        ({"plan_sha256": "0"}, [AMPERE], "not the file its sidecar describes"),
    ],
    ids=["other_tensorrt", "no_gpu", "other_gpu", "one_of_two", "old_driver", "other_graph", "altered"],
)
def test_a_plan_that_cannot_run_here_is_refused_with_what_to_do(
    tmp_path: Path, changed: dict[str, str], gpus: list[Gpu], message: str
) -> None:
    put_plan(tmp_path, **changed)
    with pytest.raises(RepositoryError, match=message):
        check_plans("clip_encoder", tmp_path, gpus)


def test_turing_is_the_oldest_the_container_runs_on() -> None:
    assert driver_obstacle(replace(AMPERE, compute_capability="7.5")) is None
    assert "compute capability 7.0" in str(driver_obstacle(replace(AMPERE, compute_capability="7.0")))
    assert driver_obstacle(replace(AMPERE, compute_capability="10.0")) is None  # ten is more than seven


# --- files ---


@pytest.mark.parametrize(("capability", "name"), [("8.6", "model.sm86.plan"), ("12.0", "model.sm120.plan")])
def test_plans_are_named_by_architecture(capability: str, name: str) -> None:
    assert plan_file(capability) == name


def test_a_sidecar_survives_writing(tmp_path: Path) -> None:
    path = record_file(tmp_path / "model.sm86.plan")
    write_record(path, RECORD)
    assert path.name == "model.sm86.plan.json"
    assert read_record(path) == RECORD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "schema 'list'"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 2, "colour": "red"}', "none of this schema: .*colour"),
        ('{"schema": 2, "model": "clip_encoder"}', "none of this schema: .*built_by"),
    ],
    ids=["missing", "not_json", "not_a_record", "newer", "unknown_field", "incomplete"],
)
def test_a_sidecar_that_cannot_be_trusted_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "model.sm86.plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RepositoryError, match=message):
        read_record(path)


# --- the machine ---


def test_gpus_are_read_as_the_driver_lists_them() -> None:
    listing = (
        "0, NVIDIA GeForce RTX 3090, 8.6, 24576, 580.95.05, GPU-5f1c\n"
        "1, NVIDIA GB10, 12.1, [N/A], 580.95.05, GPU-90ab\n"
        "\n"
    )
    first, second = parse_gpus(listing)
    assert first == AMPERE
    assert second.memory_bytes == 0
    assert second.compute_capability == "12.1"


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []
    broken = tmp_path / "nvidia-smi"  # what is left when the driver is gone
    broken.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    broken.chmod(0o755)
    assert find_gpus() == []


def test_a_tensorrt_that_does_not_load_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_tensorrt() is None
    (tmp_path / "tensorrt.py").write_text("__version__ = '11.2.1.2'\n")
    importlib.invalidate_caches()
    assert installed_tensorrt() == "11.2.1.2"
    del sys.modules["tensorrt"]  # for good: monkeypatch would put it back


# --- the container's own build ---


def test_trtexec_builds_what_the_builder_builds(tmp_path: Path) -> None:
    options, cache = EngineOptions(optimisation_level=5, workspace_bytes=2 << 30), tmp_path / "timing.cache"
    command = trtexec_command(tmp_path / "in.onnx", ENCODER_PROFILE, tmp_path / "out.plan", options, cache)
    assert command == [
        "trtexec",
        f"--onnx={tmp_path}/in.onnx",
        f"--saveEngine={tmp_path}/out.plan",
        "--minShapes=frames:1x224x224x3",
        "--optShapes=frames:64x224x224x3",
        "--maxShapes=frames:300x224x224x3",
        "--builderOptimizationLevel=5",
        "--memPoolSize=workspace:2048",
        "--profilingVerbosity=detailed",
        "--skipInference",
        f"--timingCacheFile={tmp_path}/timing.cache",
    ]


STAND_INS = {
    # Runs what the container would run, with the host's folders where the container has them mounted.
    "docker": 'printf "%s\\n" "$@" >"$STAND_INS/docker.txt"; sed "s#/repository#$REPOSITORY#g" | sh -eu',
    "nvidia-smi": (
        'echo "0, NVIDIA GeForce RTX 3090, 8.6, 580.95.05"; echo "1, NVIDIA GeForce RTX 3090, 8.6, 580.95.05"; '
        'echo "2, NVIDIA GeForce RTX 4090, 8.9, 580.95.05"'
    ),
    "trtexec": (
        'for word; do case "$word" in --saveEngine=*) plan=${word#*=} ;; --device=*) device=${word#*=} ;; esac; done; '
        'echo "plan for device $device" >"$plan"; [ -z "${FAIL:-}" ]'
    ),
}


def run_script(tmp_path: Path, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script where docker, the driver and trtexec are stand-ins that write down what they are asked."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "build.sh").write_text(container_script(repository, EngineOptions()))
    variables = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "STAND_INS": str(tools),
        "REPOSITORY": str(repository),
        "TRT_VERSION": f"{TENSORRT_VERSION}+cuda13.4",
    }
    return subprocess.run(
        ["sh", str(tmp_path / "build.sh")], env=variables | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    for model in (CLIP_ENCODER.name, TEMPORAL_HEAD.name):
        folder = tmp_path / "my repository" / model / "1"
        folder.mkdir(parents=True)
        (folder / GPU_ONNX_FILE).write_bytes(model.encode())
    return tmp_path / "my repository"


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_the_script_leaves_a_plan_and_a_sidecar_for_each_kind_of_gpu(tmp_path: Path, exported: Path) -> None:
    done = run_script(tmp_path, exported)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "tools" / "docker.txt").read_text().splitlines()
    assert image() in asked
    assert f"{exported}:/repository" in asked
    for model in (CLIP_ENCODER.name, TEMPORAL_HEAD.name):
        folder = exported / model / "1"
        assert sorted(path.name for path in folder.iterdir()) == [
            GPU_ONNX_FILE,
            "model.sm86.plan",
            "model.sm86.plan.json",
            "model.sm89.plan",
            "model.sm89.plan.json",
        ]
        assert (folder / "model.sm86.plan").read_text() == "plan for device 0\n"
        assert (folder / "model.sm89.plan").read_text() == "plan for device 2\n"
        record = verify_plan(folder / "model.sm86.plan", folder / GPU_ONNX_FILE)
        assert (record.model, record.built_by, record.gpu) == (model, "trtexec", "NVIDIA GeForce RTX 3090")
        assert record.bytes == len("plan for device 0\n")
        assert record.notices == [NOT_COMPARED]
        assert obstacle(record, [AMPERE]) is None
        json.loads(record_file(folder / "model.sm89.plan").read_text())


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"TRT_VERSION": "11.3.0.1"}, "this container has TensorRT 11.3.0.1, affserve expects"), ({"FAIL": "1"}, "")],
    ids=["other_container", "build_fails"],
)
def test_the_script_says_what_went_wrong(
    tmp_path: Path, exported: Path, environment: dict[str, str], message: str
) -> None:
    done = run_script(tmp_path, exported, **environment)
    assert message in done.stderr
    plans: list[Any] = list(exported.rglob("*.plan"))
    if "FAIL" in environment:
        assert done.returncode != 0
        assert plans == []
    else:
        record = read_record(record_file(plans[0]))
        assert "11.3.0.1" in str(obstacle(record, [AMPERE, ADA]))


def test_the_script_needs_the_graph_that_plans_are_built_from(tmp_path: Path, exported: Path) -> None:
    (exported / CLIP_ENCODER.name / "1" / GPU_ONNX_FILE).unlink()
    done = run_script(tmp_path, exported)
    assert done.returncode == 1
    assert "model.gpu.onnx: export the repository again, with --target all" in done.stderr
