"""NVIDIA's own load generator beside ours, in turns, on the same server: do they see the same service?

perf_analyzer is inside the wheel of tritonclient 2.41; it needs one Debian library and CUDA's runtime, both put in the
same folder and used by this benchmark alone. It writes down every request, so both are judged by the same arithmetic.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affserve.benchmarks.load.loops import Load
from affserve.benchmarks.load.request import RAW, SHM, Target
from affserve.benchmarks.load.workers import Generators
from affserve.benchmarks.measuring.samples import counted, ratio_interval, summary_ms
from affserve.export.contract import MODELS, TensorSpec
from affserve.train.errors import DataError, ServerError

WHEELS = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79")
WHEEL_PLATFORM = "manylinux2014_x86_64"
DEBIAN_PACKAGE = "libb64-0d"
DEFAULT_FOLDER = Path("build/perf_analyzer")
WINDOW_ANSWERS = 4  # of each caller in a window, at least; without any, perf_analyzer gives up
WINDOWS = 3  # perf_analyzer measures at least so many before it calls a result stable
AGREEMENT = 0.10  # between the medians of both
INSTALL_TIMEOUT_S = 300.0
EXTRA_TIME_S = 60.0  # beyond the windows, before perf_analyzer counts as stuck


@dataclass(frozen=True, kw_only=True)
class PerfAnalyzer:
    """The program and where its libraries are."""

    program: Path
    libraries: tuple[Path, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment to start it in; a server on this machine is never behind a proxy."""
        local = "127.0.0.1,localhost"
        paths = os.pathsep.join(map(str, self.libraries))
        return {**os.environ, "LD_LIBRARY_PATH": paths, "no_proxy": local, "NO_PROXY": local}

    def version(self) -> str:
        """Return what it says of itself; ServerError when it cannot be started."""
        return _run([str(self.program), "--version"], 30, self.environment()).strip()


def install(folder: Path = DEFAULT_FOLDER) -> PerfAnalyzer:
    """Put perf_analyzer and its libraries into `folder`, unless they are there; ServerError where that cannot be."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ServerError(f"perf_analyzer is for Linux on x86_64; this is {platform.system()} {platform.machine()}")
    found = _installed(folder)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        _unpack_wheels(folder)
        _unpack_library(folder)
        found = _installed(folder)
    if found is None:
        raise ServerError(
            f"{' and '.join(WHEELS)} hold no perf_analyzer with its libraries; remove {folder}, try again"
        )
    found.program.chmod(0o755)
    return found


def _installed(folder: Path) -> PerfAnalyzer | None:
    programs = list(folder.glob("tritonclient-*.data/data/bin/perf_analyzer"))
    libraries = [*folder.glob("**/libb64.so.0d"), *folder.glob("**/libcudart.so.12")]
    if not programs or len({library.name for library in libraries}) < 2:
        return None
    return PerfAnalyzer(program=programs[0].resolve(), libraries=tuple(path.parent.resolve() for path in libraries))


def _unpack_wheels(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        only = ["--no-deps", "--only-binary=:all:", "--platform", WHEEL_PLATFORM, "--platform", "manylinux1_x86_64"]
        _run([sys.executable, "-m", "pip", "download", "-q", *only, "--dest", scratch, *WHEELS], INSTALL_TIMEOUT_S)
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


def _unpack_library(folder: Path) -> None:
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise ServerError(
            f"perf_analyzer needs the library libb64.so.0d, and {' and '.join(missing)}, which would fetch Debian's "
            f"package {DEBIAN_PACKAGE}, is not here: put the library below {folder} yourself"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", "-q", DEBIAN_PACKAGE], INSTALL_TIMEOUT_S, folder=Path(scratch))
        for package in Path(scratch).glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(folder)], INSTALL_TIMEOUT_S)


def _run(
    command: Sequence[str], timeout_s: float, environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    """Run a program and return what it printed; ServerError with its last words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{Path(command[0]).name} could not be run to its end: {error}") from error
    if done.returncode:
        words = (done.stderr + done.stdout).strip()[-800:]
        raise ServerError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{words}")
    return done.stdout + done.stderr


def command_line(
    analyzer: PerfAnalyzer, target: Target, concurrency: int, seconds: float, scratch: Path
) -> tuple[list[str], Path]:
    """Return the command that measures `target` in a closed loop, for `seconds` in three windows, and its profile."""
    if target.transport not in (RAW, SHM):
        raise DataError(f"perf_analyzer sends raw or shm, not {target.transport}")
    model = MODELS[target.served_model]
    (spec,) = model.inputs
    shape = ",".join(str(target.frames if length == -1 else length) for length in spec.shape)
    size = ["-b", str(target.frames)] if model.max_batch_size else ["--shape", f"{spec.name}:{shape}"]
    export = scratch / "profile.json"
    memory = ["--shared-memory", "system"] if target.transport == SHM else []
    options = {
        "-m": target.served_model,
        "-u": target.url,
        "-i": "grpc",
        "--input-data": _input_data(spec, target.frames, scratch),
        "--concurrency-range": str(concurrency),
        "-p": str(round(1000 * seconds / WINDOWS)),  # ms
        # Three windows, however much they differ: how long both sides measure is not left to chance.
        "-r": str(WINDOWS),
        "-s": "999",
        "--profile-export-file": str(export),
    }
    words = [word for option in options.items() for word in option]
    return [str(analyzer.program), *words, *size, *memory], export


