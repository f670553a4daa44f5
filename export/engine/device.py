"""Which of PyTorch's CUDA devices a GPU is: the driver and CUDA count in different orders."""

from __future__ import annotations

import torch  # noqa: TID253 - this file is about its devices

from affserve.export.machine.gpus import Gpu
from affserve.train.errors import ExportError


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
