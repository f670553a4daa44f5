"""What kills cost a corpus on a Ray cluster: SIGKILL to a worker, a whole node or the command, at random moments.

A round counts where what was killed was alive and clips were still to do. Then the command is called again; the files
have to be, byte for byte, those of an undisturbed run without a cluster, and what was done before the kill is not done
again.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.processes import family, find_psutil
from affserve.benchmarks.video.cluster import CLIPS, Progress, cluster, command_of, linked_clips
from affserve.train.errors import DataError

KINDS = ("worker", "node", "driver")
CLIP_FRAMES = 60
ROUNDS = 10
SEED = 0
LATER_S = 3.0  # at most, after a number of clips is done
WORK_POLL_S = 0.05


def measure_kills(repository: Path, film: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Return what each kill hit, and whether it left the files of an undisturbed run."""
    clips = linked_clips(film, CLIP_FRAMES, scratch / "killed-clips")
    chance = random.Random(SEED)
    expected = scratch / "undisturbed"
    subprocess.run(command_of("annotate", repository, clips, expected, "--jobs", "2"), check=True)  # without a cluster
    wanted = _contents(expected)
    if len(wanted) != 2 * CLIPS:
        raise DataError(f"the undisturbed run left {len(wanted)} files, expected rows and metadata of {CLIPS} clips")
    rounds: list[dict[str, Any]] = []
    while len(rounds) < ROUNDS:
        out = scratch / "killed"
        found = _round(KINDS[len(rounds) % len(KINDS)], repository, clips, out, wanted, chance)
        progress(f"round {len(rounds) + 1}: {found}")
        if found["hit"]:
            rounds.append(found)
        shutil.rmtree(out)
    bad = sum(not one["same_files"] or bool(one["done_twice"]) for one in rounds)
    bar = {"what": f"kills of {ROUNDS} that left other files", "figure": bad, "at_most": 0, "met": bad == 0}
    return {"clips": CLIPS, "kills": rounds, "bars": [bar]}


def _cores() -> list[list[int]]:
    cores = sorted(os.sched_getaffinity(0))
    return [cores[:1], cores[1:2] or cores[:1]]


def _round(
    kind: str, repository: Path, clips: Path, out: Path, wanted: dict[str, bytes], chance: random.Random
) -> dict[str, Any]:
    """Kill something in the middle of a run, let it end or call it again, and look at what there is."""
    after, later_s = chance.randrange(CLIPS - 4), chance.uniform(0, LATER_S)
    with cluster(_cores()) as (made, nodes):
        command = command_of("annotate", repository, clips, out, "--ray", made.address, "--jobs", "1")
        driver = subprocess.Popen(command)
        while len(_results(out)) < after and driver.poll() is None:
            time.sleep(WORK_POLL_S)
        time.sleep(later_s)
        victims = _victims(kind, driver, chance.choice(list(nodes)))
        writing = sum(map(_is_writing, victims)) if kind != "driver" else len(list(out.rglob(".*.part")))
        before = _results(out)
        hit = driver.poll() is None and len(before) < CLIPS and any(map(find_psutil().pid_exists, victims[:1]))
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        ended_alone = driver.wait() == 0 and len(_results(out)) == CLIPS
        ended_well = subprocess.run(command).returncode == 0
    return {
        "killed": kind,
        "hit": hit,
        "processes": len(victims),
        "writing": writing,  # of them; of the driver: files that others were writing
        "clips_done": len(before),
        "ended_alone": ended_alone,
        "same_files": ended_well and _contents(out) == wanted,
        "done_twice": sorted(name for name, made_ns in before.items() if _results(out).get(name) != made_ns),
    }


def _victims(kind: str, driver: subprocess.Popen[bytes], node: Any) -> list[int]:
    """Return the processes to kill; the worker is waited for, where it has not started."""
    if kind == "driver":
        return [driver.pid]
    raylet = node.all_processes["raylet"][0].process.pid
    if kind == "node":
        return family(raylet)
    while driver.poll() is None:
        if workers := [pid for pid in family(raylet) if _is_worker(pid)]:
            return workers[:1]
        time.sleep(WORK_POLL_S)
    return []


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _is_writing(pid: int) -> bool:
    """Say whether a process has a result under way."""
    with suppress(OSError):
        return any(os.readlink(file).endswith(".part") for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _results(out: Path) -> dict[str, int]:
    """Return when each record that a video is done was made."""
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*-metadata.json")}


def _contents(out: Path) -> dict[str, bytes]:
    """Return all that the clips left; a part that was left is a file too much."""
    told = {"failed.csv", "report.json"}
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in told]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
