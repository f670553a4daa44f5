"""The backend that runs plans without a container: its way of cutting and padding in the real Triton, with ONNX Runtime
in place of the device; and what its device part answers where there is no GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_server import POISON, ask, expected_features, make_frames, needs_wheel, write_repository
from tritonclient.utils import InferenceServerException

from affserve.export import engine_sets
from affserve.export.engine.profile import RTX_ENCODER_PROFILE
from affserve.export.machine.gpus import find_gpus
from affserve.export.pins import RTX_MODULE, RTX_VERSION
from affserve.export.server import installation
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import ServerError

pytestmark = needs_wheel
without_gpu = pytest.mark.skipif(bool(find_gpus()), reason="says what it answers without a GPU")
STAND_IN = Path(__file__).parents[1] / "plan_over_onnxruntime.py"
ENCODER, HEAD = "clip_encoder", "temporal_head"
WINDOW = 300
BACKENDS = installation.BACKENDS  # ours; the server of these tests gets other ones
# Of full TensorRT the plan of this GPU's compute capability is run, which the stand-in takes for 8.6.
PLAN_FILES = {engine_sets.RTX: engine_sets.RTX_PLAN_FILE, engine_sets.TENSORRT: "model.sm86.plan"}


def on_the_cpu(root: Path, engine: str) -> None:
    """Write the tiny repository with its graphs where plans would be, and configurations that want no GPU."""
    write_repository(root)
    for model in (ENCODER, HEAD):
        (root / model / "1" / "model.onnx").rename(root / model / "1" / PLAN_FILES[engine])
        for path in (root / model / "config.pbtxt", root / model / "configs" / "rtx.pbtxt"):
            path.write_text(path.read_text().replace("kind: KIND_GPU", "kind: KIND_CPU"))


def as_on_a_machine_with_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """Let a server start on plans here, which affserve itself refuses."""
    patch.setattr("affserve.export.server.server.verify_repository", lambda *_, **__: None)
    patch.setattr("affserve.export.server.server.machine_obstacle", lambda *_: None, raising=False)


def test_in_tritons_stub_everything_loads_and_says_what_it_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(RTX_MODULE, reason="needs the extra affserve[rtx]")
    on_the_cpu(tmp_path / "repository", engine_sets.RTX)
    as_on_a_machine_with_a_gpu(monkeypatch)
    config = ServerConfig(repository=tmp_path / "repository", engine=engine_sets.RTX, drain_timeout_s=0)
    with pytest.raises(ServerError) as refused, TritonServer(config):
        pass
    assert "clip_encoder: a plan runs on a GPU, and the configuration asks for another kind of ins" in str(
        refused.value
    )


@pytest.fixture(scope="module", params=list(PLAN_FILES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a real Triton whose plans ONNX Runtime runs, and the file that tells of the runs."""
    folder = tmp_path_factory.mktemp(request.param)
    on_the_cpu(folder / "repository", request.param)
    shutil.copytree(BACKENDS, folder / "backends")
    shutil.copy(STAND_IN, folder / "backends" / "affserve_plan.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installation, "BACKENDS", folder / "backends")
        as_on_a_machine_with_a_gpu(patch)
        patch.setenv("AFFSERVE_TEST_RUNS", str(folder / "runs"))
        with TritonServer(ServerConfig(repository=folder / "repository", engine=request.param)) as server:
            yield server.grpc_url, folder / "runs"


def runs(file: Path, model: str) -> list[tuple[int, int, bool]]:
    """What ran since the last call: frames given, length run, was it made ready."""
    lines = [line.split() for line in file.read_text().splitlines()]
    file.write_text("")
    return [(int(given), int(length), ready == "True") for name, given, length, ready in lines if name == model]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(1, 1)]),
        (3, [(3, 4)]),
        (32, [(32, 32)]),
        (33, [(33, 64)]),
        (100, [(64, 64), (36, 64)]),
        (300, [(64, 64)] * 4 + [(44, 64)]),
    ],
)
def test_frames_run_as_the_next_size_and_in_slices(
    served: tuple[str, Path], frames: int, expected: list[tuple[int, int]]
) -> None:
    url, told = served
    given = make_frames(frames, seed=frames)
    runs(told, ENCODER)
    answer = ask(url, ENCODER, {"frames": given})["features"]
    np.testing.assert_allclose(answer, expected_features(given), rtol=1e-4, atol=1e-2)
    assert runs(told, ENCODER) == [(given, length, True) for given, length in expected]


def test_requests_of_many_callers_share_runs_and_get_their_own_answers(served: tuple[str, Path]) -> None:
    url, told = served
    given = [make_frames(1 + index % 5, seed=index) for index in range(24)]
    runs(told, ENCODER)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda frames: ask(url, ENCODER, {"frames": frames})["features"], given))
    for frames, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer, expected_features(frames), rtol=1e-4, atol=1e-2)
    ran = runs(told, ENCODER)
    assert sum(frames for frames, _, _ in ran) == sum(map(len, given))
    assert all(ready for _, _, ready in ran)


