"""A corpus on a Ray cluster that is made here: what a node adds, what annotating costs beside `infer`, what it holds.

Nodes are raylets on this machine, each kept to cores of its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.films import loop_film
from affserve.benchmarks.measuring.processes import memory_mib
from affserve.train.errors import DataError

CLIPS, CLIP_FRAMES = 40, 150
TURNS = 5
TRIES = 3  # before the last one, of starting a node
PATHS = (100, 100_000)
SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}  # nothing of ours goes through it
COMPARED = {  # what over what, and what is expected at least
    "one node against infer": ("one_node", "infer", 0.95),
    "two nodes against one": ("two_nodes", "one_core", 1.8),
}

Progress = Callable[[str], None]


def measure_cluster(repository: Path, film: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Return speeds, and the memory of the command with few and many paths."""
    clips = linked_clips(film, CLIP_FRAMES, scratch / "clips")
    turns = _turns(repository, clips, scratch, progress)
    memory = {str(paths): _driver_mib(repository, paths, clips / "00.mp4", scratch) for paths in PATHS}
    bars = [
        _bar(what, at_least, [turn[over]["clips_per_s"] / turn[under]["clips_per_s"] for turn in turns])
        for what, (over, under, at_least) in COMPARED.items()
    ]
    return {"clips": CLIPS, "frames": CLIP_FRAMES, "turns": turns, "driver_mib": memory, "bars": bars}


def _bar(what: str, at_least: float, ratios: Sequence[float]) -> dict[str, Any]:
    """Return the median of each turn's ratio: from one turn to the next a machine may be a quarter slower."""
    figure = round(statistics.median(ratios), 3)
    spread = [round(min(ratios), 3), round(max(ratios), 3)]
    return {"what": what, "figure": figure, "spread": spread, "at_least": at_least, "met": figure >= at_least}


def linked_clips(film: Path, frames: int, clips: Path) -> Path:
    """Return a folder of clips, all of them the same film."""
    clips.mkdir()
    first = loop_film(film, frames, clips / "00.mp4")
    for number in range(1, CLIPS):
        os.link(first, clips / f"{number:02}.mp4")
    return clips


@contextmanager
def cluster(cores: Sequence[Sequence[int]]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a Ray cluster and its nodes, one for each set of cores, that it is kept to."""
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0)
    made = Cluster(shutdown_at_exit=False)
    try:
        _patiently(lambda: made.add_node(num_cpus=0, include_dashboard=False, **SMALL))
        yield made, [_add_node(made, of_node) for of_node in cores]
    finally:
        os.sched_setaffinity(0, own)
        made.shutdown()  # type: ignore[no-untyped-call]
        made.global_state.disconnect()  # type: ignore[no-untyped-call]


def _add_node(made: Any, cores: Sequence[int]) -> Any:
    """Add a node that inherits the cores of this process while it starts."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return _patiently(lambda: made.add_node(num_cpus=len(cores), **SMALL))
    finally:
        os.sched_setaffinity(0, own)


def _patiently(start: Callable[[], Any]) -> Any:
    """Start a node; Ray waits 30 s for it, which a busy machine may need."""
    for _ in range(TRIES):
        with suppress(Exception):
            return start()
    return start()


def _turns(repository: Path, clips: Path, scratch: Path, progress: Progress) -> list[dict[str, dict[str, float]]]:
    """Return of each turn clips a second from the first result to the last, and seconds of the whole commands.

    Starting Ray and servers is not in the former: a corpus is far longer than this one.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise DataError("this machine lets us have one core, and two nodes want one each")
    variants: dict[str, list[list[int]] | None] = {
        "infer": None,
        "one_node": [cores],
        "one_core": [cores[:1]],
        "two_nodes": [[core] for core in cores],
    }
    turns: list[dict[str, dict[str, float]]] = []
    for turn in range(TURNS):
        turns.append({})
        for name, nodes in variants.items():
            progress(f"{name}, turn {turn + 1} of {TURNS}")
            out = scratch / "out"
            if nodes is None:
                seconds = _timed(command_of("infer", repository, clips, out, "--no-plot", "--jobs", "2"), out)
            else:
                with cluster(nodes) as (made, _):
                    ray = ("--ray", made.address, "--jobs", str(len(nodes[0])))
                    seconds = _timed(command_of("annotate", repository, clips, out, *ray), out)
            turns[turn][name] = {"clips_per_s": round(_rate(out), 3), "s": round(seconds, 1)}
    return turns


def _rate(out: Path) -> float:
    finished_s = sorted(path.stat().st_mtime for path in out.rglob("*.affect.csv"))
    return (len(finished_s) - 1) / (finished_s[-1] - finished_s[0])


def command_of(name: str, repository: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    """Return a command over a corpus with the model of a repository."""
    where = ["--repository", str(repository), "--out", str(out), "--quiet"]
    return [sys.executable, "-m", "affserve.client", name, str(corpus), *where, *more]


def _timed(command: list[str], out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def _driver_mib(repository: Path, paths: int, film: Path, scratch: Path) -> float:
    """Return the peak memory of the command for a list of which most paths are missing."""
    listed = scratch / f"{paths}.txt"
    listed.write_text("\n".join([str(film), *(f"/absent/{number}.mp4" for number in range(1, paths))]) + "\n")
    out = scratch / f"listed-{paths}"
    process = subprocess.Popen(command_of("annotate", repository, listed, out, "--jobs", "1"))
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mib("VmHWM", process.pid))
        time.sleep(0.1)
    return round(peak, 1)
