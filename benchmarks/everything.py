"""`affserve bench all`: every measurement of a machine, one command after the other, each in a process of its own.

What was measured is kept at once and not measured again, unless the commit or the command has changed; a part that
fails is told at the end and does not stop the others. Nothing here knows what machine it runs on but its GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from affserve.benchmarks.measuring.command_line import VIT
from affserve.benchmarks.measuring.gpus import VISIBLE, gpu_sets, machine_sets, server_on
from affserve.benchmarks.measuring.random_models import CACHE, random_repository
from affserve.export.contract import CPU, GPU
from affserve.export.machine.gpus import find_gpus
from affserve.export.precision.tolerances import Precision
from affserve.train.errors import AffserveError, DataError
from affserve.train.provenance import source_commit

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AllOptions:
    """What is measured."""

    target: str = CPU
    quick: bool = False  # every part, at a small size
    fresh: bool = False  # measure again what is there
    only: tuple[str, ...] = ()  # parts; none: all
    video: Path | None = None  # of the whole job; None: a drawn one
    face_model: Path | None = None
    folder: Path | None = None  # of results
    dry_run: bool = False  # only print the commands
    cache: Path = field(default=CACHE)

    def __post_init__(self) -> None:
        if self.target not in (CPU, GPU):
            raise DataError(f"target is {self.target!r}, expected {CPU} or {GPU}")

    @property
    def state_file(self) -> Path:
        """Where it is noted what has been done."""
        return self.cache / f"all-{self.target}{'-quick' if self.quick else ''}.json"


def run_all(options: AllOptions, tell: Tell) -> bool:
    """Run every part that is not done yet, then the report; return whether all of them have succeeded."""
    parts = _chosen(options)
    if options.dry_run:
        for part in parts:
            environment = (f"{name}={value}" for name, value in part.environment.items())
            print(" ".join([*environment, "affserve", *part.arguments]))
        return True
    done = {} if options.fresh else _read_state(options)
    failed: list[str] = []
    for number, part in enumerate(parts, start=1):
        command = ["affserve", *part.arguments]
        key = {"command": command, "commit": source_commit()}
        if done.get(part.name) == key and part.name != REPORT:
            tell(f"[{number}/{len(parts)}] {part.name}: done before")
            continue
        tell(f"[{number}/{len(parts)}] {part.name}: {' '.join(command)}")
        started = time.monotonic()
        if _run(part, tell):
            done[part.name] = key
            _write_state(options, done)
            tell(f"[{number}/{len(parts)}] {part.name}: {time.monotonic() - started:.0f} s")
        else:
            failed.append(part.name)
            tell(f"[{number}/{len(parts)}] {part.name}: FAILED, the others go on")
    if failed:
        tell(f"failed: {', '.join(failed)}; the same command measures only these again")
    return not failed


def _chosen(options: AllOptions) -> list[Part]:
    if options.target == GPU:
        gpus = find_gpus()
        if not gpus and not options.dry_run:
            raise DataError(
                "no NVIDIA GPU was found (nvidia-smi lists none): expected one or more for --target gpu; see "
                "affserve doctor"
            )
        parts = gpu_parts(options.quick, [gpu.index for gpu in gpus] or [0], options.video, options.face_model)
    else:
        parts = cpu_parts(options.quick, options.video, options.face_model)
    names = [part.name for part in parts]
    if unknown := set(options.only) - set(names):
        raise DataError(f"there is no part {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    chosen = [part for part in parts if not options.only or part.name in options.only]
    return [part.into(options.folder) if options.folder else part for part in chosen]


def _run(part: Part, tell: Tell) -> bool:
    """Run one part, its progress on our stderr; what it prints is in its JSON anyway."""
    environment = {**os.environ, **part.environment}
    try:
        engine = part.engine or (gpu_sets(part.serves)[0] if part.serves else "")
        with server_on(part.environment, part.serves, engine) if part.serves else nullcontext("") as url:
            arguments = [url if argument == URL else argument for argument in part.arguments]
            command = [sys.executable, "-m", "affserve.client", *arguments]
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    except AffserveError as error:
        tell(f"error: {error}")
        return False
    return done.returncode == 0


def _read_state(options: AllOptions) -> dict[str, object]:
    try:
        state: dict[str, object] = json.loads(options.state_file.read_text())
    except (OSError, ValueError):
        return {}
    return state


def _write_state(options: AllOptions, done: Mapping[str, object]) -> None:
    options.state_file.parent.mkdir(parents=True, exist_ok=True)
    options.state_file.write_text(json.dumps(done, indent=2) + "\n")


REPORT = "report"
URL = "{url}"  # stands for the address of the part's server
PCI_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # so that numbers are nvidia-smi's


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement."""

    name: str
    arguments: tuple[str, ...]  # after `affserve`
    environment: Mapping[str, str] = field(default_factory=dict)
    serves: Path | None = None  # repository of a server that runs meanwhile; its address replaces URL
    engine: str = ""  # its engine set; "": the fastest at hand
    before_folder: tuple[str, ...] | None = ("--folder",)  # arguments before a folder of results; None: it takes none

    def into(self, folder: Path) -> Part:
        """Return the part with its results in a folder."""
        if self.before_folder is None:
            return self
        return replace(self, arguments=(*self.arguments, *self.before_folder, str(folder)))


