"""What is refused before a server is started, and how many threads it is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from affserve.export.machine.cores import cgroup_cpus, usable_cores
from affserve.export.repository.check import verify_repository
from affserve.export.server import installation
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import MissingExtraError, RepositoryError


def test_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "WHEEL_MODULE", "pytriton_is_not_here")
    with pytest.raises(MissingExtraError, match=r"pip install 'affserve\[serve\]'"):
        installation.find_installation()


BREAKAGES = [
    pytest.param("clip_encoder/1/model.onnx", "has no clip_encoder/1/model.onnx; write it with", id="no_graph"),
    pytest.param("temporal_head", "has no temporal_head/config.pbtxt", id="no_model"),
    pytest.param("affect/1", "has no affect/1/, the empty folder", id="no_ensemble_version"),
    pytest.param("", "is not a folder; write a model repository with", id="nothing"),
]


@pytest.fixture
def exported(repository: Path, tmp_path: Path) -> Path:
    """A repository that the test may damage."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.mark.parametrize(("gone", "message"), BREAKAGES)
def test_incomplete_repository_is_refused(exported: Path, gone: str, message: str) -> None:
    path = exported / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(RepositoryError, match=message):
        TritonServer(ServerConfig(repository=exported, drain_timeout_s=0)).start()


@pytest.mark.parametrize("file", ["clip_encoder/1/model.onnx", "temporal_head/configs/cpu.pbtxt"])
def test_altered_file_is_refused(exported: Path, file: str) -> None:
    (exported / file).write_bytes((exported / file).read_bytes() + b"\n")
    with pytest.raises(RepositoryError, match=f"{file} was altered after export"):
        TritonServer(ServerConfig(repository=exported)).start()


def test_version_that_the_manifest_does_not_know_is_refused(exported: Path) -> None:
    shutil.copytree(exported / "clip_encoder" / "1", exported / "clip_encoder" / "2")
    config = exported / "clip_encoder" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("versions: [ 1 ]", "versions: [ 2 ]"))
    with pytest.raises(RepositoryError, match=r"clip_encoder/2/model\.onnx would be served"):
        verify_repository(exported)


@pytest.mark.parametrize(
    "text",
    ["{", '{"schema": 1}', '{"schema": 2}', '{"schema": 2, "served": 1, "versions": {}, "configs": {}}', "[]"],
    ids=["cut_off", "older", "empty", "nothing_served", "list"],
)
def test_unreadable_manifest_is_refused(exported: Path, text: str) -> None:
    (exported / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json.*affserve export"):
        verify_repository(exported)


def test_affinity_limits_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        pytest.param("0::/pod/app", {"pod/cpu.max": "150000 100000", "pod/app/cpu.max": "max 100000"}, 1.5, id="v2"),
        pytest.param("0::/app", {"app/cpu.max": "max 100000"}, None, id="v2_unlimited"),
        pytest.param(
            "4:cpu,cpuacct:/app",
            {"cpu/app/cpu.cfs_quota_us": "400000", "cpu/app/cpu.cfs_period_us": "100000"},
            4.0,
            id="v1",
        ),
        pytest.param(
            "1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, id="v1_unlimited"
        ),
    ],
)
def test_container_quota_is_read(tmp_path: Path, membership: str, files: dict[str, str], cpus: float | None) -> None:
    (tmp_path / "membership").write_text(f"9:pids:/app\n{membership}\n")
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "membership") == cpus
