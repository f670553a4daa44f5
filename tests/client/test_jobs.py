"""Several sources at once: the same files and messages as one after the other, whatever happens to a worker."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import write_crops

from affserve.client.exchange.exchange import EXCHANGES, Exchange
from affserve.client.infer.crew import default_jobs
from affserve.client.results.formats import FORMATS, RowFormat


def started(server_url: str, folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    command = ("infer", "clips", "--crops", "--url", server_url, "--out", out, "--no-plot", "--json", *more)
    arguments = [sys.executable, "-m", "affserve.client", *command]
    return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(process: subprocess.Popen[str]) -> list[int]:
    children = " ".join(one.read_text() for one in Path(f"/proc/{process.pid}/task").glob("*/children")).split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fact()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name, frames in (("a", 500), ("b", 100), ("c", 100)):  # b is done before a, and told after it
        write_crops(tmp_path / "clips" / name, list(range(1, frames)))
    (tmp_path / "clips" / "bad.mp4").write_text("hello")
    return tmp_path


def test_a_worker_that_dies_costs_time_and_ctrl_c_leaves_nothing_half_done(server_url: str, clips: Path) -> None:
    with started(server_url, clips, "one", "--jobs", "1") as alone:
        told = alone.communicate()[0]
    with started(server_url, clips, "two", "--jobs", "2") as crew:
        wait_for(lambda: workers(crew) and list((clips / "two").glob(".*.part")))
        subprocess.run(["kill", "-9", *map(str, workers(crew))], check=True)
        out, errors = crew.communicate(timeout=100)
    assert crew.returncode == alone.returncode == 1
    names = [line.split('"')[3] for line in out.splitlines()]
    assert names == [line.split('"')[3] for line in told.splitlines()] == ["clips/a", "clips/b", "clips/c"]
    assert "4 sources: 3 done, 1 failed:" in errors
    for file in (clips / "one").glob("*.csv"):
        assert (clips / "two" / file.name).read_bytes() == file.read_bytes()

    with started(server_url, clips, "three", "--jobs", "2") as stopped:
        wait_for(lambda: workers(stopped) and list((clips / "three").glob(".*.part")))
        stopped.send_signal(signal.SIGINT)
        errors = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 130, errors
    assert "the same command with --resume goes on" in errors
    assert "Traceback" not in errors
    assert not list((clips / "three").glob(".*.part"))


@pytest.mark.parametrize("one", [*FORMATS.values(), *EXCHANGES.values()], ids=lambda one: str(one.name))
def test_a_worker_is_told_the_format(one: RowFormat | Exchange) -> None:
    assert pickle.loads(pickle.dumps(one)).name == one.name


def test_jobs_follow_cores_and_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert default_jobs("clip_encoder onnxruntime fp16 on GPU", [9000] * 100) == 15
    assert default_jobs("clip_encoder openvino int8 on CPU", [9000] * 100) == 8
    assert default_jobs("on CPU", [9000]) == 1
    assert default_jobs("on CPU", [30] * 30) == 1
