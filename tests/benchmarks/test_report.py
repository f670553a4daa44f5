"""Reports come from result files alone, byte for byte; comparisons tell changes from noise."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from affserve.benchmarks.cli import bench_app
from affserve.benchmarks.measuring import samples
from affserve.benchmarks.measuring.record import RESULTS, save
from affserve.benchmarks.report.compare import BETTER, SAME, WORSE, compare_results
from affserve.benchmarks.report.files import read_results
from affserve.benchmarks.report.headlines import NOT_YET, headline_table
from affserve.benchmarks.report.report import BEGIN, END, fill_markers, write_report
from affserve.train.errors import DataError, OutputError


def around(middle: float, count: int = 30, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [round(middle * generator.uniform(0.95, 1.05), 5) for _ in range(count)]


def system(seconds: float) -> dict[str, Any]:
    answers = {"equal": True, "largest_difference": 1e-6, "lowest_ccc": 1.0}
    more = {"settings": "2 threads", "in_flight": 2, "answers": answers}
    return {"frames_per_s": 300 / seconds, "times_s": around(seconds), **more}


PEERS: dict[str, Any] = {
    "architecture": "ViT-B-32",
    "weights": "random",
    "device": "cpu",
    "threads": 2,
    "frames": 300,
    "frames_per_request": 32,
    "rounds": 30,
    "systems": {"naive service": system(15.0), "affserve INT8": system(4.0)},
    "times_as_fast": {"affserve INT8 / naive service": {"value": 3.75, "low": 3.6, "high": 3.9}},
    "bars": [{"what": "affserve INT8, times the naive service", "figure": 3.75, "at_least": 3.0, "met": True}],
}


def point(model: str, frames_per_s: float, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "frames": 32,
        "transport": "shm",
        "loop": "closed",
        "concurrency": 2,
        "errors": {},
        "requests": 41,
        "requests_per_second": frames_per_s / 32,
        "frames_per_second": frames_per_s,
        "latency": {"p50_ms": 500.0, "p90_ms": 510.0, "p95_ms": 520.0, "p99_ms": 530.0},
        "cpu": {"server_cores": 1.75},
        "server": {model: {"queue_ms": 12.34, "compute_infer_ms": 456.78, "batch": 32.0}},
        **more,
    }


def kept(transport: str, rate: float) -> dict[str, Any]:
    asked = {"model": "clip_encoder", "frames": 1, "transport": transport, "slo": "p99=100ms"}
    return {**asked, "requests_per_second": rate, "frames_per_second": rate}


GPUS = [{"mean_percent": 71.4, "mean_watts": 250.2}, {"mean_percent": 3.0}]
LOAD: dict[str, Any] = {
    "engine": "Triton 2.51.0, set cpu",
    "points": [point("clip_encoder", 64.0), point("temporal_head", 9000.0), point("clip_encoder", 60.0, gpus=GPUS)],
    "slo": [kept("raw", 27.0), kept("shm", 25.0)],
}


def cameras(streams: int, delay: dict[str, float], *, dropped: float) -> dict[str, Any]:
    kept = {"delay": delay, "dropped_share": dropped, "within_limit": not dropped}
    return {"streams": streams, "engine": "Triton", **kept}


CAMERAS: dict[str, Any] = {
    "cameras": 3,
    "hop_frames": 10,
    "limit_p95_ms": 1000.0,
    "limit_dropped": 0.01,
    "runs": [
        cameras(3, {"frames": 9, "p50_ms": 201.5, "p95_ms": 402.5, "p99_ms": 503.5}, dropped=0),
        cameras(4, {"frames": 0}, dropped=0.0625),
    ],
}


def length(frames: int) -> dict[str, Any]:
    memory = {"client_peak_mib": 160.0, "server_peak_mib": 340.0}
    return {"frames": frames, "times_s": around(frames / 50, 4), "ms_per_frame": 20.0, **memory}


LENGTH: dict[str, Any] = {
    "detector": "haar",
    "rows": [length(300), length(2000)],
    "fit": {"slope": 0.02, "intercept": 0.1, "r_squared": 0.999},
    "exponent": 1.0,
    "bars": [{"what": "peak memory of 2000 frames to that of 300", "figure": 1.2, "at_most": 1.05, "met": False}],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    save("peers-ViT-B-32", PEERS, folder)
    save("scale-length", LENGTH, folder)
    return folder


def test_a_report_tells_figures_bars_and_commands(results: Path) -> None:
    text = write_report(results).read_text()
    assert "| affserve INT8 / naive service | 3.75 [3.60, 3.90] |" in text
    assert "Faces found with haar." in text
    assert "| peak memory of 2000 frames to that of 300 | 1.2 | at most 1.05 | **no** |" in text
    command = json.loads((results / "peers-ViT-B-32.json").read_text())["command"]
    assert f"`{command}` → `peers-ViT-B-32.json`" in text


@pytest.mark.parametrize(
    ("name", "measured", "parts"),
    [
        (
            "load-ViT-B-32",
            LOAD,
            [
                "clip_encoder × 32, shm | 2 callers | 41 | 64.0",
                "| 12.3 | 456.8 | 32.0 | 1.75 | no GPU | 0 |",
                "| 71 %, 250 W, 3 % |",
                "| clip_encoder × 1, shm | p99=100ms | 25.0 | 25.0 |",
            ],
        ),
        # Of the fourth camera nothing was answered.
        ("cameras", CAMERAS, ["| 3 | 201.5 | 402.5 | 503.5 | 0.00 | yes |", "| 4 |  |  |  | 6.25 | no |"]),
    ],
    ids=["load", "cameras"],
)
def test_a_report_tells_every_number(name: str, measured: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    save(name, measured, tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert [part for part in parts if part not in text] == []


def test_headlines_of_load_are_those_of_frames(results: Path) -> None:
    save("load-ViT-B-32", LOAD, results)
    save("cameras", CAMERAS, results)
    lines = "\n".join(headline_table([read_results(results)]))
    # The head, asked for features alone, is no pipeline.
    assert "| highest load | 64 frames/s, p99 530 ms, set cpu |" in lines
    assert "| 25 requests/s of 1 frame, p99=100ms, shm |" in lines
    assert "| 3, p95 within 1000 ms |" in lines


def test_the_same_results_give_the_same_bytes(results: Path) -> None:
    before = write_report(results).read_bytes()
    assert write_report(results).read_bytes() == before


def test_a_folder_without_results_and_a_damaged_result_are_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bench all"):
        write_report(tmp_path)
    (results / "peers-ViT-B-32.json").write_text("{")
    with pytest.raises(DataError, match=r"peers-ViT-B-32\.json"):
        write_report(results)


def test_what_was_not_measured_says_so_and_names_the_command(results: Path) -> None:
    lines = headline_table([read_results(results)])
    served = next(line for line in lines if line.startswith("| served, INT8"))
    assert "75 frames/s" in served
    assert served.count(NOT_YET) == 2  # one and two RTX 3090
    assert any("affserve bench all --target gpu" in line for line in lines)


def with_gpu(folder: Path, name: str) -> Path:
    for path in folder.glob("*.json"):
        document = json.loads(path.read_text())
        document["environment"]["gpus"] = [{"name": name}]
        path.write_text(json.dumps(document))
    return folder


def test_a_measured_gpu_takes_the_place_of_the_empty_columns(results: Path) -> None:
    lines = headline_table([read_results(with_gpu(results, "NVIDIA GeForce RTX 3090"))])
    assert "1 × NVIDIA GeForce RTX 3090" in lines[0]
    assert not any("--target gpu" in line for line in lines)


def test_the_readme_is_filled_between_its_markers(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here")
    with pytest.raises(OutputError, match="begin"):
        fill_markers(readme, [results])
    assert readme.read_text() == "nothing here"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        fill_markers(readme, [results])
        before, _, rest = readme.read_text().partition(BEGIN)
        filled, _, after = rest.partition(END)
        assert (before, after) == ("before\n", "\nafter\n")
        assert filled.count("75 frames/s") == 1
        assert "old" not in filled


def times(factor: float, seed: int) -> dict[str, Any]:
    measured = copy.deepcopy(PEERS)
    measured["systems"]["affserve INT8"]["times_s"] = [factor * value for value in around(4.0, seed=seed)]
    measured["systems"]["naive service"]["times_s"] = around(15.0, seed=seed)
    return measured


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, SAME), (1.3, WORSE), (0.7, BETTER)], ids=["the-same", "slower", "faster"]
)
def test_only_a_change_beyond_noise_is_called_one(factor: float, verdict: str, tmp_path: Path) -> None:
    before = save("peers-ViT-B-32", times(1.0, seed=1), tmp_path / "a")
    after = save("peers-ViT-B-32", times(factor, seed=2), tmp_path / "b")
    verdicts = {change.where: change.verdict for change in compare_results(before, after).changes}
    assert verdicts == {
        "peers-ViT-B-32 / systems / affserve INT8 / times_s": verdict,
        "peers-ViT-B-32 / systems / naive service / times_s": SAME,
    }


def test_points_are_matched_by_what_they_are_and_not_by_their_place(tmp_path: Path) -> None:
    def points(seed: int) -> list[dict[str, Any]]:
        pairs = (("shm", 9.0), ("raw", 12.0))
        return [point("clip_encoder", 64.0, transport=one, samples_ms=around(ms, seed=seed)) for one, ms in pairs]

    before = save("load", {"points": points(3)}, tmp_path / "a")
    after = save("load", {"points": points(4)[::-1]}, tmp_path / "b")
    assert [change.verdict for change in compare_results(before, after).changes] == [SAME, SAME]


def stages(middle_ms: float) -> dict[str, Any]:
    rounds = [around(middle_ms, 20, seed) for seed in range(5)]
    return {"clip_encoder": [{"engine": "onnxruntime-int8", "samples_ms": rounds}]}


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_a_run_is_not_worse_than_itself(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "RESAMPLES", 20)  # of what is equal any interval is 1
    changes = compare_results(RESULTS / folder, RESULTS / folder).changes
    assert {(change.ratio, change.verdict) for change in changes} == {(1.0, SAME)}


def test_rounds_of_many_calls_are_compared_by_their_medians(tmp_path: Path) -> None:
    before, after = save("stages", stages(5.0), tmp_path / "a"), save("stages", stages(7.0), tmp_path / "b")
    (change,) = compare_results(before, after).changes
    assert change.verdict == WORSE
    assert change.ratio == pytest.approx(1.4, rel=0.02)


def test_comparing_folders_fails_on_a_regression_when_asked_to(tmp_path: Path) -> None:
    save("peers-ViT-B-32", times(1.0, seed=1), tmp_path / "a")
    save("peers-ViT-B-32", times(1.5, seed=2), tmp_path / "b")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    told = CliRunner().invoke(bench_app, ["compare", *folders])
    assert told.exit_code == 0
    assert "1 worse, 0 better, 1 within noise" in told.output
    assert CliRunner().invoke(bench_app, ["compare", *folders, "--fail-on-regression"]).exit_code == 1
    assert CliRunner().invoke(bench_app, ["compare", *folders[::-1], "--fail-on-regression"]).exit_code == 0


def test_other_machines_are_pointed_out(results: Path, tmp_path: Path) -> None:
    other = save("scale-length", LENGTH, tmp_path / "other")
    with_gpu(tmp_path / "other", "H200")
    notes = compare_results(results / "scale-length.json", other).notes
    assert any("gpus was None" in note for note in notes)


def test_results_with_nothing_in_common_are_not_compared(results: Path) -> None:
    with pytest.raises(DataError, match="in common"):
        compare_results(results / "peers-ViT-B-32.json", results / "scale-length.json")
