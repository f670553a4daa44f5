"""GPUs as NVIDIA's management library tells them; where it is not installed or finds none, there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affserve.export.contract import CPU, GPU
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.repository.check import verify_repository
from affserve.export.repository.manifest import read_manifest
from affserve.export.server.config import ServerConfig
from affserve.export.server.engine_choice import machine_obstacle, passed_over
from affserve.export.server.installation import find_installation
from affserve.export.server.server import TritonServer
from affserve.train.errors import RepositoryError, ServerError

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


def machine_sets() -> list[str]:
    """Return the engine sets for GPUs that this machine has what is needed for, the fastest first."""
    installation = find_installation()
    return [name for name, one in ENGINE_SETS.items() if one.on_gpu and machine_obstacle(name, installation) is None]


def gpu_sets(repository: Path) -> list[str]:
    """Return the engine sets by which this machine can serve a repository from its GPUs, the fastest first.

    ServerError, with what stands in the way of each, when there is none.
    """
    reasons: dict[str, str] = {}
    for name in (one for one, which in ENGINE_SETS.items() if which.on_gpu):
        trouble = machine_obstacle(name, find_installation())
        try:
            reasons[name] = trouble.text if trouble else ""
            if trouble is None:
                verify_repository(repository, name)
        except RepositoryError as error:
            reasons[name] = str(error)
    if not (found := [name for name, reason in reasons.items() if not reason]):
        raise ServerError(f"{repository} cannot be served from a GPU here: {passed_over(reasons)}")
    return found


def uses(repository: Path, backend: str) -> bool:
    """Say whether a model of a repository is computed by a backend on a CPU."""
    manifest = read_manifest(repository)
    served = manifest.versions[manifest.served].computed_by() if manifest is not None else {}
    return any(engine == backend for engine, _ in served.values())


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
