"""Engines without a server: all that run here, at a small size, beside limits that were measured on this machine."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from affserve.benchmarks.cli import bench_app
from affserve.benchmarks.engines import limits
from affserve.benchmarks.engines.specs import EngineSpec, find_engines
from affserve.benchmarks.engines.stages import StagesConfig, find_repositories
from affserve.benchmarks.measuring.record import environment, save, without_samples
from affserve.train.errors import DataError, RepositoryError


def peaks_of_small_products(device: str, threads: int) -> dict[str, dict[str, Any]]:
    """Run in a process of its own, as the real one is."""
    limits.CPU_SHAPES = limits.CPU_SHAPES[-1:]
    return limits.measure_peaks(device, threads)


@pytest.fixture(scope="module")
def measured(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The result of one small run, and what it printed on the way."""
    folder = tmp_path_factory.mktemp("stages")
    options = ["--repository", str(repository), "--engines", "pytorch-eager,onnxruntime,tensorrt", "--batches", "1,6"]
    options += ["--threads", "1", "--seconds", "0.2", "--folder", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "measure_peaks", peaks_of_small_products)
        result = CliRunner().invoke(bench_app, ["stages", *options])
    assert result.exit_code == 0, result.output
    return json.loads((folder / "stages-affserve-demo.json").read_text())["measured"], result.stderr


@pytest.mark.parametrize("model", ["clip_encoder", "temporal_head"])
def test_every_engine_is_measured_at_every_size(measured: tuple[dict[str, Any], str], model: str) -> None:
    rows = measured[0][model]
    engines = ("pytorch-eager-fp32", "onnxruntime-fp32")
    assert {(row["frames"], row["engine"]) for row in rows} == {(n, engine) for n in (1, 6) for engine in engines}
    for row in rows:
        assert row["of_peak"] > 0
        assert row["latency"]["p50_ms"] <= row["latency"]["p99_ms"]
        assert row["frames_per_second"] == pytest.approx(1000 * row["frames"] / row["latency"]["p50_ms"], rel=0.01)
        assert row["calls"] == sum(len(part) for part in row["samples_ms"]) >= 2
        assert row["memory_mib"] > 0
        assert row["times_as_fast_as_eager"]["low"] <= row["times_as_fast_as_eager"]["high"]
    eager = next(row for row in rows if row["engine"] == engines[0])
    assert eager["times_as_fast_as_eager"]["value"] == 1


def test_what_cannot_run_is_left_out_with_its_reason(measured: tuple[dict[str, Any], str]) -> None:
    assert [(one["kind"], one["reason"]) for one in measured[0]["skipped"]] == 2 * [
        ("tensorrt", "TensorRT runs on a GPU")
    ]


def test_limits_come_before_the_measurement(measured: tuple[dict[str, Any], str]) -> None:
    lines = measured[1].splitlines()
    peak, first = (
        next(k for k, line in enumerate(lines) if text in line) for text in ("fp32: ", "clip_encoder x1 pytorch")
    )
    assert peak < first
    assert measured[0]["limits"]["peaks"]["int8"]["gflops"] > 1


def test_parity_of_the_graphs_is_told(measured: tuple[dict[str, Any], str]) -> None:
    graphs = {(one["model"], one["precision"]): one["parity"] for one in measured[0]["graphs"]}
    assert list(graphs) == [("clip_encoder", "fp32"), ("temporal_head", "fp32")]
    assert all(check["figure"] <= check["limit"] or check["at_least"] for checks in graphs.values() for check in checks)


def test_work_grows_with_the_batch_and_memory_holds_the_weights(
    measured: tuple[dict[str, Any], str], repository: Path
) -> None:
    rows = measured[0]["clip_encoder"]
    one, six = (next(row for row in rows if row["frames"] == n) for n in (1, 6))
    assert six["gflop"] == pytest.approx(6 * one["gflop"], rel=0.01)
    weights_mib = (repository / "clip_encoder" / "1" / "model.onnx").stat().st_size / 2**20
    assert all(0.8 * weights_mib < row["memory_mib"] < 20 * weights_mib for row in rows)


def test_fp16_on_a_cpu_is_measured_in_small_batches_only() -> None:
    half = EngineSpec(kind="onnxruntime", model="clip_encoder", precision="fp16", device="cpu", threads=1)
    assert half.obstacle(8) is None
    assert "FP16" in str(half.obstacle(9))
    assert half.product_type == "fp32"


def test_a_peak_is_that_of_the_fastest_product() -> None:
    """What disturbs a product hides what the machine can do: two slow ones of three leave the peak where it is."""
    products_s = itertools.cycle([0.1, 0.1, 0.02])
    passed_s = [0.0]
    run = lambda: passed_s.append(passed_s[-1] + next(products_s))  # noqa: E731
    peak = limits.best_rate([("product", run, (100, 100, 1000))], lambda: passed_s[-1])
    assert peak["gflops"] == 1.0  # 0.02 GFLOP in 0.02 s; the median of 0.1 s would make it 0.2


def test_the_higher_peak_counts() -> None:
    first, second = {"fp32": {"gflops": 10.0, "with": "a"}}, {"fp32": {"gflops": 12.0, "with": "b"}}
    assert limits.better(first, second) == second


def test_wrong_sizes_engines_devices_and_folders_are_told(repository: Path, tmp_path: Path) -> None:
    for batches in ((), (0,), (301,)):
        with pytest.raises(DataError, match="1 to 300"):
            StagesConfig(repositories=(repository,), batches=batches)
    with pytest.raises(DataError, match="tensorflow"):
        find_engines([repository], "cpu", 1, ["tensorflow"])
    with pytest.raises(DataError, match="tpu"):
        find_repositories([repository], "ViT-B-32", "tpu")
    with pytest.raises(RepositoryError, match="no manifest"):
        find_engines([tmp_path], "cpu", 1)


def test_a_result_says_on_what_it_was_measured(tmp_path: Path) -> None:
    path = save("one", {"samples_ms": [1.5, -2e-05, 3], "rows": [{"samples_s": [[1.0, 2.0], [3.0]], "n": 1}]}, tmp_path)
    assert "[1.5, -2e-05, 3]" in path.read_text()  # lists of numbers take one line
    kept = json.loads(path.read_text())
    assert kept["measured"]["rows"][0]["samples_s"] == [[1.0, 2.0], [3.0]]
    assert without_samples(kept["measured"]) == {"rows": [{"n": 1}]}
    assert {"commit", "dirty", "cpu_flags", "load_average", "governor"} <= kept["environment"].keys()
    assert environment() is environment()  # of the beginning, not of a machine that the measurement has loaded
