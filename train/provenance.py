"""Where a model comes from: which commit trained it, on what data; light, so that asking loads no PyTorch."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def source_commit() -> str:
    """Return the commit of the checkout this code runs from, or `unknown` for an installed package."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"  # installed from a wheel, perhaps into somebody else's checkout
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


AFF_WILD2 = "Aff-Wild2"
UNTAUGHT = "units without labels"  # in a checkpoint's data: what it answers all the same
SYNTHETIC = "synthetic"  # a corpus of generated faces; a model trained on it knows nothing of people


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a checkpoint comes from; it travels with the model into the served repository."""

    trained_on: str  # corpus name
    data: Mapping[str, Any] = field(default_factory=dict)  # fingerprint and counts of the corpus
    metrics: Mapping[str, float] = field(default_factory=dict)  # on videos never trained on
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of them, 95 % over people
    training: Mapping[str, Any] = field(default_factory=dict)  # the training configuration
    encoder: str | None = None  # heads: fingerprint of the encoder whose features they were trained on
    window_frames: int | None = None  # heads: longest segment seen in training
    stride_frames: int | None = None  # heads: distance of segments at inference
