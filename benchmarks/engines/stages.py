"""How fast each engine runs the encoder and the head by themselves, and how far that is from what the machine could do.

Every engine has a process of its own. For each size all of them are timed in turns, a slice of calls each, so that what
else the machine does reaches all alike. The limits come first: peaks of matrix products, measured here, and arithmetic.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from affserve.benchmarks.engines import limits
from affserve.benchmarks.engines.process import OpenEngine, do_here, open_here
from affserve.benchmarks.engines.specs import EAGER, FP16, FP32, MODELS, EngineSpec, Found, find_engines
from affserve.benchmarks.measuring.gpus import CUDA, DEVICES
from affserve.benchmarks.measuring.random_models import CACHE, random_checkpoints, repository_of
from affserve.benchmarks.measuring.samples import ratio_interval, summary_ms
from affserve.export.contract import CLIP_ENCODER, CPU, FEATURE_WIDTH, FEATURES, FRAMES, GPU
from affserve.export.engine_sets import ONNX_RUNTIME
from affserve.export.graphs.flops import count_flops
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import DataError, ExportError
from affserve.train.windows import WINDOW_FRAMES

T = TypeVar("T")
Peaks = Mapping[str, Mapping[str, Any]]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 300)  # frames
QUICK_BATCHES = (1, 8, 32)
SECONDS, QUICK_SECONDS = 10.0, 2.0  # of measuring, for each engine and size
MOST_ROUNDS = 5
LEAST_ROUNDS = 2
MOST_CALLS = 400  # of one engine at one size
# An engine that was idle while others ran has lost the caches and its threads sleep: one call before each slice brings
# them back, unless a call takes so long that it makes no difference.
REWARM_BELOW_S = 0.25


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """What to measure."""

    repositories: tuple[Path, ...]  # of the same model, in several precisions
    device: str = "cpu"
    threads: int = 1  # on a CPU
    kinds: tuple[str, ...] = ()  # engines; none: all
    batches: tuple[int, ...] = BATCHES  # frames of the encoder's batch, and of the head's window
    seconds: float = SECONDS
    weights: str = "as exported"  # what the repositories hold, for the reader

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or max(self.batches) > WINDOW_FRAMES:
            raise DataError(f"batches are {self.batches}, expected some from 1 to {WINDOW_FRAMES}")
        if self.threads < 1 or self.seconds <= 0:
            raise DataError(f"threads is {self.threads}, seconds {self.seconds:g}; expected at least 1, and above 0")


def find_repositories(
    given: Sequence[Path],
    architecture: str,
    device: str,
    progress: Callable[[str], None] = lambda _: None,
    cache: Path = CACHE,
) -> tuple[tuple[Path, ...], str, list[dict[str, str]]]:
    """Return the repositories given or, without any, ones of random weights; what their weights are; what failed.

    Exported once and kept in the cache folder. A precision whose export does not pass its parity gate is left out.
    """
    if device not in DEVICES:
        raise DataError(f"device is {device!r}, expected {' or '.join(DEVICES)}")
    if given:
        return tuple(given), "as exported", []
    checkpoints = random_checkpoints(architecture, cache)
    wanted = {CPU: ((Precision.FP32, CPU), (Precision.INT8, CPU)), CUDA: ((Precision.FP32, CPU),)}[device]
    made, left_out = [], []
    for precision, use in (*wanted, (Precision.FP16, GPU)):
        try:
            made.append(repository_of(checkpoints, precision, cache, use=use, progress=progress))
        except ExportError as error:
            progress(f"{precision.value} is left out: {error}")
            left_out.append({"kind": ONNX_RUNTIME, "model": "both", "reason": f"{precision.value}: {error}"})
    if not made:
        raise ExportError(f"no precision of {architecture} could be exported; the lines above say why")
    return tuple(made), checkpoints.weights, left_out


def measure_stages(config: StagesConfig, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return limits, and for each model, size and engine speed, latency, memory and the part of the peak it reaches."""
    kinds = {"kinds": config.kinds} if config.kinds else {}
    found = find_engines(config.repositories, config.device, config.threads, **kinds)
    for skipped in found.skipped:
        progress(f"{skipped.model}: {skipped.kind} is left out: {skipped.reason}")
    if not found.engines:
        raise DataError("no engine can be run here; the lines above say why")
    flops = {(model, n): _flops(found, model, n) for model in found.flops_graphs for n in config.batches}
    with _process() as alone:  # no library's threads and memory are left in this one
        before = alone.submit(limits.measure_peaks, config.device, config.threads).result()
        progress("\n".join(_limits(before, flops, config)))
        timed = {model: _measure_model(model, found, config, progress) for model in MODELS}
        peaks = limits.better(before, alone.submit(limits.measure_peaks, config.device, config.threads).result())
    return {
        "encoder": found.encoder,
        "weights": config.weights,
        "device": config.device,
        "threads": config.threads,
        "times": "from a NumPy array in main memory to one, after two calls that are not counted",
        "limits": {"peaks": peaks, "peaks_before": before},
        "skipped": [vars(skipped) for skipped in found.skipped],
        "graphs": list(found.graphs),
        **{model: [_rated(row, flops[model, row["frames"]], peaks) for row in rows] for model, rows in timed.items()},
    }


