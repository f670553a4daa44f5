"""The pieces of a training loop that both stages share."""

from __future__ import annotations

import math
from typing import Any

import torch  # noqa: TID253 - this file is about it

from affserve.train.errors import DataError


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the learning rate: linear up over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def check_device(device: str) -> None:
    """Raise a DataError that says what there is, unless PyTorch can compute on `device`."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ", ".join(["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0]
        raise DataError(f"device is {device!r}, which cannot be used: {reason}; this machine has {there}") from error


def to_device(batch: Any, device: str) -> Any:
    """Move the tensors of a nested dictionary."""
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True)
