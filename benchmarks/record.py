"""What a measurement is worth nothing without: the machine, the versions, the command; and where results are kept.

One JSON file per kind of measurement and machine, `benchmarks/results/<machine>/<name>.json`. Figures in the README are
quoted from these files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from affserve.train.checkpoint import source_commit

RESULTS = Path(__file__).parent / "results"
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


def environment() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": source_commit(),
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
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


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
