"""What a measurement is worth nothing without: the machine, the versions, the command; and where results are kept.

One JSON file per kind of measurement and machine, `benchmarks/results/<machine>/<name>.json`. Figures in the README are
quoted from these files. The environment is read when a process first asks for it, before its measurements have loaded
the machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.gpus import describe_gpus
from affserve.train.provenance import source_commit

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = (
    "affserve",
    "torch",
    "onnxruntime",
    "nvidia-pytriton",
    "tritonclient",
    "av",
    "opencv-python-headless",
    "numpy",
)
# What decides how fast 8 and 16 bit products are; the rest of the flags are the same on all of today's machines.
CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_NUMBERS = re.compile(r"\[\s+[-\d][-+.,\deE\s]*\]")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return what the figures depend on besides the code; `load_average` and the rest are of the first call."""
    gpus = describe_gpus()
    return {
        "cpu": _cpu_name(),
        "cpu_flags": _cpu_flags(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": [round(value, 2) for value in os.getloadavg()],  # of 1, 5 and 15 minutes
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": source_commit(),
        "dirty": _dirty(),
        **({"gpus": gpus} if gpus else {}),
    }


def save(name: str, measured: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a result and return its path; `folder` is `benchmarks/results/<machine>` unless given."""
    machine = environment()
    place = folder or RESULTS / re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cpus']} cpus".lower()).strip(
        "-"
    )
    place.mkdir(parents=True, exist_ok=True)
    document = {
        "name": name,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["affserve", *sys.argv[1:]]),
        "environment": machine,
        "measured": measured,
    }
    path = place / f"{name}.json"
    path.write_text(_NUMBERS.sub(_in_one_line, json.dumps(document, indent=2)) + "\n")
    return path


def _in_one_line(numbers: re.Match[str]) -> str:
    """Write a list of numbers, such as raw samples, in one line."""
    return " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]")


def without_samples(measured: Any) -> Any:
    """Return a result without its lists of raw samples (keys `samples` and `samples_...`), for people to read."""
    if isinstance(measured, dict):
        kept = {key: value for key, value in measured.items() if key.partition("_")[0] != "samples"}
        return {key: without_samples(value) for key, value in kept.items()}
    return [without_samples(value) for value in measured] if isinstance(measured, list) else measured


def _dirty() -> bool | None:
    """Say whether the source differs from its commit; None where it is not a checkout. Results are no source."""
    checkout = ["git", "-C", str(Path(__file__).resolve().parents[2])]
    command = [*checkout, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"]
    try:
        return bool(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_flags() -> list[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86 and Arm
            return [flag for flag in CPU_FLAGS if flag in value.split()]
    return []


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
