"""Which of PyTorch's CUDA devices a GPU is: the driver and CUDA count in different orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch  # noqa: TID253 - this file is about its devices

from affserve.export.machine.gpus import Gpu
from affserve.train.errors import ExportError

T = TypeVar("T")


def cuda_device(gpu: Gpu) -> torch.device:
    """Return the device of `gpu`; ExportError when PyTorch does not see it."""
    seen = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        seen.append(f"{found.name} ({found.major}.{found.minor})")
        if gpu.uuid.removeprefix("GPU-") == str(found.uuid):
            return torch.device("cuda", index)
    raise ExportError(
        f"PyTorch {torch.__version__} does not see {gpu}; it sees {', '.join(seen) or 'no GPU'}: unset "
        "CUDA_VISIBLE_DEVICES, or install a PyTorch with CUDA"
    )


def on_gpu(gpu: Gpu, work: Callable[[], T]) -> T:
    """Do `work` with `gpu` as this thread's current CUDA device."""
    with torch.cuda.device(cuda_device(gpu)):
        return work()
