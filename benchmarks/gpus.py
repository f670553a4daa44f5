"""GPUs as NVIDIA's management library tells them; where it is not installed or finds none, there are none."""

from __future__ import annotations

from typing import Any


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