# What a part is told of its size: in full, and quick.
CPU_SIZES = {
    "stages": ("", "--quick"),
    "load": (
        "--frames 1,32 --transport raw,shm,jpeg --concurrency 1,2,4 --seconds 8",
        "--frames 32 --concurrency 1,2 --seconds 2",
    ),
    "load-open": (
        "--frames 1 --transport raw,shm,jpeg --rate 10,20,40 --slo p99=100ms",
        "--frames 1 --rate 10 --slo p99=1s --seconds 1",
    ),
    "peers": ("", "--quick --frames 64 --trial-frames 32 --rounds 1"),
    "e2e": ("--frames 600 --rounds 5", "--frames 150 --rounds 1"),
    "cameras": ("", "--delay 5000 --seconds 3"),
    "scale-length": ("", "--length 100 --length 400 --repeats 2"),
    **dict.fromkeys(("scale-clients", "scale-faces"), ("", "--rounds 1 --client-frames 128")),
}
GPU_SIZES = {
    **CPU_SIZES,
    "load": (
        "--frames 1,32,128 --transport raw,shm,jpeg --concurrency 1,2,4,8,16 --seconds 8",
        "--frames 32 --concurrency 1,4 --seconds 2",
    ),
    "load-open": tuple(f"--frames 1,32 --rate 10,40 --slo p99=100ms --seconds {seconds}" for seconds in (8, 2)),
    "peers": ("--rounds 7", "--quick --frames 128 --trial-frames 128 --rounds 2"),
    "gpus": ("", "--frames 640 --rounds 2"),
}


def cpu_parts(quick: bool, video: Path | None, face_model: Path | None) -> list[Part]:
    """Return what is measured without a GPU."""
    served = ("--repository", str(random_repository(VIT, Precision.INT8)))
    size = {name: texts[quick].split() for name, texts in CPU_SIZES.items()}
    films = _films(size, video, face_model)
    return [
        _models("--precision", "int8", "--precision", "fp32"),
        _part("startup", "startup"),
        _part("stages", "stages", "--architecture", VIT, *size["stages"]),
        _part("load", "load", *served, *size["load"], "--name", f"load-{VIT}"),
        _part("load-open", "load", *served, *size["load-open"], "--name", f"load-open-{VIT}"),
        _part("peers", "peers", "--architecture", VIT, *size["peers"]),
        *(_part(name, *command, *served) for name, command in films.items()),
        *(
            _part(name, "scale", "--part", name.removeprefix("scale-"), *size[name])
            for name in size
            if name.startswith("scale-")
        ),
        _report(),
    ]


def gpu_parts(quick: bool, gpus: Sequence[int], video: Path | None, face_model: Path | None) -> list[Part]:
    """Return what is measured with GPUs: each by itself, then all of them."""
    fp16 = random_repository(VIT, Precision.FP16, use=GPU)
    size = {name: texts[quick].split() for name, texts in GPU_SIZES.items()}
    films = _films(size, video, face_model)
    parts = [_models("--precision", "fp16", "--use", "gpu", "--build-engines")]
    for gpu in gpus:
        alone = {**PCI_ORDER, VISIBLE: str(gpu)}
        first = gpu == gpus[0]  # the others of a machine are of its kind as a rule; their load tells if not
        if first:
            stages = ("--architecture", VIT, "--device", "cuda", *size["stages"])
            parts.append(_part("stages", "stages", *stages, environment=alone))
        loaded = ("load", URL, *size["load"], "--name", f"load-{VIT}-gpu{gpu}")
        parts.append(_part(f"load-gpu{gpu}", *loaded, environment=alone, serves=fp16))
        if first:
            for name in machine_sets()[1:]:
                other = ("load", URL, *size["load"], "--name", f"load-{VIT}-gpu{gpu}-{name}")
                parts.append(_part(f"load-gpu{gpu}-{name}", *other, environment=alone, serves=fp16, engine=name))
            opened = ("load", URL, *size["load-open"], "--name", f"load-open-{VIT}-gpu{gpu}")
            parts.append(_part("load-open", *opened, environment=alone, serves=fp16))
            parts.append(_part("peers", "peers", "--device", "cuda", *size["peers"], environment=alone))
            for name, command in films.items():
                parts.append(_part(name, *command, "--url", URL, environment=alone, serves=fp16))
    every = [argument for gpu in gpus for argument in ("--gpu", str(gpu))]
    parts.append(_part("gpus", "gpus", str(fp16), *every, *size["gpus"], environment=PCI_ORDER))
    return [*parts, _report()]


def _films(
    size: Mapping[str, Sequence[str]], video: Path | None, face_model: Path | None
) -> dict[str, tuple[str, ...]]:
    """Return the commands that watch films, without the server that they ask."""
    film = (str(video),) if video is not None else ()
    faces = ("--face-model", str(face_model)) if face_model is not None else ()
    return {"e2e": ("e2e", *film, *size["e2e"], *faces), "cameras": ("cameras", *size["cameras"], *faces)}


def _part(
    name: str, *command: str, environment: Mapping[str, str] | None = None, serves: Path | None = None, engine: str = ""
) -> Part:
    return Part(name=name, arguments=("bench", *command), environment=environment or {}, serves=serves, engine=engine)


def _models(*options: str) -> Part:
    return Part(name="models", arguments=("bench", "models", "--architecture", VIT, *options), before_folder=None)


def _report() -> Part:
    return Part(name=REPORT, arguments=("bench", REPORT), before_folder=())
