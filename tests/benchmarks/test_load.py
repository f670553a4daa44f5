"""The load generator against the real server: what it counts, what it must not hide, and what it says of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from affserve.benchmarks.cli import bench_app
from affserve.benchmarks.load import loops
from affserve.benchmarks.load.loops import Load, Samples, merge, poisson, run_load
from affserve.benchmarks.load.request import Target
from affserve.benchmarks.load.slo import Promise, highest_rate
from affserve.benchmarks.load.workers import Generators
from affserve.benchmarks.measuring.server_side import server_processes, server_split
from affserve.benchmarks.video.cameras import line, within
from affserve.train.errors import DataError, ServerError


@pytest.fixture(scope="module")
def generators() -> Iterator[Generators]:
    with Generators(2) as two:
        yield two


def test_arrivals_are_those_of_independent_callers() -> None:
    times = poisson(500, 10, seed=1)
    gaps = np.diff(times)
    assert (len(times), times[-1] < 10, np.all(gaps >= 0)) == (5000, True, True)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)  # exponential gaps; 0 would be a clock's
    assert not np.array_equal(times, poisson(500, 10, seed=2))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_a_load_without_losing_any(processes: int) -> None:
    closed, opened = Load(duration_s=1, concurrency=2), Load(duration_s=1, rate_per_s=30, seed=5)
    shares = [share for k in range(processes) if (share := closed.share(k, processes)) is not None]
    assert sum(share.concurrency or 0 for share in shares) == 2
    rates = [share for k in range(processes) if (share := opened.share(k, processes)) is not None]
    assert sum(share.rate_per_s or 0 for share in rates) == pytest.approx(30)
    assert len({share.seed for share in rates}) == processes


@pytest.fixture
def server_pid(server_url: str) -> Iterator[int]:
    """The server's process, which a test may stop; it goes on afterwards."""
    pid = server_processes(server_url)[0]
    yield pid
    os.kill(pid, signal.SIGCONT)


