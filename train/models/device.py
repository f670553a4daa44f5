"""Where and in which precision a model computes: devices of PyTorch and automatic mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch  # noqa: TID253 - this file is about it

from affserve.train.errors import DataError


def check_device(device: str) -> None:
    """Raise a DataError that says what there is, unless PyTorch can compute on `device`."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ", ".join(["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0]
        raise DataError(f"device is {device!r}, which cannot be used: {reason}; this machine has {there}") from error


AMP = ("auto", "none", "bf16", "fp16")
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def chosen_amp(amp: str, device: str) -> str:
    """Return what `auto` means on a device: bf16 on a GPU that computes in it, fp16 on an older one, none on a CPU."""
    if amp != "auto":
        return amp
    if not device.startswith("cuda"):
        return "none"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(amp: str, device: str) -> AbstractContextManager[Any]:
    """Return the context in which a model computes: PyTorch's autocast, or nothing."""
    if amp == "none":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=AMP_TYPES[amp])
