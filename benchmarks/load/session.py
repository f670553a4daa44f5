"""All points of one `affserve bench load`: every model, size and transport in closed and open loops, and the search.

Points that are to be compared (transports of the same model and size) follow each other, so that a slow change of the
machine reaches them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from affserve.benchmarks.load.loops import Load
from affserve.benchmarks.load.request import Target
from affserve.benchmarks.load.slo import Promise, Search, highest_rate
from affserve.benchmarks.load.workers import Generators
from affserve.benchmarks.measuring.samples import counted
from affserve.client.client import AffectClient
from affserve.train.errors import DataError

SLO_REQUESTS = 400  # that a p99 needs at least: four of them lie above it
LONGEST_S = 60.0  # of one point of a search, however slow the service
CONFIRMING = 2.0  # times as long as the points of the search


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What to measure."""

    models: tuple[str, ...]
    frames: tuple[int, ...]  # of one request
    transports: tuple[str, ...]
    concurrencies: tuple[int, ...] = ()  # closed loops
    rates_per_s: tuple[float, ...] = ()  # open loops, requests
    promise: Promise | None = None  # search for the highest rate that keeps it
    seconds: float = 5.0  # of each point
    processes: int = 1  # of the load generator
    timeout_s: float = 30.0  # of one request

    def __post_init__(self) -> None:
        if not (self.concurrencies or self.rates_per_s or self.promise):
            raise DataError("nothing to measure: give a concurrency, a rate or a service level objective")
        if self.processes < 1 or self.seconds <= 0:
            raise DataError(f"processes is {self.processes}, seconds {self.seconds:g}; expected at least 1, above 0")

    def targets(self, url: str) -> Iterator[Target]:
        """Yield what is asked, transports of the same request next to each other."""
        for model in self.models:
            for frames in self.frames:
                for transport in self.transports:
                    yield Target(url=url, model=model, frames=frames, transport=transport, timeout_s=self.timeout_s)

    def loads(self) -> Iterator[Load]:
        """Yield closed loops, then open ones."""
        yield from (Load(duration_s=self.seconds, concurrency=number) for number in self.concurrencies)
        yield from (Load(duration_s=self.seconds, rate_per_s=rate) for rate in self.rates_per_s)


def measure_load(url: str, config: LoadConfig, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return every point, and what the search found, as plain values for JSON."""
    targets = list(config.targets(url))  # bad ones are told before anything starts
    with AffectClient(url.split(",")[0]) as client:
        engine = client.engine()
    points, searches = [], []
    with Generators(config.processes) as generators:
        for target in targets:
            for load in config.loads():
                points.append(generators.measure(target, load))
                progress(line(points[-1]))
            if config.promise is not None:
                searches.append(search(generators, target, config.promise, config.seconds, progress))
    return {"engine": engine, "servers": len(url.split(",")), "points": points, "slo": searches}


def search(
    generators: Generators,
    target: Target,
    promise: Promise,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return the highest open-loop rate at which `target` keeps `promise`, and every rate that was tried."""
    alone = generators.measure(target, Load(duration_s=seconds, concurrency=1))
    progress(line(alone))
    points: list[dict[str, Any]] = []

    def kept(rate: float, confirming: bool) -> bool:
        wanted_s = max(seconds, SLO_REQUESTS / rate) * (CONFIRMING if confirming else 1)
        load = Load(duration_s=min(wanted_s, LONGEST_S), rate_per_s=rate, seed=len(points))
        points.append(generators.measure(target, load))
        progress(line(points[-1]))
        return promise.kept(points[-1])

    # A lone caller that gets no answer has told all there is to know.
    answers = alone["requests_per_second"] > 0
    found = highest_rate(kept, first=alone["requests_per_second"] / 2) if answers else Search(rate=0, trials=())
    return {
        "model": target.model,
        "frames": target.frames,
        "transport": target.transport,
        "slo": str(promise),
        "requests_per_second": round(found.rate, 3),
        "frames_per_second": round(found.rate * target.frames, 1),
        "trials": [asdict(trial) for trial in found.trials],
        "alone": alone,
        "points": points,
    }


def line(point: dict[str, Any]) -> str:
    """Return a point as one line for people."""
    load = (
        counted(point["concurrency"], "caller")
        if point["loop"] == "closed"
        else f"{point['rate_per_second']:.4g}/s open"
    )
    what = f"{point['model']} x{point['frames']} {point['transport']}, {load}"
    latency = point["latency"]
    times = "no answer" if latency is None else f"p50 {latency['p50_ms']:.1f} p99 {latency['p99_ms']:.1f} ms"
    said = point.get("error_examples", {})
    errors = ", ".join(f"{count} {kind} ({said.get(kind, '')[:80]})" for kind, count in point["errors"].items())
    limiting = "; the load generator is the limit: give it more --processes" if point["generator"]["limiting"] else ""
    rate = f"{point['requests_per_second']:.1f} requests/s, {point['frames_per_second']:.0f} frames/s"
    return f"{what}: {rate}, {times}{'; errors: ' + errors if errors else ''}{limiting}"
