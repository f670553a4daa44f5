"""GPUs as NVIDIA's management library tells them; where it is not installed or finds none, there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affserve.export import engine_sets
from affserve.export.contract import CPU, GPU
from affserve.export.server.config import ServerConfig
from affserve.export.server.installation import find_installation
from affserve.export.server.server import TritonServer

CUDA = "cuda"  # as PyTorch and ONNX Runtime call the device that a repository's use calls gpu
DEVICES = (CPU, CUDA)
VISIBLE = "CUDA_VISIBLE_DEVICES"


def use_of(device: str) -> str:
    """Return the use of a repository that runs on a device such as cuda:1."""
    return GPU if device.startswith(CUDA) else CPU


def gpu_library() -> Any:
    """Return NVIDIA's management library, started; None without nvidia-ml-py, a driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError:
        return None


def describe_gpus() -> list[dict[str, Any]]:
    """Return name, driver and memory of every GPU; none where there is none or nobody to ask."""
    library = gpu_library()
    if library is None:
        return []
    handles = [library.nvmlDeviceGetHandleByIndex(k) for k in range(library.nvmlDeviceGetCount())]
    driver = library.nvmlSystemGetDriverVersion()
    return [
        {
            "name": library.nvmlDeviceGetName(handle),
            "driver": driver,
            "memory_gib": round(library.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1),
        }
        for handle in handles
    ]


def gpu_engine_set(repository: Path) -> str:
    """Return the configuration by which a repository is served fastest from this machine's GPUs.

    TensorRT where there are plans and the server brings TensorRT, which the wheel's does not; else ONNX Runtime.
    """
    has_plans = any(repository.glob("*/*/*.plan"))
    return engine_sets.TENSORRT if has_plans and find_installation().wheel is None else engine_sets.CUDA


@contextmanager
def environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def server_on(variables: Mapping[str, str], repository: Path, engine: str) -> Iterator[str]:
    """Run a server that is started with environment variables, such as a GPU to see; yield its address."""
    with environment_of(variables):
        server = TritonServer(ServerConfig(repository=repository, engine=engine, drain_timeout_s=0.0))
        server.start()
    try:
        yield server.grpc_url
    finally:
        server.stop()
