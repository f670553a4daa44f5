"""`affserve bench`: measurements that end in a JSON file; each package of this folder brings its own commands."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from affserve.benchmarks.engines import commands as engines
from affserve.benchmarks.load import commands as load
from affserve.benchmarks.measuring.command_line import FaceModel, Folder, keep
from affserve.benchmarks.peers import commands as peers
from affserve.benchmarks.report import commands as report
from affserve.benchmarks.serving import commands as serving
from affserve.benchmarks.training import commands as training
from affserve.benchmarks.video import commands as video
from affserve.train.cli import picked, tell

bench_app = typer.Typer(help="Measure speed and memory, with results kept as JSON.", no_args_is_help=True)

for package in (engines, serving, load, peers, video, training, report):
    for command in package.COMMANDS:
        bench_app.command()(command)


@bench_app.command()
def startup(folder: Folder = None) -> None:
    """Time `affserve --help`."""
    keep("startup", measure_help(), folder)


def measure_help(runs: int = 9) -> dict[str, Any]:
    """Return the wall-clock time of `affserve --help` over several runs, after one that fills the disk cache."""
    command = [sys.executable, "-m", "affserve.client", "--help"]
    times_s = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times_s.append(time.perf_counter() - started)
    counted = times_s[1:]
    return {"runs": runs, "median_s": round(statistics.median(counted), 3), "max_s": round(max(counted), 3)}


@bench_app.command(name="all")
def everything(
    target: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Every part at a small size, in minutes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")] = False,
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video of the whole job.  [default: a drawn one]")] = None,
    face_model: FaceModel = None,
    folder: Folder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the commands.")] = False,
) -> None:
    """Measure everything on this machine, part by part, and report; run again, it goes on where it stopped.

    A part that fails is told and the others go on; the exit code is then 1.
    """
    from affserve.benchmarks.everything import AllOptions, run_all

    if not run_all(AllOptions(only=tuple(part or ()), **picked(locals(), AllOptions)), tell):
        raise typer.Exit(1)