def test_a_server_on_a_socket_file_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "grpc"))
        listener.listen()
        assert os.getpid() in server_processes(f"unix:{tmp_path}/grpc")
        assert server_processes(f"unix:{tmp_path}/other") == []


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(
    server_url: str, server_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken_s: list[float] = []

    def wake() -> None:
        woken_s.append(time.monotonic())
        os.kill(server_pid, signal.SIGCONT)

    waker = threading.Timer(0.1, wake)

    def all_at_once(*_: object) -> NDArray[np.float64]:
        waker.start()  # after the start of the clock: every request is meant to be sent while the server stands still
        return np.zeros(40)

    # Room for 16 requests on the way, so that the generator itself has to wait and sends late.
    monkeypatch.setattr(loops, "IN_FLIGHT_BYTES", 1)
    monkeypatch.setattr(loops, "poisson", all_at_once)
    target = Target(url=server_url, model="temporal_head", frames=1)
    asked = Load(duration_s=1, rate_per_s=40)
    opened = run_load(target, asked, ready=lambda: os.kill(server_pid, signal.SIGSTOP))
    assert (opened.errors, len(opened.kinds)) == ({}, 40)
    assert opened.latencies_s.min() >= woken_s[0] - opened.start_s  # of those too that were sent after the stall
    assert (opened.sent_s >= woken_s[0]).sum() >= 40 - 16
    closed = run_load(target, Load(duration_s=0.1, concurrency=1))
    assert (closed.sent_s == closed.intended_s).all()


def test_wrong_requests_are_counted_by_kind(server_url: str, generators: Generators) -> None:
    target = Target(url=server_url, model="temporal_head", frames=301)
    point = generators.measure(target, Load(duration_s=0.2, rate_per_s=20))
    assert point["errors"] == {"INVALID_ARGUMENT": 4}
    assert "1 to 300 frames" in point["error_examples"]["INVALID_ARGUMENT"]
    assert point["latency"] is None
    assert (point["requests"], point["requests_per_second"]) == (4, 0)


def test_too_slow_answers_are_deadlines(server_url: str, server_pid: int) -> None:
    target = Target(url=server_url, model="temporal_head", frames=1, timeout_s=0.02)
    asked = Load(duration_s=0.2, rate_per_s=20)
    samples = run_load(target, asked, ready=lambda: os.kill(server_pid, signal.SIGSTOP))
    assert samples.errors == {"DEADLINE_EXCEEDED": 4}


def test_a_server_that_is_not_there_is_told_and_the_generator_still_works(
    server_url: str, generators: Generators
) -> None:
    short = Load(duration_s=0.2, rate_per_s=20)
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 "):
        generators.measure(Target(url="127.0.0.1:9", model="temporal_head", frames=1), short)
    with pytest.raises(ServerError, match="shared memory"):
        generators.measure(Target(url="127.0.0.1:9", model="temporal_head", frames=1, transport="shm"), short)
    assert generators.measure(Target(url=server_url, model="temporal_head", frames=1), short)["requests"] == 4


def test_points_say_what_server_generator_and_machine_did(server_url: str, tmp_path: Path) -> None:
    options = ["--model", "affect", "--frames", "4", "--transport", "raw,shm", "--concurrency", "2", "--rate", "10"]
    result = CliRunner().invoke(
        bench_app, ["load", server_url, *options, "--seconds", "0.6", "--folder", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "load-affect.json").read_text())["measured"]
    loops = [(point["transport"], point["loop"]) for point in measured["points"]]
    assert loops == [("raw", "closed"), ("raw", "open"), ("shm", "closed"), ("shm", "open")]
    for point in measured["points"]:
        assert point["errors"] == {}
        assert point["latency"]["p50_ms"] <= point["latency"]["p90_ms"] <= point["latency"]["p99_ms"]
        assert len(point["samples_ms"]) == point["requests"]
        # Every request went through the ensemble and both of its steps, and nobody else's did.
        for model in ("affect", "clip_encoder", "temporal_head"):
            assert point["server"][model]["requests"] == point["requests"]
        split = point["server"]["clip_encoder"]
        assert 0 < split["compute_infer_ms"] <= split["request_ms"]
        assert point["cpu"]["server_cores"] > 0
        assert point["generator"]["cores"] > 0
    raw, shm = (next(p for p in measured["points"] if p["transport"] == name) for name in ("raw", "shm"))
    assert raw["request_bytes"] > 4 * 224 * 224 * 3
    assert shm["request_bytes"] < 1000
    assert not re.search(r"\b4 frames\b", result.stdout)
    assert len(result.stdout.splitlines()) == 4
    assert not list(Path("/dev/shm").glob(f"affserve-client-*-{os.getpid()}-*"))


def test_a_promise_that_no_rate_keeps_is_a_failed_check(server_url: str, tmp_path: Path) -> None:
    options = ["--model", "temporal_head", "--frames", "301", "--slo", "p99=100ms", "--seconds", "0.05"]
    result = CliRunner().invoke(bench_app, ["load", server_url, *options, "--folder", str(tmp_path)])
    assert result.exit_code == 1
    measured = json.loads((tmp_path / "load-temporal_head.json").read_text())["measured"]
    assert measured["slo"][0]["requests_per_second"] == 0


@pytest.mark.parametrize("capacity", [0.4, 1, 37, 2000], ids=str)
def test_the_highest_rate_is_found_and_confirmed(capacity: float) -> None:
    found = highest_rate(lambda rate, confirming: rate <= capacity, first=10)
    assert 0.95 * capacity <= found.rate <= capacity
    assert found.trials[-1].confirming
    assert found.trials[-1].kept
    assert len(found.trials) < 20


def test_a_rate_that_was_kept_by_luck_is_not_the_answer() -> None:
    lucky = highest_rate(lambda rate, confirming: rate <= (80 if confirming else 100), first=10)
    assert 0.9 * 80 <= lucky.rate <= 80
    assert not all(trial.kept for trial in lucky.trials if trial.confirming)


def test_whole_numbers_are_searched_as_such() -> None:
    asked: list[float] = []
    found = highest_rate(lambda rate, _: asked.append(rate) is None and rate <= 13, first=1, whole=True)
    assert found.rate == 13
    assert all(rate == int(rate) for rate in asked)
    assert highest_rate(lambda rate, _: False, first=1, whole=True).rate == 0


def test_a_promise_is_broken_by_errors_and_by_silence() -> None:
    promise = Promise.parse("p99=0.1s")
    assert str(promise) == "p99=100ms"
    in_time = {"errors": {}, "latency": {"p99_ms": 99.0}}
    assert promise.kept(in_time)
    assert not promise.kept({**in_time, "latency": {"p99_ms": 101.0}})
    assert not promise.kept({**in_time, "errors": {"UNAVAILABLE": 1}})
    assert not promise.kept({**in_time, "latency": None})


@pytest.mark.parametrize("text", ["p99", "p98=10ms", "p99=0ms", "p99=ten"])
def test_a_promise_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="p99=100ms"):
        Promise.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "jpeg_decoder"},
        {"transport": "pigeon"},
        {"model": "temporal_head", "transport": "jpeg"},
        {"frames": 0},
    ],
    ids=["model", "transport", "jpeg-of-features", "frames"],
)
def test_a_target_that_cannot_be_asked_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="expected"):
        Target(**{"url": "127.0.0.1:1", "model": "affect", "frames": 1, **wrong})  # type: ignore[arg-type]


