"""Cost against work: fits that are right, turns that are fair, and real runs at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_square, write_video

from affserve.benchmarks.measuring.films import BACKGROUND, TILE_PX, mosaic
from affserve.benchmarks.measuring.samples import linear_fit, power_exponent
from affserve.benchmarks.serving.clients import measure_clients
from affserve.benchmarks.serving.gpu_scaling import measure_gpus
from affserve.benchmarks.video.scale import ScaleOptions, measure_scale, turns
from affserve.client.video.source import open_source
from affserve.train.errors import DataError


@pytest.mark.parametrize(("power", "expected"), [(1, 1.0), (2, 2.0), (0, 0.0)], ids=["linear", "quadratic", "flat"])
def test_the_exponent_tells_how_cost_grows(power: int, expected: float) -> None:
    assert power_exponent([1, 2, 4, 8], [3.0 * n**power for n in (1, 2, 4, 8)]) == pytest.approx(expected, abs=1e-9)


def test_a_line_is_found_and_a_curve_is_told_from_one() -> None:
    straight = linear_fit([1, 2, 3, 4], [12.0, 14.0, 16.0, 18.0])
    assert (straight["slope"], straight["intercept"], straight["r_squared"]) == pytest.approx((2.0, 10.0, 1.0))
    assert linear_fit([1, 2, 3, 4], [1.0, 4.0, 9.0, 16.0])["r_squared"] < 0.98
    with pytest.raises(ValueError, match="two different"):
        linear_fit([5, 5], [1.0, 2.0])


def test_the_longest_video_stands_in_the_middle_of_the_shorter_ones() -> None:
    assert turns([300, 20_000, 2000], 4) == [300, 2000, 300, 2000, 20_000, 2000, 300, 2000, 300]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", moving_square(12))


def test_time_and_memory_are_measured_by_length(film: Path, repository: Path, tmp_path: Path) -> None:
    options = ScaleOptions(parts=("length",), repository=repository, film=film, lengths=(10, 40), repeats=1)
    measured = measure_scale(options, tmp_path)["length"]
    assert [(row["frames"], row["rows"]) for row in measured["rows"]] == [(10, 10), (40, 40)]
    assert all(row["client_peak_mib"] > 30 and row["server_peak_mib"] > 30 for row in measured["rows"])
    assert measured["detector"] in ("yunet", "haar")
    assert "slope" in measured["fit"]
    assert {bar["at_most"] for bar in measured["bars"]} == {1.05}


def test_clients_share_one_server(repository: Path) -> None:
    measured = measure_clients(repository, (1, 2), frames=64, rounds=1)
    rates = [row["frames_per_s"] for row in measured["rows"]]
    assert all(rate > 0 for rate in rates)
    assert [len(row["times_s"]) for row in measured["rows"]] == [1, 1]
    assert all(row["slowest_to_median_client"] >= 1 for row in measured["rows"])
    assert measured["fit"].keys() == {"slope", "intercept", "r_squared"}


def test_gpus_are_compared_one_by_one_and_together(repository: Path) -> None:
    # The servers of this machine compute on its CPU; everything else is as with GPUs.
    measured = measure_gpus(repository, "cpu", [0, 1], frames=64, rounds=2)
    assert list(measured["gpus"]) == ["0", "1", "all"]
    alone = np.mean([measured["gpus"][name]["frames_per_s"] for name in ("0", "1")])
    assert measured["scaling_factor"] == pytest.approx(measured["gpus"]["all"]["frames_per_s"] / alone, rel=0.01)


def test_a_killed_worker_costs_nothing(film: Path, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    case = [sys.executable, Path(__file__).parents[1] / "kill_case.py", repository, film, tmp_path]
    done = subprocess.run(case, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    (one,) = measured["kills"]
    assert one["hit"]
    assert one["processes"] == 1
    assert one["same_files"]
    assert one["done_twice"] == []
    assert [bar["met"] for bar in measured["bars"]] == [True]


@pytest.mark.parametrize("faces", [1, 5])
def test_a_mosaic_shows_so_many_pictures(film: Path, faces: int, tmp_path: Path) -> None:
    path = mosaic(film, faces, 3, tmp_path / "mosaic.mp4")
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    image = next(iter(open_source(path))).image.astype(int)
    tiles = [image[y : y + TILE_PX, x : x + TILE_PX] for y in (0, TILE_PX) for x in (0, TILE_PX, 2 * TILE_PX)]
    empty = [np.abs(tile - BACKGROUND).mean() < 2 for tile in tiles]  # the codec blurs edges
    assert empty == [False] * faces + [True] * (6 - faces)


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(DataError, match="faces"):
        ScaleOptions(parts=("wings",))
