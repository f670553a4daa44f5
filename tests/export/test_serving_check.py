"""What is refused before a server is started, and how many threads it is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny_server import (
    write_head,
    write_repository,
)

from affserve.export.contract import CLIP_ENCODER, CPU, ONNX_FILE, TEMPORAL_HEAD, default_head_description
from affserve.export.machine.cores import cgroup_cpus, usable_cores
from affserve.export.repository.check import verify_repository
from affserve.export.repository.manifest import ArtefactRecord, Manifest, VersionRecord
from affserve.export.server import installation
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import MissingExtraError, RepositoryError
from affserve.train.files import file_sha256


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


@pytest.mark.parametrize(("gone", "message"), BREAKAGES)
def test_incomplete_repository_is_refused(tmp_path: Path, gone: str, message: str) -> None:
    root = tmp_path / "repository"
    write_repository(root)
    path = root / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(RepositoryError, match=message):
        TritonServer(ServerConfig(repository=root, drain_timeout_s=0)).start()


@pytest.fixture
def with_manifest(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_repository(root)
    artefacts = tuple(
        ArtefactRecord(
            path=f"{model.name}/1/{ONNX_FILE}",
            model=model.name,
            use=CPU,
            precision="fp32",
            sha256=file_sha256(root / model.name / "1" / ONNX_FILE),
            bytes=0,
            flops=0,
            parity=(),
        )
        for model in (CLIP_ENCODER, TEMPORAL_HEAD)
    )
    described = default_head_description()
    version = VersionRecord(
        trained_on="synthetic",
        labels=described.labels,
        window_frames=described.window_frames,
        stride_frames=described.stride_frames,
        encoder={"fingerprint": "unknown"},
        heads=(),
        built_with={},
        artefacts=artefacts,
    )
    configs = {path.relative_to(root).as_posix(): file_sha256(path) for path in root.rglob("*.pbtxt")}
    manifest = Manifest(served=1, versions={1: version}, configs=configs)
    (root / "manifest.json").write_bytes(manifest.to_json())
    return root


def test_manifest_of_an_unaltered_repository_is_returned(with_manifest: Path) -> None:
    manifest = verify_repository(with_manifest)
    assert manifest is not None
    assert manifest.versions[1].trained_on == "synthetic"
    (with_manifest / "manifest.json").unlink()
    assert verify_repository(with_manifest) is None


def test_altered_file_is_refused(with_manifest: Path) -> None:
    write_head(with_manifest / "clip_encoder" / "1" / "model.onnx")
    with pytest.raises(RepositoryError, match=r"clip_encoder/1/model\.onnx was altered after export"):
        TritonServer(ServerConfig(repository=with_manifest)).start()


def test_version_that_the_manifest_does_not_know_is_refused(with_manifest: Path) -> None:
    shutil.copytree(with_manifest / "clip_encoder" / "1", with_manifest / "clip_encoder" / "2")
    config = with_manifest / "clip_encoder" / "configs" / "onnx.pbtxt"
    config.write_text(config.read_text().replace("versions: [ 1 ]", "versions: [ 2 ]"))
    with pytest.raises(RepositoryError, match=r"clip_encoder/2/model\.onnx would be served"):
        verify_repository(with_manifest)


@pytest.mark.parametrize(
    "text",
    ["{", '{"schema": 99}', '{"schema": 2}', '{"schema": 2, "served": 1, "versions": {}, "configs": {}}', "[]"],
    ids=["cut_off", "newer", "empty", "nothing_served", "list"],
)
def test_unreadable_manifest_is_refused(with_manifest: Path, text: str) -> None:
    (with_manifest / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json.*affserve export"):
        verify_repository(with_manifest)


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
