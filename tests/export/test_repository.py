"""A repository gets to its place whole, keeps its versions, and a server that watches it never fails a request."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from conftest import blurred_noise
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from tiny_server import RECOVERY_S, needs_wheel, wait_for
from tritonclient.utils import InferenceServerException

from affserve.export import engine_sets
from affserve.export.artefacts.material import parity_only
from affserve.export.contract import CPU, MANIFEST_FILE, MODELS, TEMPORAL_STREAM
from affserve.export.machine.ports import choose_ports, listening
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.check import verify_repository
from affserve.export.repository.exporting import ExportOptions, export_repository
from affserve.export.repository.placement import LocalTarget, RemoteTarget, Target, in_order, open_target
from affserve.export.repository.templates import read_config
from affserve.export.repository.versions import activate
from affserve.export.server.installation import find_installation, lay_out_backends, server_environment
from affserve.train.errors import ExportError, OutputError, RepositoryError
from affserve.train.files import replace_folder
from affserve.train.models.checkpoint import load_encoder, load_head, save_head
from affserve.train.models.temporal_head import TemporalHead, demo_head_config
from affserve.train.provenance import Provenance

POLL_S = 1
FRAMES = blurred_noise(2, seed=9)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def version_options(version: int | None) -> ExportOptions:
    return ExportOptions(uses=(CPU,), precision=Precision.FP32, version=version)


def export_version(heads: tuple[Path, Path], target: Target | Path, version: int | None) -> None:
    encoder, head = heads
    export_repository(encoder, [head], target, material=parity_only(FRAMES), options=version_options(version))


@pytest.fixture(scope="module")
def retrained(checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same encoder with another head for the same tasks."""
    folder = tmp_path_factory.mktemp("retrained")
    torch.manual_seed(7)
    _, encoder = load_encoder(checkpoints[0])
    head = TemporalHead(demo_head_config(layers=1))
    save_head(folder / "head", head, Provenance(trained_on="synthetic", encoder=encoder.fingerprint))
    return checkpoints[0], folder / "head"