def _limits(peaks: Peaks, flops: Mapping[tuple[str, int], int], config: StagesConfig) -> Iterator[str]:
    """Say what the machine allows at most."""
    yield from (f"{name}: {peak['gflops']:.0f} GFLOP/s ({peak['with']})" for name, peak in peaks.items())
    size = max(config.batches)
    for model in MODELS:
        per_frame = flops[model, size] / size
        best = ", ".join(f"{1e9 * float(peak['gflops']) / per_frame:.0f} in {name}" for name, peak in peaks.items())
        yield f"{model}: {per_frame / 1e9:.3f} GFLOP a frame at {size} frames; at most frames/s: {best}"


def _flops(found: Found, model: str, frames: int) -> int:
    if model == CLIP_ENCODER.name:  # frames do not meet each other: the work is proportional
        return frames * count_flops(found.flops_graphs[model], {FRAMES.name: (1, *FRAMES.shape)})
    return count_flops(found.flops_graphs[model], {FEATURES.name: (1, frames, FEATURE_WIDTH)})


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


class _Runner:
    """An engine in its process, as the parent sees it."""

    def __init__(self, spec: EngineSpec, process: ProcessPoolExecutor) -> None:
        self.spec = spec
        self._process = process
        self.open_s = process.submit(open_here, spec).result()

    def do(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a method of OpenEngine."""
        return self._process.submit(do_here, method, *arguments).result()


def _measure_model(
    model: str, found: Found, config: StagesConfig, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runners = []
        for spec in (spec for spec in found.engines if spec.model == model):
            progress(f"{model}: opening {spec.name}")
            runners.append(_Runner(spec, stack.enter_context(_process())))
        for frames in config.batches:
            rows += _measure_size(runners, frames, config.seconds)
            progress("\n".join(line(model, row) for row in rows if row["frames"] == frames))
    return rows


def _measure_size(runners: Sequence[_Runner], frames: int, seconds: float) -> list[dict[str, Any]]:
    """Time all engines at one size in turns; return a row for each, left-out ones included."""
    taking = [runner for runner in runners if runner.spec.obstacle(frames) is None]
    first = {runner.spec.name: runner.do(OpenEngine.prepare, frames) for runner in taking}
    rounds = _rounds(max(one["second_s"] for one in first.values()), seconds)
    slices: dict[str, list[list[float]]] = {runner.spec.name: [] for runner in taking}
    for _ in range(rounds):
        for runner in taking:
            call_s = first[runner.spec.name]["second_s"]
            calls = max(1, min(MOST_CALLS // rounds, int(seconds / rounds / call_s)))
            slices[runner.spec.name].append(runner.do(OpenEngine.time_calls, calls, call_s < REWARM_BELOW_S))
    first_ms = {name: round(1000 * one["first_s"], 1) for name, one in first.items()}
    rows = [{**_row(runner, frames, slices), "first_call_ms": first_ms[runner.spec.name]} for runner in taking]
    left_out = [
        {"engine": runner.spec.name, "frames": frames, "left_out": runner.spec.obstacle(frames)}
        for runner in runners
        if runner not in taking
    ]
    return rows + left_out


def _rounds(slowest_s: float, seconds: float) -> int:
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / slowest_s)))


def _row(runner: _Runner, frames: int, slices: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    mine = slices[runner.spec.name]
    times_s = [time for part in mine for time in part]
    row = {
        "engine": runner.spec.name,
        "precision": runner.spec.precision,
        "product_type": runner.spec.product_type,
        "frames": frames,
        "rounds": len(mine),
        "calls": len(times_s),
        "frames_per_second": round(frames / median(times_s), 2),
        "latency": summary_ms(times_s),
        "open_s": round(runner.open_s, 2),
        **runner.do(OpenEngine.memory_mib),
        "samples_ms": [[round(1000 * time, 4) for time in part] for part in mine],
    }
    eager = slices.get(f"{EAGER}-{FP32}")
    if eager is not None:
        # One median for each round: rounds are what all engines went through together.
        sides = ([median(part) for part in eager], [median(part) for part in mine])
        row["times_as_fast_as_eager"] = ratio_interval(*sides, in_turns=True).rounded()
    return row


def _rated(row: dict[str, Any], flops: int, peaks: Peaks) -> dict[str, Any]:
    """Add the arithmetic of a row and the part of the machine's peak, of the same type, that it reaches."""
    if "left_out" in row:
        return row
    rate = flops / (row["latency"]["p50_ms"] / 1000) / 1e9
    kind = row["product_type"]
    peak = float(peaks[kind if kind in peaks else FP16]["gflops"])
    return {**row, "gflop": round(flops / 1e9, 4), "gflops": round(rate, 1), "of_peak": float(f"{rate / peak:.3g}")}


def line(model: str, row: Mapping[str, Any]) -> str:
    """Return what one engine did at one size as a line for people."""
    if "left_out" in row:
        return f"{model} x{row['frames']} {row['engine']}: left out: {row['left_out']}"
    latency = row["latency"]
    faster = f", {row['times_as_fast_as_eager']['value']:.2f}x eager" if "times_as_fast_as_eager" in row else ""
    rate = f", {row['gflops']:.1f} GFLOP/s, {row['of_peak']:.2f} of the peak" if "gflops" in row else ""
    return (
        f"{model} x{row['frames']} {row['engine']}: {row['frames_per_second']:.1f} frames/s, median "
        f"{latency['p50_ms']:.2f} ms, p99 {latency['p99_ms']:.2f} ms, {row['memory_mib']:.0f} MiB{rate}{faster}"
    )
