"""The parts of `affserve bench all`: which commands, at which sizes, on which GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from affserve.benchmarks.random_models import random_repository
from affserve.export.precision import Precision

ARCHITECTURE = "ViT-B-32"
REPORT = "report"
URL = "{url}"  # stands for the address of the part's server
VISIBLE = "CUDA_VISIBLE_DEVICES"
PCI_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # so that numbers are nvidia-smi's


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement."""

    name: str
    arguments: tuple[str, ...]  # after `affserve`
    environment: Mapping[str, str] = field(default_factory=dict)
    serves: Path | None = None  # repository of a server that runs meanwhile; its address replaces URL
    takes_folder: bool = True  # whether the command has the option --folder


def cpu_parts(quick: bool, video: Path | None, face_model: Path | None) -> list[Part]:
    """Return what is measured without a GPU."""
    int8 = str(random_repository(ARCHITECTURE, Precision.INT8))
    models = ("--precision", "int8", "--precision", "fp32")
    load: tuple[str, ...] = ("--frames", "32", "--concurrency", "1,2", "--seconds", "2")
    arrivals: tuple[str, ...] = ("--frames", "1", "--rate", "10", "--slo", "p99=1s", "--seconds", "1")
    if not quick:
        load = ("--frames", "1,32", "--transport", "raw,shm,jpeg", "--concurrency", "1,2,4", "--seconds", "8")
        arrivals = ("--frames", "1", "--transport", "raw,shm,jpeg", "--rate", "10,20,40", "--slo", "p99=100ms")
    peers = ("--quick", "--frames", "64", "--trial-frames", "32", "--rounds", "1")
    return [
        _models(*models),
        _part("startup", "startup"),
        _part("stages", "stages", "--architecture", ARCHITECTURE, *(("--quick",) if quick else ())),
        _part("load", "load", "--repository", int8, *load, "--name", f"load-{ARCHITECTURE}"),
        _part("load-open", "load", "--repository", int8, *arrivals, "--name", f"load-open-{ARCHITECTURE}"),
        _part("perf-analyzer", "perf-analyzer", "--repository", int8, *(_few_rounds(quick))),
        _part("peers", "peers", "--architecture", ARCHITECTURE, *(peers if quick else ())),
        _part("windows", "windows", *(("--frames", "310", "--rounds", "1") if quick else ())),
        _part("e2e", "e2e", *_job(quick, video, face_model), "--repository", int8),
        _part("cameras", "cameras", *_cameras(quick, face_model), "--repository", int8),
        *_scale(quick),
        _report(),
    ]


def gpu_parts(quick: bool, gpus: Sequence[int], video: Path | None, face_model: Path | None) -> list[Part]:
    """Return what is measured with GPUs: each by itself, then all of them."""
    fp16 = random_repository(ARCHITECTURE, Precision.FP16, use="gpu")
    load: tuple[str, ...] = ("--frames", "32", "--concurrency", "1,4", "--seconds", "2")
    if not quick:
        load = ("--frames", "1,32,128", "--transport", "raw,shm,jpeg", "--concurrency", "1,2,4,8,16", "--seconds", "8")
    arrivals = ("--frames", "1,32", "--rate", "10,40", "--slo", "p99=100ms", "--seconds", "2" if quick else "8")
    peers = ("--quick", "--frames", "128", "--trial-frames", "128", "--rounds", "2") if quick else ("--rounds", "7")
    parts = [_models("--precision", "fp16", "--use", "gpu", "--build-engines")]
    for gpu in gpus:
        alone = {**PCI_ORDER, VISIBLE: str(gpu)}
        stages = ("--architecture", ARCHITECTURE, "--device", "cuda", *(("--quick",) if quick else ()))
        loaded = ("load", URL, *load, "--name", f"load-{ARCHITECTURE}-gpu{gpu}")
        if gpu == gpus[0]:  # the others of a machine are of its kind as a rule; their load tells if not
            parts.append(_part("stages", "stages", *stages, environment=alone))
        parts.append(_part(f"load-gpu{gpu}", *loaded, environment=alone, serves=fp16))
        if gpu == gpus[0]:
            opened = ("load", URL, *arrivals, "--name", f"load-open-{ARCHITECTURE}-gpu{gpu}")
            seen = ("cameras", *_cameras(quick, face_model), "--url", URL)
            parts.append(_part("load-open", *opened, environment=alone, serves=fp16))
            parts.append(_part("cameras", *seen, environment=alone, serves=fp16))
            job = ("e2e", *_job(quick, video, face_model), "--url", URL)
            parts.append(_part("peers", "peers", "--device", "cuda", *peers, environment=alone))
            parts.append(_part("e2e", *job, environment=alone, serves=fp16))
    every = [argument for gpu in gpus for argument in ("--gpu", str(gpu))]
    sizes = ("--frames", "640", "--rounds", "2") if quick else ()
    parts.append(_part("gpus", "gpus", str(fp16), *every, *sizes, environment=PCI_ORDER))
    return [*parts, _report()]


def _part(name: str, *command: str, environment: Mapping[str, str] | None = None, serves: Path | None = None) -> Part:
    return Part(name=name, arguments=("bench", *command), environment=environment or {}, serves=serves)


def _models(*options: str) -> Part:
    return Part(
        name="models", arguments=("bench", "models", "--architecture", ARCHITECTURE, *options), takes_folder=False
    )


def _report() -> Part:
    return Part(name=REPORT, arguments=("bench", REPORT), takes_folder=False)


def _few_rounds(quick: bool) -> tuple[str, ...]:
    return ("--rounds", "2", "--seconds", "1.5") if quick else ()


def _job(quick: bool, video: Path | None, face_model: Path | None) -> tuple[str, ...]:
    size = ("--frames", "150", "--rounds", "1") if quick else ("--frames", "600", "--rounds", "5")
    return (
        *((str(video),) if video is not None else ()),
        *size,
        *(("--face-model", str(face_model)) if face_model is not None else ()),
    )


def _cameras(quick: bool, face_model: Path | None) -> tuple[str, ...]:
    return (
        *(("--delay", "5000", "--seconds", "3") if quick else ()),
        *(("--face-model", str(face_model)) if face_model is not None else ()),
    )


def _scale(quick: bool) -> list[Part]:
    length = ("--length", "100", "--length", "400", "--repeats", "2") if quick else ()
    few = ("--rounds", "1", "--client-frames", "128") if quick else ()
    return [
        _part("scale-length", "scale", "--part", "length", *length),
        _part("scale-clients", "scale", "--part", "clients", *few),
        _part("scale-servers", "scale", "--part", "servers", *few),
        _part("scale-faces", "scale", "--part", "faces", *few),
    ]
