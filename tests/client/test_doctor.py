"""`affserve doctor`: says truly what this machine can do, and never leaves a problem without a way out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from affserve.export import engine_sets, machine_findings
from affserve.export.doctor import examine
from affserve.export.machine.gpus import find_gpus
from affserve.export.machine.ports import choose_ports
from affserve.export.machine_findings import LOOKS, Finding, Verdict, int8_instructions, ports_finding

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="needs the extra affserve[serve]")

FREE = {"grpc": 0}


def doctor(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "affserve.client", "doctor", *map(str, arguments), "--grpc-port=0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AFFSERVE_")}
    clean |= {"XDG_CACHE_HOME": str(cwd / ".cache"), **environment}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=120, check=False)


def test_a_repository_that_can_be_served_here(repository: Path, tmp_path: Path) -> None:
    result = doctor(repository, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith(f"This repository can be served here: --engine {engine_sets.CPU}")
    for topic in ("CPU", "Triton", "ONNX Runtime", "TensorRT", "Container", "Shared memory", "Ports", "Face detector"):
        assert f" {topic}: " in result.stdout, topic


def test_a_broken_repository_cannot_be_served_and_exits_1(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    (tmp_path / "repository/temporal_head/1/model.onnx").write_bytes(b"cut off")
    result = doctor("repository", "--json", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    diagnosis = json.loads(result.stdout)
    assert diagnosis["can_serve"] is False
    told = diagnosis["configurations"][engine_sets.CPU]
    assert told["verdict"] == "problem"
    assert "temporal_head/1/model.onnx was altered after export" in told["text"]
    assert "affserve export" in told["text"]


def test_every_configuration_is_judged_on_its_own(repository: Path) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU")
    diagnosis = examine(repository, FREE)
    assert {name: one.verdict for name, one in diagnosis.configurations.items()} == {
        engine_sets.CPU: Verdict.GOOD,
        engine_sets.CUDA: Verdict.ABSENT,
        engine_sets.RTX: Verdict.ABSENT,
        engine_sets.TENSORRT: Verdict.ABSENT,
    }
    for finding in list(diagnosis.configurations.values())[:-1]:
        assert "shows no NVIDIA GPU" in finding.text
    assert not diagnosis.problems


def test_a_machine_without_the_wheel_is_told_what_to_install(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("affserve.export.server.installation.WHEEL_MODULE", "pytriton_is_not_here")
    diagnosis = examine(repository, FREE)
    assert not diagnosis.can_serve
    triton = next(one for one in diagnosis.findings if one.topic == "Triton")
    assert (triton.verdict, triton.remedy) == (Verdict.PROBLEM, "pip install 'affserve[serve]'")
    assert examine(None, FREE).can_serve, "there is no repository that could not be served"


def test_a_taken_port_is_named(server_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        finding = ports_finding("127.0.0.1", {"grpc": port, "http": 0})
    assert finding.verdict is Verdict.PROBLEM
    assert str(port) in finding.text
    assert "--grpc-port" in finding.text
    host, _, busy = server_url.rpartition(":")
    ours = ports_finding(host, {"grpc": int(busy)})
    assert (ours.verdict, ours.remedy) == (Verdict.NOTE, f"affserve status {server_url}")
    assert "a server of affserve" in ours.text
    assert ports_finding("127.0.0.1", choose_ports("127.0.0.1", FREE)).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("flags\t\t: fpu avx2 avx512_vnni amx_int8\nflags\t\t: fpu", ["avx512_vnni", "amx_int8"], id="x86"),
        pytest.param("flags\t\t: fpu avx2 avx512f", [], id="x86_without"),
        pytest.param("Features\t: fp asimd asimddp", ["asimddp"], id="arm"),
    ],
)
def test_int8_instructions_are_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: avx_vnni in a name does not count\n{text}\n")
    assert int8_instructions(tmp_path / "cpuinfo") == found


def test_little_shared_memory_is_a_problem_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_findings, "NEEDED_SHM_BYTES", 1 << 60)
    (finding,) = machine_findings.shared_memory_finding()
    assert finding.verdict is Verdict.PROBLEM
    assert "--shm-size=1g" in finding.remedy


WAYS_OUT = ("affserve ", "pip install", "--engine", "-port", "update the NVIDIA driver")


def test_no_problem_is_without_a_way_out(repository: Path) -> None:
    diagnosis = examine(repository, FREE)
    problems = [*diagnosis.problems, *diagnosis.configurations.values()]
    for one in problems:
        assert any(way in f"{one.text} {one.remedy}" for way in WAYS_OUT), one


def test_a_face_model_that_is_named_but_missing_is_a_problem(tmp_path: Path) -> None:
    result = doctor("--json", cwd=tmp_path, AFFSERVE_FACE_MODEL="missing.onnx")
    assert result.returncode == 1
    face = next(one for one in json.loads(result.stdout)["findings"] if one["topic"] == "Face detector")
    assert face["verdict"] == "problem"
    assert "missing.onnx" in face["text"]


def test_each_look_gives_findings_that_read_as_a_line() -> None:
    findings: list[Finding] = [finding for look in LOOKS for finding in look()]
    assert len({finding.topic for finding in findings}) >= len(LOOKS)
    assert all("\n" not in finding.text and finding.text for finding in findings)
