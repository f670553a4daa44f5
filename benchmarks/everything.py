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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from affserve.benchmarks.everything_parts import REPORT, URL, Part, cpu_parts, gpu_parts
from affserve.benchmarks.gpu_scaling import environment_of, gpu_config_name
from affserve.benchmarks.random_models import CACHE
from affserve.export.machine import find_gpus
from affserve.export.triton import ServerConfig, TritonServer
from affserve.train.checkout import source_commit
from affserve.train.errors import AffserveError, DataError

CPU, GPU = "cpu", "gpu"
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
            print(" ".join([*(f"{name}={value}" for name, value in part.environment.items()), *_shown(part, options)]))
        return True
    done = {} if options.fresh else _read_state(options)
    failed: list[str] = []
    for number, part in enumerate(parts, start=1):
        key = {"command": _shown(part, options), "commit": source_commit()}
        if done.get(part.name) == key and part.name != REPORT:
            tell(f"[{number}/{len(parts)}] {part.name}: done before")
            continue
        tell(f"[{number}/{len(parts)}] {part.name}: {' '.join(_shown(part, options))}")
        started = time.monotonic()
        if _run(part, options, tell):
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
    return [part for part in parts if not options.only or part.name in options.only]


def _shown(part: Part, options: AllOptions) -> list[str]:
    return ["affserve", *part.arguments, *_folder(part, options)]


def _folder(part: Part, options: AllOptions) -> list[str]:
    if options.folder is None:
        return []
    if part.takes_folder:
        return ["--folder", str(options.folder)]
    return [str(options.folder)] if part.name == REPORT else []


def _run(part: Part, options: AllOptions, tell: Tell) -> bool:
    """Run one part, its progress on our stderr; what it prints is in its JSON anyway."""
    command = [sys.executable, "-m", "affserve.client", *part.arguments, *_folder(part, options)]
    environment = {**os.environ, **part.environment}
    try:
        with _server(part) as url:
            command = [url if argument == URL else argument for argument in command]
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    except AffserveError as error:
        tell(f"error: {error}")
        return False
    return done.returncode == 0


@contextmanager
def _server(part: Part) -> Iterator[str]:
    """Run the server that a part asks for; yield its address, or nothing for a part without one."""
    if part.serves is None:
        yield ""
        return
    config = ServerConfig(repository=part.serves, config_name=gpu_config_name(part.serves))
    with environment_of(part.environment):
        server = TritonServer(config)
        server.start()
    try:
        yield server.grpc_url
    finally:
        server.stop()


def _read_state(options: AllOptions) -> dict[str, object]:
    try:
        state: dict[str, object] = json.loads(options.state_file.read_text())
    except (OSError, ValueError):
        return {}
    return state


def _write_state(options: AllOptions, done: Mapping[str, object]) -> None:
    options.state_file.parent.mkdir(parents=True, exist_ok=True)
    options.state_file.write_text(json.dumps(done, indent=2) + "\n")