@pytest.fixture(scope="module")
def two_versions(repository: Path, retrained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's repository with a second version, which is served."""
    root = tmp_path_factory.mktemp("versions") / "repository"
    shutil.copytree(repository, root)
    export_version(retrained, root, 2)
    return root


@pytest.fixture
def copied(two_versions: Path, tmp_path: Path) -> Path:
    shutil.copytree(two_versions, tmp_path / "repository")
    return tmp_path / "repository"


# --- versions ---


def test_a_new_version_is_served_and_the_old_one_kept(repository: Path, two_versions: Path) -> None:
    before = snapshot(repository)
    after = snapshot(two_versions)
    assert all(after[name] == content for name, content in before.items() if "/1/" in name)
    for model in MODELS.keys() - {TEMPORAL_STREAM.name}:  # these heads do not stream
        assert (two_versions / model / "2").is_dir()
        for config in (two_versions / model).rglob("*.pbtxt"):
            assert list(read_config(config).version_policy.specific.versions) == [2]
    manifest = verify_repository(two_versions)
    assert manifest is not None
    assert (manifest.served, sorted(manifest.versions)) == (2, [1, 2])
    assert not list(two_versions.parent.glob(".*")), "nothing is left beside the repository"


def test_the_command_goes_back_to_every_configuration(repository: Path, copied: Path) -> None:
    command = [sys.executable, "-m", "affserve.client", "export", "--out", str(copied), "--activate", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{copied}: version 1 is the one to serve (")
    manifest = verify_repository(copied)
    assert manifest is not None
    assert manifest.served == 1
    before, after = snapshot(repository), snapshot(copied)
    assert {name for name, content in before.items() if after[name] != content} == {MANIFEST_FILE}


@pytest.mark.parametrize("version", [3, 2], ids=["unknown", "damaged"])
def test_going_to_a_version_that_is_not_whole_is_refused(copied: Path, version: int) -> None:
    activate(LocalTarget(copied), 1)
    (copied / "temporal_head/2/model.onnx").write_bytes(b"cut off")
    before = snapshot(copied)
    with pytest.raises(RepositoryError, match=r"has no version 3; it has 1, 2|temporal_head/2/model\.onnx"):
        activate(LocalTarget(copied), version)
    assert snapshot(copied) == before


def test_a_version_with_another_contract_is_refused_before_anything_is_made(
    checkpoints: tuple[Path, Path], copied: Path, tmp_path: Path
) -> None:
    _, encoder = load_encoder(checkpoints[0])
    head = TemporalHead(demo_head_config(tasks=("expression",)))
    save_head(tmp_path / "head", head, Provenance(trained_on="synthetic", encoder=encoder.fingerprint))
    before = snapshot(copied)
    with pytest.raises(
        ExportError, match=r"tasks valence_arousal, expression, action_units -> expression.*fresh folder"
    ):
        export_version((checkpoints[0], tmp_path / "head"), copied, 3)
    assert snapshot(copied) == before


# --- placement ---


def test_a_folder_is_exchanged_without_a_moment_in_which_there_is_none(tmp_path: Path) -> None:
    """A reader that looks all the time must always find a whole folder."""
    target, stop, missing = tmp_path / "target", threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                (target / "model").read_text()
            except OSError as error:
                missing.append(error)

    make_folder(target, "0")
    reader = threading.Thread(target=look)
    reader.start()
    for k in range(1, 300):
        make_folder(tmp_path / "new", str(k))
        replace_folder(tmp_path / "new", target)
    stop.set()
    reader.join()
    assert not missing
    assert (target / "model").read_text() == "299"
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def make_folder(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "model").write_text(text)


class Watched(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A real file system that also keeps the order of what was written."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self.written.append(rpath)
        super().put_file(lpath, rpath, **more)

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        self.written.append(path)
        super().pipe_file(path, value, **more)


def test_an_object_store_gets_the_same_repository(
    repository: Path, two_versions: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    watched, bucket = Watched(), tmp_path / "bucket"
    target = RemoteTarget(watched, str(bucket), "store://bucket")
    target.place_whole(repository)
    assert snapshot(bucket) == snapshot(repository)
    assert watched.written[-1].endswith(MANIFEST_FILE)
    for version, advice in ((None, "--version N"), (1, "choose another --version")):
        with pytest.raises(ExportError, match=advice):  # an object store cannot replace what is served
            export_version(checkpoints, target, version)

    (bucket / "temporal_head/2").mkdir()
    (bucket / "temporal_head/2/model.sm86.plan").write_text("of an earlier export of this version")
    watched.written.clear()
    target.place_version(staged(two_versions, tmp_path / "staged", 2), 2)
    named = [Path(path).relative_to(bucket).as_posix() for path in watched.written]
    assert not [path for path in named if "/1/" in path]
    configs = [k for k, path in enumerate(named) if path.endswith("pbtxt")]
    assert max(k for k, path in enumerate(named) if "/2/" in path) < min(configs)
    assert named[-1] == MANIFEST_FILE
    assert snapshot(bucket) == snapshot(two_versions)


def staged(root: Path, folder: Path, version: int) -> Path:
    """Copy what an export of one version stages: its folders, the configurations and the manifest."""
    others = {str(number) for number in range(1, 10)} - {str(version)}
    shutil.copytree(root, folder, ignore=lambda _, names: others & set(names))
    return folder


@pytest.fixture
def in_memory(two_versions: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for file in in_order(two_versions):
        memory.pipe_file(f"/models/{file}", (two_versions / file).read_bytes())
    yield "memory://models"
    memory.rm("/models", recursive=True)


def test_a_url_can_be_gone_back_in(in_memory: str) -> None:
    assert activate(open_target(in_memory), 1).served == 1
    content = open_target(in_memory).read("temporal_head/config.pbtxt")
    assert content is not None
    assert b"versions: [ 1 ]" in content


def test_something_else_at_a_url_is_not_touched(checkpoints: tuple[Path, Path]) -> None:
    fsspec.filesystem("memory").pipe_file("/thesis/chapter1.txt", b"years of work")
    with pytest.raises(ExportError, match="memory://thesis exists and is not a repository"):
        export_version(checkpoints, open_target("memory://thesis"), None)
    assert fsspec.filesystem("memory").find("/thesis") == ["/thesis/chapter1.txt"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("s3://bucket/models", "Install s3fs", id="missing_driver"),
        pytest.param("gopher://models", "gopher", id="unknown_protocol"),
    ],
)
def test_url_that_cannot_be_opened_says_why(url: str, message: str) -> None:
    if url.startswith("s3") and importlib.util.find_spec("s3fs") is not None:
        pytest.skip("s3fs is installed")
    with pytest.raises(ExportError, match=message):
        open_target(url)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_target(f"file://{tmp_path}") == LocalTarget(tmp_path)


def test_a_place_where_nothing_can_be_written_is_named(checkpoints: tuple[Path, Path]) -> None:
    with pytest.raises(OutputError, match="/proc/models cannot be written"):
        export_version(checkpoints, Path("/proc/models"), None)


# --- what may be served here ---


@pytest.mark.parametrize("name", [engine_sets.CUDA, engine_sets.TENSORRT])
def test_a_repository_for_cpus_is_not_served_from_a_gpu(repository: Path, name: str) -> None:
    assert verify_repository(repository, engine_sets.CPU) is not None
    with pytest.raises(RepositoryError, match=r"--target gpu|this machine shows none|has no model\.sm"):
        verify_repository(repository, name)


def test_a_damaged_version_that_is_not_served_stops_nobody(copied: Path) -> None:
    (copied / "temporal_head/1/model.onnx").write_bytes(b"cut off")
    assert verify_repository(copied) is not None


# --- a server that watches ---


@contextlib.contextmanager
def watching_server(root: Path, folder: Path) -> Iterator[str]:
    """The wheel's tritonserver in poll mode over a repository; yield its gRPC address."""
    installation = find_installation()
    folder.mkdir()
    ports = choose_ports("127.0.0.1", {"grpc": 0, "http": 0})
    options = [
        f"--model-repository={root}",
        f"--model-config-name={engine_sets.CPU}",
        "--model-control-mode=poll",
        f"--repository-poll-secs={POLL_S}",
        "--disable-auto-complete-config",
        "--allow-metrics=false",
        "--exit-timeout-secs=1",
        f"--backend-directory={lay_out_backends(installation, folder)}",
        f"--backend-config=python,shm-region-prefix-name=affserve-poll-{ports['grpc']}-",
        *(f"--{name}-port={port}" for name, port in ports.items()),
        *(f"--{name}-address=127.0.0.1" for name in ports),
    ]
    environment = {**server_environment(installation, folder), "AFFSERVE_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([installation.binary, *options], env=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: listening("127.0.0.1", ports["grpc"]) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"127.0.0.1:{ports['grpc']}"
        finally:
            process.terminate()
            try:
                process.wait(RECOVERY_S)
            finally:
                process.kill()
                for file in Path("/dev/shm").glob(f"affserve-poll-{ports['grpc']}-*"):
                    file.unlink()


@dataclass
class Caller:
    """A client that asks for the same answer again and again."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[NDArray[np.float32]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        with contextlib.closing(triton.InferenceServerClient(self.url)) as client:
            tensor = triton.InferInput("frames", list(FRAMES.shape), "UINT8")
            tensor.set_data_from_numpy(FRAMES)
            while not self.stop.is_set():
                try:
                    self.answers.append(client.infer("affect", [tensor]).as_numpy("expression"))
                except InferenceServerException as error:
                    self.errors.append(str(error))

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()


def expected_answer(heads: tuple[Path, Path]) -> NDArray[np.float32]:
    encoder, _ = load_encoder(heads[0])
    head, _ = load_head(heads[1])
    with torch.inference_mode():
        return head.answers(encoder(torch.from_numpy(FRAMES))[None])["expression"][0].numpy()


@needs_wheel
def test_a_watching_server_goes_to_a_new_version_and_back_without_a_failed_request(
    repository: Path, two_versions: Path, checkpoints: tuple[Path, Path], retrained: tuple[Path, Path], tmp_path: Path
) -> None:
    root = tmp_path / "repository"
    shutil.copytree(repository, root)
    new_version = staged(two_versions, tmp_path / "staged", 2)
    old, new = expected_answer(checkpoints), expected_answer(retrained)
    assert np.abs(old - new).max() > 0.01, "the versions answer alike: nothing would be tested"
    with (
        watching_server(root, tmp_path / "server") as url,
        contextlib.closing(triton.InferenceServerClient(url)) as client,
    ):
        wait_for(lambda: client.is_server_ready() and client.is_model_ready("affect"))
        caller = Caller(url)

        def answers_with(truth: NDArray[np.float32]) -> bool:
            return bool(caller.answers) and bool(np.abs(caller.answers[-1] - truth).max() < 1e-4)

        with caller.calling():
            wait_for(lambda: answers_with(old))
            LocalTarget(root).place_version(new_version, 2)
            wait_for(lambda: answers_with(new))
            activate(LocalTarget(root), 1)
            wait_for(lambda: answers_with(old))
        assert not caller.errors
        # The encoder is the same in both, so every single answer is one version's or the other's.
        assert all(min(np.abs(one - old).max(), np.abs(one - new).max()) < 1e-4 for one in caller.answers)
