"""The pieces of a training loop that both stages share."""

from __future__ import annotations

import math
from typing import Any


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the learning rate: linear up over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def to_device(batch: Any, device: str) -> Any:
    """Move the tensors of a nested dictionary."""
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True)
