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
TURNS = 3
TRIES = 3  # before the last one, of starting a node
PATHS = (100, 100_000)
SMALL: dict[str, Any] = {"object_store_memory": 80 << 20}  # nothing of ours goes through it
AT_LEAST = {"one node against infer": 0.95, "two nodes against one": 1.8}

Progress = Callable[[str], None]


def measure_cluster(repository: Path, film: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Return speeds, and the memory of the command with few and many paths."""
    clips = linked_clips(film, CLIP_FRAMES, scratch / "clips")
    speeds = _speeds(repository, clips, scratch, progress)
    memory = {str(paths): _driver_mib(repository, paths, clips / "00.mp4", scratch) for paths in PATHS}
    figures = {
        "one node against infer": speeds["one_node_clips_per_s"] / speeds["infer_clips_per_s"],
        "two nodes against one": speeds["two_nodes_clips_per_s"] / speeds["one_core_clips_per_s"],
    }
    bars = [
        {"what": what, "figure": round(figure, 3), "at_least": AT_LEAST[what], "met": figure >= AT_LEAST[what]}
        for what, figure in figures.items()
    ]
    return {"clips": CLIPS, "frames": CLIP_FRAMES, **speeds, "driver_mib": memory, "bars": bars}


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
    made = Cluster()
    try:
        _patiently(lambda: made.add_node(num_cpus=0, include_dashboard=False, **SMALL))
        yield made, [_add_node(made, of_node) for of_node in cores]
    finally:
        os.sched_setaffinity(0, own)
        made.shutdown()  # type: ignore[no-untyped-call]


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


def _speeds(repository: Path, clips: Path, scratch: Path, progress: Progress) -> dict[str, float]:
    """Return clips a second from the first result to the last, and seconds of the whole commands: medians of turns.

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
    found: dict[str, list[float]] = {f"{name}_{unit}": [] for name in variants for unit in ("clips_per_s", "s")}
    for turn in range(TURNS):
        for name, nodes in variants.items():
            progress(f"{name}, turn {turn + 1} of {TURNS}")
            out = scratch / "out"
            if nodes is None:
                seconds = _timed(command_of("infer", repository, clips, out, "--no-plot", "--jobs", "2"), out)
            else:
                with cluster(nodes) as (made, _):
                    ray = ("--ray", made.address, "--jobs", str(len(nodes[0])))
                    seconds = _timed(command_of("annotate", repository, clips, out, *ray), out)
            found[f"{name}_s"].append(seconds)
            found[f"{name}_clips_per_s"].append(_rate(out))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


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
