"""What a user would run instead, on the same machine, the same crops and in the same run, in turns.

Every system first finds its best settings on a short window, then all do the same job round after round. The plain
script's answers are the reference: a system that answers otherwise is not compared but reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.gpus import CUDA, gpu_sets, use_of, uses
from affserve.benchmarks.measuring.random_models import (
    CACHE,
    Checkpoints,
    Progress,
    generated_faces,
    random_checkpoints,
    repository_of,
)
from affserve.benchmarks.measuring.samples import ratio_interval
from affserve.benchmarks.peers import systems
from affserve.benchmarks.peers.answers import compare_answers
from affserve.benchmarks.peers.environment import SITE, PeerSettings, install_peers
from affserve.benchmarks.peers.systems import INFORMED, LITSERVE, NAIVE, OURS, SCRIPT, Frames, System
from affserve.export import engine_sets
from affserve.export.contract import CHUNK_FRAMES, CPU
from affserve.export.engine_sets import OPENVINO
from affserve.export.machine.cores import usable_cores
from affserve.export.precision.tolerances import Precision
from affserve.export.server.config import ServerConfig
from affserve.train.errors import ServerError
from affserve.train.windows import WINDOW_FRAMES, Outputs

BARS = (  # ours, the peer, times as fast at least
    (Precision.INT8, NAIVE, 3.0),
    (Precision.INT8, LITSERVE, 2.5),
    (Precision.FP32, NAIVE, 1.0),
    (Precision.FP32, LITSERVE, 1.0),
    *((Precision.INT8, name, 1.0) for name in INFORMED.values()),
)
ALONE = f"{OURS} INT8, ONNX Runtime alone"  # the set cpu without the engine that export found faster


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """What is compared, and how long."""

    architecture: str = "ViT-B-32"  # open_clip's name; random weights unless checkpoints are given
    checkpoints: Checkpoints | None = None
    frames: int = WINDOW_FRAMES  # crops of one job
    trial_frames: int = 4 * CHUNK_FRAMES  # crops of the job by which each system's settings are chosen
    rounds: int = 3
    threads: int = field(default_factory=usable_cores)  # of a system in all
    device: str = CPU  # or "cuda"
    engine: str | None = None  # of our server; None: the fastest that the device has
    transport: str = "shm"  # of our client
    quick: bool = False  # try only the first settings of each system, two chunks in flight
    cache: Path = CACHE
    site: Path = SITE

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= WINDOW_FRAMES or self.trial_frames < 1 or self.rounds < 1:
            raise ServerError(
                f"frames is {self.frames}, trial_frames {self.trial_frames}, rounds {self.rounds}; expected 1 to "
                f"{WINDOW_FRAMES}, at least 1 and at least 1"
            )

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What of ours is compared on this device."""
        return (Precision.FP16,) if self.device.startswith(CUDA) else (Precision.INT8, Precision.FP32)