def test_a_split_is_the_mean_over_the_requests_between_two_readings() -> None:
    names = ("requests", "failed", "executions", "inferences", "request_ns", "queue_ns")
    before = dict.fromkeys((*names, "compute_input_ns", "compute_infer_ns", "compute_output_ns"), 7)
    later = {"requests": 11, "executions": 11, "inferences": 11, "queue_ns": 8_000_007}
    split = server_split({"m": before, "idle": before}, {"m": before | later, "idle": before})
    assert list(split) == ["m"]
    assert (split["m"]["queue_ms"], split["m"]["requests"], split["m"]["batch"]) == (2.0, 4, 1.0)


def test_samples_of_processes_add_up() -> None:
    def part(start_s: float, kinds: list[str]) -> Samples:
        times = np.array([start_s + 0.1 * k for k in range(len(kinds))])
        return Samples(
            start_s=start_s, duration_s=1, intended_s=times, sent_s=times, done_s=times + 0.05, kinds=kinds, cpu_s=0.5
        )

    both = merge([part(10.0, ["", "UNAVAILABLE"]), part(10.1, ["", ""])])
    assert both.per_second == 3
    assert both.errors == {"UNAVAILABLE": 1}
    assert both.latencies_s == pytest.approx(0.05)
    assert both.cpu_s == 1.0


@pytest.mark.parametrize(
    ("done", "per_second"),
    [([0.4, 0.8, 1.2], 2.5), ([0.4, 0.8, 4.8], 2.05), ([1.6], 0.625), ([0.5, 1.0], 2.0), ([], 0.0)],
    ids=["steady", "stalled", "slow", "exact", "silent"],
)
def test_a_slow_service_is_not_counted_in_whole_answers(done: list[float], per_second: float) -> None:
    times = np.array(done)
    kinds = [""] * len(done)
    samples = Samples(start_s=0, duration_s=1, intended_s=times, sent_s=times, done_s=times, kinds=kinds)
    assert samples.per_second == pytest.approx(per_second)


@pytest.mark.parametrize(
    ("change", "carried"),
    [
        ({}, True),
        ({"dropped_share": 0.02}, False),
        ({"delay_grows": True}, False),
        ({"delay": {"frames": 9, "p95_ms": 501.0}}, False),
        ({"delay": {"frames": 0}}, False),
    ],
    ids=["good", "dropped", "growing", "late", "silent"],
)
def test_cameras_are_carried_in_time_and_in_full(change: dict[str, object], carried: bool) -> None:
    good = {"delay": {"frames": 9, "p95_ms": 499.0}, "dropped_share": 0.009, "delay_grows": False, "slipped_s": 0}
    assert within({**good, **change}, 500) is carried
    told: dict[str, Any] = {
        **good,
        **change,
        "streams": 2,
        "machine_cores": 1.5,
        "server_cores": 1.2,
        "within_limit": carried,
    }
    told["delay"] = {"p50_ms": 99.0, **told["delay"]}
    assert "1.5 cores busy, 1.2 of them by the server" in line(told, 500)
