"""A corpus on a Ray cluster that is made here: what a node adds, what annotating costs beside `infer`, what kills cost.

Nodes are raylets on this machine, each kept to cores of its own. Kills are SIGKILL, at random moments, to a worker, to
all processes of a node, or to the command itself, which is then called again; the files have to be those of an
undisturbed run.
"""

from __future__ import annotations

import hashlib
import os
import random
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
from affserve.benchmarks.measuring.processes import family, memory_mib
from affserve.train.errors import DataError

CLIPS, CLIP_FRAMES = 40, 150
KILLS = ("worker", "node", "driver")
KILL_ROUNDS = 10
TURNS = 3
PATHS = (100, 100_000)
SEED = 0
AT_LEAST = {"one node against infer": 0.95, "two nodes against one": 1.8}

Progress = Callable[[str], None]


def measure_cluster(repository: Path, film: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Return speeds, what kills left, and the memory of the command with few and many paths."""
    clips = scratch / "clips"
    clips.mkdir()
    first = loop_film(film, CLIP_FRAMES, clips / "00.mp4")
    for number in range(1, CLIPS):
        os.link(first, clips / f"{number:02}.mp4")
    speeds = _speeds(repository, clips, scratch, progress)
    kills = _kills(repository, clips, scratch, progress)
    memory = {paths: _driver_mib(repository, paths, first, scratch) for paths in PATHS}
    figures = {
        "one node against infer": speeds["one_node_clips_per_s"] / speeds["infer_clips_per_s"],
        "two nodes against one": speeds["two_nodes_clips_per_s"] / speeds["one_core_clips_per_s"],
    }
    bars = [
        {"what": what, "figure": round(figure, 3), "at_least": AT_LEAST[what], "met": figure >= AT_LEAST[what]}
        for what, figure in figures.items()
    ]
    return {"clips": CLIPS, "frames": CLIP_FRAMES, **speeds, "kills": kills, "driver_mib": memory, "bars": bars}


@contextmanager
def cluster(cores: Sequence[Sequence[int]]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a Ray cluster and its nodes, one for each set of cores, that it is kept to."""
    from ray.cluster_utils import Cluster

    own = os.sched_getaffinity(0)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made, [_add_node(made, of_node) for of_node in cores]
    finally:
        os.sched_setaffinity(0, own)
        made.shutdown()  # type: ignore[no-untyped-call]


def _add_node(made: Any, cores: Sequence[int]) -> Any:
    """Add a node that inherits the cores of this process while it starts."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return made.add_node(num_cpus=len(cores))
    finally:
        os.sched_setaffinity(0, own)


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
                seconds = _timed(_command("infer", repository, clips, out, "--no-plot", "--jobs", "2"), out)
            else:
                with cluster(nodes) as (made, _):
                    ray = ("--ray", made.address, "--jobs", str(len(nodes[0])))
                    seconds = _timed(_command("annotate", repository, clips, out, *ray), out)
            found[f"{name}_s"].append(seconds)
            found[f"{name}_clips_per_s"].append(_rate(out))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def _rate(out: Path) -> float:
    finished_s = sorted(path.stat().st_mtime for path in out.rglob("*.affect.csv"))
    return (len(finished_s) - 1) / (finished_s[-1] - finished_s[0])


def _command(name: str, repository: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    where = ["--repository", str(repository), "--out", str(out), "--quiet"]
    return [sys.executable, "-m", "affserve.client", name, str(corpus), *where, *more]


def _timed(command: list[str], out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def _kills(repository: Path, clips: Path, scratch: Path, progress: Progress) -> list[dict[str, Any]]:
    rounds = []
    chance = random.Random(SEED)
    cores = sorted(os.sched_getaffinity(0))[:2]
    expected = scratch / "undisturbed"
    usual_s = _timed(_command("annotate", repository, clips, expected), expected)
    for number in range(KILL_ROUNDS):
        out = scratch / f"killed-{number}"
        kind = KILLS[number % len(KILLS)]
        with cluster([[core] for core in cores]) as (made, nodes):
            command = _command("annotate", repository, clips, out, "--ray", made.address, "--jobs", "1")
            at_s = chance.uniform(0.1, 1.0) * usual_s
            calls = 1 + _killed(kind, subprocess.Popen(command), nodes, at_s, chance)
            if calls == 2:
                subprocess.run(command, check=True)
        found, wanted = _digests(out), _digests(expected)
        same = found == wanted
        rounds.append({"killed": kind, "at_s": round(at_s, 1), "calls": calls, "same_files": same})
        progress(f"{kind} killed at {at_s:.1f} s: {'the same' if same else 'OTHER'} {len(found)} files")
        shutil.rmtree(out)
    return rounds


def _killed(
    kind: str, driver: subprocess.Popen[bytes], nodes: Sequence[Any], at_s: float, chance: random.Random
) -> int:
    """Kill something after a while, if it is there; return how often the command has to be called again."""
    time.sleep(at_s)
    raylet = chance.choice(list(nodes)).all_processes["raylet"][0].process.pid
    if kind == "driver":
        driver.kill()
    else:
        below = [pid for pid in family(raylet) if kind == "node" or _is_worker(pid)]
        for pid in below if kind == "node" else chance.sample(below, min(1, len(below))):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
    return int(driver.wait() != 0)


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _digests(out: Path) -> dict[str, str]:
    """Return the digest of each video's rows; a part that was left counts as a file too much."""
    files = [path for path in out.rglob("*") if path.name.endswith((".affect.csv", ".part"))]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _driver_mib(repository: Path, paths: int, film: Path, scratch: Path) -> float:
    """Return the peak memory of the command for a list of which most paths are missing."""
    listed = scratch / f"{paths}.txt"
    listed.write_text("\n".join([str(film), *(f"/absent/{number}.mp4" for number in range(1, paths))]) + "\n")
    out = scratch / f"listed-{paths}"
    process = subprocess.Popen(_command("annotate", repository, listed, out, "--jobs", "1"))
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mib("VmHWM", process.pid))
        time.sleep(0.1)
    return round(peak, 1)