def _input_data(spec: TensorSpec, frames: int, scratch: Path) -> str:
    """Return what perf_analyzer sends: its own random bytes, or where those could be no numbers, ours from a file."""
    if spec.numpy_dtype == np.uint8:
        return "random"
    shape = [frames, *spec.shape[1:]]
    values = np.random.default_rng(0).standard_normal(shape).round(4)
    path = scratch / "input.json"
    path.write_text(json.dumps({"data": [{spec.name: {"content": values.ravel().tolist(), "shape": shape}}]}))
    return str(path)


def run_theirs(analyzer: PerfAnalyzer, target: Target, concurrency: int, seconds: float) -> dict[str, Any]:
    """Measure once with perf_analyzer; return requests per second and latencies, by our arithmetic on its times."""
    with tempfile.TemporaryDirectory() as scratch:
        command, export = command_line(analyzer, target, concurrency, seconds, Path(scratch))
        said = _run(command, 4 * seconds + EXTRA_TIME_S, analyzer.environment())
        try:
            (experiment,) = json.loads(export.read_text())["experiments"]
        except (OSError, ValueError, KeyError) as error:
            raise ServerError(f"perf_analyzer left no profile: {error}; it said:\n{said[-800:]}") from error
    told = " ".join(["perf_analyzer", *command[1:]]).replace(f"{scratch}/", "")  # that folder is gone by now
    return {**read_profile(experiment), "command": told}


def read_profile(experiment: dict[str, Any]) -> dict[str, Any]:
    """Return requests per second and latencies of an exported experiment; its times are nanoseconds."""
    first, *_, last = experiment["window_boundaries"]
    rows = [(row["timestamp"], row["response_timestamps"][-1]) for row in experiment["requests"]]
    times = np.array(rows, dtype=np.int64).reshape(-1, 2)
    answered = times[(times[:, 1] > first) & (times[:, 1] <= last)]
    if len(answered) == 0:
        raise ServerError("perf_analyzer had no answer within its windows; measure for longer")
    latencies_s = (answered[:, 1] - answered[:, 0]) / 1e9
    return {
        "requests": len(answered),
        "requests_per_second": round(len(answered) / (last - first) * 1e9, 3),
        "latency": summary_ms(latencies_s.tolist()),
    }


def compare(
    analyzer: PerfAnalyzer,
    target: Target,
    concurrency: int,
    *,
    generators: Generators,
    rounds: int,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure one point with both, in turns, and return both and their ratios (ours to theirs) with intervals.

    seconds: of one measurement, at least; longer where a window would hold too few answers.
    """
    seconds = max(seconds, WINDOWS * WINDOW_ANSWERS * _slowest_s(target, concurrency, generators))
    ours, theirs = [], []
    for number in range(rounds):
        load = Load(duration_s=seconds, concurrency=concurrency)
        # Who goes first changes: the second of a pair finds a warmer machine.
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            if side == 0:
                ours.append(generators.measure(target, load))
            else:
                theirs.append(run_theirs(analyzer, target, concurrency, seconds))
        progress(_line(target, concurrency, ours[-1], theirs[-1]))
    ratios = {
        "requests_per_second": _ratio(ours, theirs, lambda side: side["requests_per_second"]),
        "p50": _ratio(ours, theirs, lambda side: side["latency"]["p50_ms"]),
        "mean": _ratio(ours, theirs, lambda side: side["latency"]["mean_ms"]),
    }
    off = max(abs(ratio["value"] - 1) for ratio in ratios.values())
    return {
        "model": target.model,
        "frames": target.frames,
        "transport": target.transport,
        "concurrency": concurrency,
        "seconds": round(seconds, 2),
        "ours_to_theirs": ratios,
        "furthest_off": round(off, 4),
        "agree": off <= AGREEMENT,
        "ours": [{key: side[key] for key in ("requests", "requests_per_second", "latency", "errors")} for side in ours],
        "perf_analyzer": theirs,
    }


def _slowest_s(target: Target, concurrency: int, generators: Generators) -> float:
    """Return the time of a slow answer, from a short measurement that is not counted."""
    latency = generators.measure(target, Load(duration_s=1.0, concurrency=concurrency))["latency"]
    return float(latency["p95_ms"]) / 1000 if latency else 0.0


def _ratio(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]
) -> dict[str, float]:
    return ratio_interval([figure(side) for side in ours], [figure(side) for side in theirs], in_turns=True).rounded()


def _line(target: Target, concurrency: int, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    sides = " | ".join(
        f"{name} {side['requests_per_second']:.1f}/s p50 {side['latency']['p50_ms']:.2f} ms"
        for name, side in (("ours", ours), ("perf_analyzer", theirs))
        if side["latency"]
    )
    return f"{target.model} x{target.frames} {target.transport}, {counted(concurrency, 'caller')}: {sides}"


def measure_agreement(
    url: str,
    points: Sequence[tuple[Target, int]],
    *,
    folder: Path = DEFAULT_FOLDER,
    rounds: int = 5,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare both tools at every point (what is asked, by how many callers) of the server at `url`."""
    analyzer = install(folder)
    with Generators() as generators:
        compared = [
            compare(analyzer, target, callers, generators=generators, rounds=rounds, seconds=seconds, progress=progress)
            for target, callers in points
        ]
    return {
        "perf_analyzer": analyzer.version(),
        "url": url,
        "rounds": rounds,
        "seconds": seconds,
        "limit": AGREEMENT,
        "points": compared,
        "median_furthest_off": round(statistics.median(point["furthest_off"] for point in compared), 4),
        "agree": all(point["agree"] for point in compared),
    }
