"""The benchmarks run for real at a small size and say on what machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest
from clips import moving_square, write_video
from typer.main import get_command
from typer.testing import CliRunner

from affserve.benchmarks.cli import bench_app
from affserve.benchmarks.everything import URL, AllOptions, Part, cpu_parts, gpu_parts, run_all
from affserve.benchmarks.measuring.films import loop_film
from affserve.benchmarks.measuring.random_models import DEMO, SHAPING, random_checkpoints, repository_of, shaped_by
from affserve.export.precision.tolerances import Precision
from affserve.export.repository.check import verify_repository
from affserve.train.errors import DataError


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "film.mp4", moving_square(7))


@pytest.mark.parametrize("frames", [3, 7, 20])
def test_a_film_is_played_over_and_over(film: Path, frames: int, tmp_path: Path) -> None:
    assert frames_of(loop_film(film, frames, tmp_path / "long.mp4")) == frames


def test_a_demo_that_never_ran_is_said_to_be_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench_app, ["demo", str(tmp_path)])
    assert result.exit_code == 1
    assert "affserve demo" in str(result.exception)


def test_everything_goes_on_where_it_stopped(tmp_path: Path) -> None:
    told: list[str] = []
    options = AllOptions(only=("startup",), folder=tmp_path / "results", cache=tmp_path)
    assert run_all(options, told.append)
    assert (tmp_path / "results" / "startup.json").exists()
    told.clear()
    assert run_all(options, told.append)
    assert told == ["[1/1] startup: done before"]


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    told: list[str] = []
    options = AllOptions(
        only=("e2e", "report"), video=tmp_path / "missing.mp4", folder=tmp_path / "results", cache=tmp_path
    )
    assert not run_all(options, told.append)
    assert next(line for line in told if "FAILED" in line).startswith("[1/2] e2e")
    assert any(line.startswith("[2/2] report") for line in told)
    assert not (tmp_path / "all-cpu.json").exists()


def test_every_gpu_is_measured_alone_and_all_of_them_together() -> None:
    parts = {part.name: part for part in gpu_parts(False, [0, 1], None, None)}
    assert parts["load-gpu0"].environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert parts["load-gpu1"].environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in parts["gpus"].environment
    assert parts["gpus"].arguments[-4:] == ("--gpu", "0", "--gpu", "1")


@pytest.mark.parametrize("parts", [cpu_parts(True, None, None), gpu_parts(True, [0], None, None)], ids=["cpu", "gpu"])
def test_the_commands_of_everything_are_real_ones(parts: list[Part]) -> None:
    """Every option is one that its command has, so that a long run does not end in a wrong usage."""
    commands = get_command(bench_app)
    for part in parts:
        _, name, *arguments = part.arguments
        command = commands.commands[name]
        with command.make_context(name, [one.replace(URL, "127.0.0.1:1") for one in arguments]):
            pass


def test_a_gpu_that_is_not_there_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, as on a machine without a driver
    with pytest.raises(DataError, match="no NVIDIA GPU"):
        run_all(AllOptions(target="gpu", cache=tmp_path), print)


@pytest.mark.parametrize("pattern", SHAPING)
def test_source_that_moved_away_does_not_make_old_models_look_fresh(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("shape = 1")
    before = shaped_by(tmp_path, ["*.py"])
    (tmp_path / "here.py").write_text("shape = 2")
    assert shaped_by(tmp_path, ["*.py"]) != before
    with pytest.raises(DataError, match="SHAPING"):
        shaped_by(tmp_path, ["*.py", pattern])


def test_two_benchmarks_at_once_make_a_model_once(tmp_path: Path) -> None:
    """Both wait for whoever is first: one that exports into the folder that another one serves would break it."""
    told: list[str] = []

    def make(_: int) -> Path:
        checkpoints = random_checkpoints("affserve-demo", tmp_path, DEMO)
        return repository_of(checkpoints, Precision.FP32, tmp_path, progress=told.append)

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(make, range(2))
    assert first == second
    assert verify_repository(first) is not None
    assert len(told) == 1