def measure_peers(options: PeerOptions, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Return speeds, answers and ratios of all systems."""
    versions = install_peers(options.site, progress)
    checkpoints = options.checkpoints or random_checkpoints(options.architecture, options.cache)
    repositories = {
        one: repository_of(checkpoints, one, options.cache, use=use_of(options.device), progress=progress)
        for one in options.precisions
    }
    frames = generated_faces(options.cache)[: options.frames]
    with ExitStack() as stack:
        systems = {}
        for name, candidates in _candidates(options, checkpoints, repositories).items():
            best = at_its_best(
                name, candidates, frames[: options.trial_frames], progress, (2,) if options.quick else None
            )
            systems[name] = stack.enter_context(best)
        measured = _compare(list(systems.values()), frames, options, progress)
    return {
        "architecture": options.architecture,
        "weights": checkpoints.weights,
        "device": options.device,
        "threads": options.threads,
        "frames": options.frames,
        "frames_per_request": CHUNK_FRAMES,
        "rounds": options.rounds,
        "peer_packages": versions,
        **measured,
    }


Candidate = AbstractContextManager[System]


def _candidates(
    options: PeerOptions, checkpoints: Checkpoints, repositories: Mapping[Precision, Path]
) -> dict[str, list[Candidate]]:
    """Return, for each system, the settings worth trying; none is started yet."""

    def settings(threads: int) -> PeerSettings:
        return PeerSettings(checkpoints=checkpoints, threads=threads, device=options.device, site=options.site)

    cores, whole = options.threads, settings(options.threads)
    naive, lit = systems.naive_service, systems.litserve
    candidates: dict[str, list[Candidate]] = {
        SCRIPT: [systems.plain_script(whole)],
        NAIVE: [naive(whole, 1)],
        LITSERVE: [lit(whole, 1, 1), lit(whole, 1, 2)],
    }
    if options.device == CPU:
        for engine, name in INFORMED.items():
            candidates[name] = [naive(replace(whole, engine=engine), 1)]
            if cores > 1:
                candidates[name].append(naive(replace(settings(1), engine=engine), cores))
        if cores > 1:
            candidates[NAIVE].append(naive(settings(1), cores))
            candidates[LITSERVE].append(lit(settings(1), cores, 1))
    for name, configs in _our_systems(repositories, options).items():
        candidates[name] = [systems.affserve_served(name, config, options.transport) for config in configs]
    return {name: tried[:1] if options.quick else tried for name, tried in candidates.items()}


def _our_systems(repositories: Mapping[Precision, Path], options: PeerOptions) -> dict[str, list[ServerConfig]]:
    """Return what of ours is compared: each precision, and on a GPU the other engine sets at hand."""
    ours = {_ours(precision): _our_configs(root, options) for precision, root in repositories.items()}
    if (int8 := repositories.get(Precision.INT8)) is not None and uses(int8, OPENVINO):
        ours[ALONE] = [replace(config, without=(OPENVINO,)) for config in _our_configs(int8, options)]
    if options.device != CPU and options.engine is None:
        for precision, root in repositories.items():
            (fastest,) = ours[_ours(precision)]
            others = gpu_sets(root)[1:]
            ours |= {f"{_ours(precision)}, set {name}": [replace(fastest, engine=name)] for name in others}
    return ours


def _our_configs(repository: Path, options: PeerOptions) -> list[ServerConfig]:
    """Return the same choices as the peers have: all threads in one instance, or one thread in each of several."""
    cores = options.threads
    engine = options.engine or (engine_sets.CPU if options.device == CPU else gpu_sets(repository)[0])
    shared = ServerConfig(repository=repository, engine=engine, drain_timeout_s=0.0)
    if options.device != CPU:
        return [shared]
    one = replace(shared, threads=cores, instances=1)
    return [one, replace(shared, threads=1, instances=cores)] if cores > 1 else [one]


def _ours(precision: Precision) -> str:
    return f"{OURS} {precision.value.upper()}"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A system at its best."""

    system: System
    in_flight: int  # chunks
    trials: list[dict[str, Any]]  # of every setting


@contextmanager
def at_its_best(
    name: str,
    candidates: Sequence[Candidate],
    frames: Frames,
    progress: Progress,
    in_flight: tuple[int, ...] | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Chosen]:
    """Try the settings of one system and keep the fastest one running.

    in_flight: chunks; None: what each system finds worth trying.
    """
    trials: list[dict[str, Any]] = []
    best: tuple[float, System, int] | None = None
    with ExitStack() as fastest:
        for candidate in candidates:
            with ExitStack() as running:
                system = running.enter_context(candidate)
                progress(f"{name}: {system.settings}")
                tried = list(_try(system, frames, in_flight, clock))
                trials += [{"settings": system.settings, "in_flight": n, "frames_per_s": rate} for n, rate in tried]
                most, rate = max(tried, key=lambda one: one[1])
                if best is None or rate > best[0]:
                    best = (rate, system, most)
                    fastest.close()
                    fastest.push(running.pop_all())
        if best is None:
            raise ServerError(f"{name} has no settings to try; expected at least one")
        yield Chosen(system=best[1], in_flight=best[2], trials=trials)


def _try(
    system: System, frames: Frames, wanted: tuple[int, ...] | None, clock: Callable[[], float]
) -> Iterator[tuple[int, float]]:
    """Yield the rate at each number of chunks in flight, after a run that counts for nothing."""
    system.answer(frames[:CHUNK_FRAMES], 1)
    for in_flight in wanted or system.in_flight:
        started_s = clock()
        system.answer(frames, in_flight)
        yield in_flight, round(len(frames) / (clock() - started_s), 2)


def _compare(systems: Sequence[Chosen], frames: Frames, options: PeerOptions, progress: Progress) -> dict[str, Any]:
    times_s: dict[str, list[float]] = {one.system.name: [] for one in systems}
    answers: dict[str, Outputs] = {}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for one in systems:
            started = time.perf_counter()
            answers[one.system.name] = one.system.answer(frames, one.in_flight)
            times_s[one.system.name].append(time.perf_counter() - started)
    told = {one.system.name: _told(one, times_s, answers, len(frames)) for one in systems}
    ratios = {
        f"{ours} / {other}": ratio_interval(times_s[other], times_s[ours], in_turns=True).rounded()
        for ours in map(_ours, options.precisions)
        for other in times_s
        if not other.startswith(OURS) or other == ALONE
    }
    return {"systems": told, "times_as_fast": ratios, "bars": _bars(options, ratios, told)}


def _told(
    one: Chosen, times_s: Mapping[str, list[float]], answers: Mapping[str, Outputs], count: int
) -> dict[str, Any]:
    name = one.system.name
    return {
        "settings": one.system.settings,
        "in_flight": one.in_flight,
        "frames_per_s": round(count / statistics.median(times_s[name]), 2),
        "times_s": [round(value, 4) for value in times_s[name]],
        "answers": compare_answers(answers[SCRIPT], answers[name], _precision(name)),
        "trials": one.trials,
    }


def _precision(name: str) -> Precision:
    """Return the precision by whose tolerance a system's answers are judged; the peers' is PyTorch's own."""
    return next((one for one in Precision if name.split(",")[0] == _ours(one)), Precision.FP32)


def _bars(
    options: PeerOptions, ratios: Mapping[str, Mapping[str, float]], told: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return every bar that these systems can meet: fast enough and equal in what is answered."""
    bars = []
    for precision, peer, least in BARS:
        if precision in options.precisions and peer in told:
            figure = ratios[f"{_ours(precision)} / {peer}"]["value"]
            equal = told[_ours(precision)]["answers"]["equal"] and told[peer]["answers"]["equal"]
            what = f"{_ours(precision)} served, times as fast as the {peer}"
            bars.append({"what": what, "figure": figure, "at_least": least, "met": bool(equal and figure >= least)})
    return bars