def test_a_window_has_a_context_of_its_own_and_every_other_length_runs_as_it_is(served: tuple[str, Path]) -> None:
    url, told = served
    features = np.random.default_rng(0).normal(size=(WINDOW, 512)).astype(np.float32)
    runs(told, HEAD)
    whole, part = (ask(url, HEAD, {"features": features[:length]}) for length in (WINDOW, 7))
    assert runs(told, HEAD) == [(WINDOW, WINDOW, True), (7, 7, False)]
    for name, values in part.items():
        np.testing.assert_allclose(values, whole[name][:7], rtol=1e-5)


def test_what_the_engine_says_reaches_the_caller_without_paths(served: tuple[str, Path]) -> None:
    frames = make_frames(2, seed=0)
    frames[1, 0, 0, 0] = POISON
    with pytest.raises(InferenceServerException) as refused:
        ask(served[0], ENCODER, {"frames": frames})
    assert "clip_encoder cannot answer this request: " in str(refused.value)
    assert "/tmp" not in str(refused.value)


# --- the device part, as the stub imports it ---


@pytest.fixture(scope="module")
def plans() -> Iterator[ModuleType]:
    wheel = installation.find_installation().wheel
    assert wheel is not None
    paths = [str(wheel / "backends" / "python"), str(BACKENDS)]
    sys.path += paths
    yield importlib.import_module("affserve_plan")
    for path in paths:
        sys.path.remove(path)
    sys.modules.pop("tensorrt", None)  # where there is none, the folder of our backend


def open_one(plans: ModuleType, path: Path, **changed: Any) -> Any:
    given = {"by_capability": {}, "device": 0, "lengths": (1,), "other": False, "for_rtx": True}
    return plans.open_plan(ENCODER, path, **{**given, **changed})


@without_gpu
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "clip_encoder: this machine shows no NVIDIA GPU 0 to run a plan on: serve with --engine cpu"),
        ({"device": None}, "a plan runs on a GPU"),
        ({"for_rtx": False}, r"TensorRT for Python is not installed or cannot be loaded \(pip install tensorrt-cu13"),
    ],
    ids=["no_gpu", "no_gpu_asked_for", "no_library"],
)
def test_what_stands_in_the_way_is_said(
    plans: ModuleType, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    pytest.importorskip(RTX_MODULE, reason="needs the extra affserve[rtx]")
    with pytest.raises(plans.LoadError, match=message):
        open_one(plans, tmp_path / "model.rtx.plan", **changed)


@without_gpu
def test_cuda_without_a_driver_ends_in_words(plans: ModuleType) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the extra affserve[rtx]")
    with pytest.raises(plans.PlanError, match="CUDA failed: CUDA driver version is insufficient"):
        plans._cuda(plans.cudart.cudaMalloc(8))


def test_a_plan_of_another_release_is_refused_before_it_is_read(plans: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model.rtx.plan.json").write_text(json.dumps({"tensorrt": "1.6.0.1"}))
    with pytest.raises(
        plans.LoadError, match=r"built with TensorRT for RTX 1\.6\.0\.1 and this machine has 1\.7"
    ) as told:
        plans._check_version(ENCODER, tmp_path / "model.rtx.plan", "TensorRT for RTX", RTX_VERSION)
    assert str(tmp_path) not in str(told.value)
    (tmp_path / "model.rtx.plan.json").write_text("[]")
    plans._check_version(ENCODER, tmp_path / "model.rtx.plan", "TensorRT for RTX", RTX_VERSION)


def test_a_damaged_plan_is_refused_with_the_librarys_reason(plans: ModuleType, tmp_path: Path) -> None:
    trt = pytest.importorskip(RTX_MODULE, reason="needs the extra affserve[rtx]")
    log = plans._Log()
    runtime = trt.Runtime(logger := plans._logger_into(trt, log))
    card = SimpleNamespace(name=b"NVIDIA GeForce RTX 3090", major=8, minor=6)
    with pytest.raises(plans.LoadError, match=r"model.rtx.plan cannot run on .* 3090: it is damaged: export again"):
        plans._check_validity(trt, ENCODER, tmp_path / "model.rtx.plan", runtime, b"damaged" * 99, card)
    assert logger is not None


def test_compiled_kernels_are_kept_for_this_machine_only(
    plans: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the extra affserve[rtx]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = plans._cache_file(ENCODER, RTX_VERSION, "NVIDIA GeForce RTX 3090")
    assert file.parent == tmp_path / "affserve" / "rtx-kernels"
    assert file.name.startswith(f"clip_encoder-{RTX_VERSION}-NVIDIA-GeForce-RTX-3090-cuda")
    assert plans._stored(file) == b""
    plans._store(file, b"", b"kernels")
    assert plans._stored(file) == b"kernels"
    assert os.listdir(file.parent) == [file.name]
    plans._store(Path("/proc/no/such/folder/x.cache"), b"", b"kernels")  # a reason to be slow, not to fail


def test_the_longest_run_is_the_longest_of_the_plan() -> None:
    source = (BACKENDS / "tensorrt" / "model.py").read_text()
    ladder = next(line for line in source.splitlines() if line.startswith("LADDER = "))
    lengths = tuple(map(int, ladder.partition("(")[2].rstrip(")").split(",")))
    assert lengths[-1] == RTX_ENCODER_PROFILE.shapes["frames"][2][0]
    assert lengths == tuple(1 << power for power in range(len(lengths)))
