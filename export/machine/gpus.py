"""The GPUs of this machine as the driver tells them, and TensorRT as Python finds it.

Without a GPU, a driver or TensorRT the answers are empty, not errors: most machines that ask have none.
"""

from __future__ import annotations

import importlib
import subprocess
from dataclasses import dataclass

from affserve.export.pins import MINIMUM_DRIVER, OLDEST_COMPUTE_CAPABILITY

# In this order; nvidia-smi comes with every driver, and asking it starts no CUDA context in this process.
QUERY = ("index", "name", "compute_cap", "memory.total", "driver_version", "uuid")
QUERY_TIMEOUT_S = 30.0  # a driver that wakes up takes seconds


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of this machine."""

    index: int  # in the driver's order, as CUDA_DEVICE_ORDER=PCI_BUS_ID and docker's --gpus device=N count
    name: str  # such as "NVIDIA GeForce RTX 3090"
    compute_capability: str  # such as "8.6"
    memory_bytes: int  # 0 where the driver does not tell: memory shared with the CPU
    driver: str  # such as "580.95.05"
    uuid: str = ""  # such as "GPU-8c2f..."; the same in every tool, which indices are not

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, driver {self.driver})"


def find_gpus() -> list[Gpu]:
    """Return the GPUs that the NVIDIA driver reports; none without a driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(answer.stdout)


def parse_gpus(csv: str) -> list[Gpu]:
    """Read nvidia-smi's CSV answer to QUERY; lines that are no GPU are skipped."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return [
        Gpu(
            index=int(index),
            name=name,
            compute_capability=capability,
            memory_bytes=int(memory) << 20 if memory.isdecimal() else 0,
            driver=driver,
            uuid=uuid,
        )
        for index, name, capability, memory, driver, uuid in (row for row in rows if len(row) == len(QUERY))
        if index.isdecimal()
    ]


def driver_obstacle(gpu: Gpu, server: str = "the serving container") -> str | None:
    """Say why the pinned container, or what else is made for its CUDA, cannot use this GPU; None when it can."""
    if int(gpu.driver.split(".")[0] or 0) < MINIMUM_DRIVER:
        return (
            f"{gpu.name} has driver {gpu.driver}; {server} needs {MINIMUM_DRIVER} or later: update the "
            "NVIDIA driver of this machine"
        )
    if version(gpu.compute_capability) < version(OLDEST_COMPUTE_CAPABILITY):
        return (
            f"{gpu.name} has compute capability {gpu.compute_capability}; {server} needs "
            f"{OLDEST_COMPUTE_CAPABILITY} or later: serve on the CPU with --engine cpu"
        )
    return None


def version(text: str) -> tuple[int, ...]:
    """Return a dotted version as numbers that compare."""
    return tuple(int(part) for part in text.split("."))


def installed_tensorrt(name: str = "tensorrt") -> str | None:
    """Return the four-part version of Python's TensorRT; None when it is absent or cannot be loaded.

    name: the module; pins.RTX_MODULE for TensorRT for RTX.
    """
    try:
        return str(importlib.import_module(name).__version__)
    except (ImportError, OSError, AttributeError):  # the last: a folder of that name where Python looks for modules
        return None
