"""A corpus of videos: each a unit that is done once, on this machine or on a cluster, whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from clips import moving_square, write_video
from tiny_server import pause

from affserve.benchmarks.measuring.processes import family
from affserve.client.annotate.places import videos
from affserve.train.errors import VideoError


def annotate(server_url: str, corpus: Path | str, out: Path | str, *more: str) -> subprocess.Popen[str]:
    command = ("annotate", str(corpus), "--crops", "--url", server_url, "--out", str(out), *more)

    return subprocess.Popen(
        [sys.executable, "-m", "affserve.client", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def report(out: Path) -> dict[str, int]:
    told = json.loads((out / "report.json").read_text())
    return {name: told[name] for name in ("done", "done_before", "failed")}


def rows(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.affect.csv")}


def wait_for(fact: Callable[[], object], process: subprocess.Popen[str], *, alive: bool = True) -> None:
    deadline = time.monotonic() + 120
    while not fact() and (process.poll() is None) is alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fact(), process.communicate()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("a.mp4", "b.mp4", "deep/a.mp4", "deep/c.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(folder / name, moving_square(200))
    return folder


@pytest.fixture(scope="module")
def expected(server_url: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expected")
    with annotate(server_url, f"{corpus}/**/*.mp4", out) as process:
        process.communicate()
    return out


def test_each_video_is_done_once_and_failures_are_listed(server_url: str, corpus: Path, expected: Path) -> None:
    assert sorted(rows(expected)) == [f"{name}.affect.csv" for name in ("a.mp4", "b.mp4", "deep/a.mp4", "deep/c.mp4")]
    listed = expected / "list.txt"
    listed.write_text("\n".join([str(corpus / "a.mp4"), str(corpus / "absent.mp4"), __file__]))
    out = expected.parent / "listed"
    for done, more in ((1, ()), (0, ()), (1, ("--every", "2"))):
        with annotate(server_url, listed, out, *more) as process:
            told = process.communicate()[0]
        assert process.returncode == 1
        assert report(out) == {"done": done, "done_before": 1 - done, "failed": 2}
        failed = (out / "failed.csv").read_text()
        assert f"{corpus / 'absent.mp4'},does not exist" in failed
        assert "cannot be read as a video" in failed
        assert "3 videos: " in told
    (made,) = rows(out).values()
    assert made.count(b",1,") > 90  # interpolated


def test_videos_and_results_of_a_store(server_url: str, corpus: Path, expected: Path, tmp_path: Path) -> None:
    """And features kept there, which are done like videos."""
    store, films, features = f"file://{tmp_path}", str(corpus), f"{tmp_path}/out/**/*.npz"
    for done, source, out in ((4, films, "out"), (0, films, "out"), (4, features, "kept")):
        keep = ("--keep-features",) if out == "out" else ()
        with annotate(server_url, f"file://{source}", f"{store}/{out}", *keep) as process:
            errors = process.communicate()[1]
        assert errors == "warning: this model was trained on generated faces only: not for people\n"
        assert report(tmp_path / out) == {"done": done, "done_before": 4 - done, "failed": 0}
        assert rows(tmp_path / out) == rows(expected)


def test_names_do_not_depend_on_other_videos(corpus: Path, tmp_path: Path) -> None:
    found = dict(videos(str(corpus)))
    assert found[str(corpus / "deep" / "a.mp4")] == "deep/a.mp4"
    assert dict(videos(f"{corpus}/deep/*.mp4"))[str(corpus / "deep" / "a.mp4")] == "a.mp4"
    with pytest.raises(VideoError, match="matches no video"):
        list(videos(str(tmp_path)))


@contextlib.contextmanager
def may_be_paused(server_url: str) -> Iterator[Callable[[], None]]:
    """Yield what stops a server, which goes on afterwards."""
    port = int(server_url.rpartition(":")[2])
    (pid,) = {one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"}
    try:
        yield lambda: pause(pid)
    finally:
        psutil.Process(pid).resume()


def test_a_killed_run_ends_with_its_workers_and_goes_on_when_called_again(
    server_url: str, corpus: Path, expected: Path, tmp_path: Path
) -> None:
    with annotate(server_url, corpus, tmp_path, "--jobs", "2") as killed, may_be_paused(server_url) as pause_server:
        wait_for(lambda: rows(tmp_path), killed)
        workers = family(killed.pid)[1:]
        pause_server()  # so that they have nothing to tell, and do not find out by that
        killed.kill()
        killed.wait()
        wait_for(lambda: not any(map(psutil.pid_exists, workers)), killed, alive=False)
        assert killed.stderr is not None
        assert "Traceback" not in killed.stderr.read()
    assert workers
    assert not list(tmp_path.rglob(".*.part"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-metadata.json")}
    with annotate(server_url, corpus, tmp_path) as again:
        again.communicate()
    assert report(tmp_path) == {"done": 4 - len(before), "done_before": len(before), "failed": 0}
    assert all(path.stat().st_mtime_ns == made_ns for path, made_ns in before.items())
    assert rows(tmp_path) == rows(expected)


SMALL = {"object_store_memory": 80 << 20}  # nothing of ours goes through it; by default it is a third of the memory


def test_what_a_node_had_is_done_by_another_one_when_it_is_killed(
    server_url: str, corpus: Path, expected: Path, tmp_path: Path
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(shutdown_at_exit=False)
    try:
        joined(cluster, include_dashboard=False)
        victim = joined(cluster)
        with annotate(server_url, corpus, tmp_path, "--ray", cluster.address, "--jobs", "1") as driver:
            wait_for(lambda: list(tmp_path.rglob(".*.part")), driver)
            cluster.remove_node(victim, allow_graceful=False)
            told = driver.communicate(timeout=100)
        assert driver.returncode == 0, told
    finally:
        cluster.shutdown()
        cluster.global_state.disconnect()
    assert rows(tmp_path) == rows(expected)
    assert report(tmp_path) == {"done": 4, "done_before": 0, "failed": 0}
    workers = json.loads((tmp_path / "report.json").read_text())["workers"]
    assert {name.split()[-1] for name in workers} == {"1"}  # --jobs 1 is one worker a node
    assert not list(tmp_path.rglob(".*.part"))


def joined(cluster: Any, **more: object) -> Any:
    """Add a node of one core; Ray waits 30 s for it, which a busy machine may need."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return cluster.add_node(num_cpus=1, **SMALL, **more)
    return cluster.add_node(num_cpus=1, **SMALL, **more)
