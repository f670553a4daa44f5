"""The benchmarks run for real at a small size and say on what machine."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
from clips import moving_square, write_video
from typer.testing import CliRunner

from affserve.benchmarks.cli import bench_app
from affserve.benchmarks.memory import loop_film


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", moving_square(7))


@pytest.mark.parametrize("frames", [3, 7, 20])
def test_a_film_is_played_over_and_over(film: Path, frames: int, tmp_path: Path) -> None:
    assert frames_of(loop_film(film, frames, tmp_path / "long.mp4")) == frames


def test_memory_of_client_and_server_is_measured(film: Path, repository: Path, tmp_path: Path) -> None:
    options = ["--frames", "10", "--frames", "30", "--folder", str(tmp_path)]
    result = CliRunner().invoke(bench_app, ["memory", str(repository), str(film), *options])
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "memory.json").read_text())
    assert [row["frames"] for row in kept["measured"]["rows"]] == [10, 30]
    for row in kept["measured"]["rows"]:
        assert row["client_peak_mib"] > 30  # Python with NumPy and OpenCV
        assert row["server_peak_mib"] > 30  # tritonserver with ONNX Runtime
    assert kept["environment"]["cpus"] >= 1
    assert kept["environment"]["packages"]["numpy"]


def test_a_demo_that_never_ran_is_said_to_be_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench_app, ["demo", str(tmp_path)])
    assert result.exit_code == 1
    assert "affserve demo" in str(result.exception)
