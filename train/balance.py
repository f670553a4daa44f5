"""What can be done about skewed labels: fear is 1.5 % of Aff-Wild2's training frames. All of it is off by default.

In come the labels of a training set, out go the weights that the losses use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the weights are what a loss multiplies with
from numpy.typing import NDArray

from affserve.train.labels import ACTION_UNITS, EXPRESSION
from affserve.train.losses import LossWeights

CLASS_WEIGHTS = ("none", "inverse_frequency", "effective_number")
SAMPLINGS = ("uniform", "balanced")
EFFECTIVE_BETA = 0.9999  # of the effective number: how much the n-th frame of a class overlaps with those before


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """The options; the paper uses none."""

    class_weights: str = "none"  # of the expressions in the cross-entropy: one of CLASS_WEIGHTS
    label_smoothing: float = 0.0  # share of a label that is spread over all expressions
    unit_weights: bool = False  # weigh an active action unit by how rare it is
    sampling: str = "uniform"  # balanced: draw frames so that every expression comes up equally often (stage 1)

    def __post_init__(self) -> None:
        for name, known in (("class_weights", CLASS_WEIGHTS), ("sampling", SAMPLINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; expected 0 <= label_smoothing < 1")


def loss_weights(
    config: BalanceConfig, truth: Mapping[str, NDArray[Any]], valid: Mapping[str, NDArray[np.bool_]], device: str
) -> LossWeights:
    """Return what the losses weigh with, from the training labels (N, columns) and their validity (N,) by task."""
    classes = units = None
    if config.class_weights != "none" and EXPRESSION.key in truth:
        counts = _class_counts(truth[EXPRESSION.key], valid[EXPRESSION.key])
        classes = torch.tensor(class_weights(counts, config.class_weights), dtype=torch.float32, device=device)
    if config.unit_weights and ACTION_UNITS.key in truth:
        active = truth[ACTION_UNITS.key][valid[ACTION_UNITS.key]].sum(axis=0)  # (12,)
        passive = valid[ACTION_UNITS.key].sum() - active
        units = torch.tensor(passive / np.maximum(active, 1), dtype=torch.float32, device=device)
    return LossWeights(classes=classes, units=units, label_smoothing=config.label_smoothing)


def class_weights(counts: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """Return the weights (K,) of classes with `counts` (K,) frames; 0 for a class without any.

    Scaled so that the mean weight of a frame is 1: the loss stays as large as without weights.
    inverse_frequency: 1 / n. effective_number: (1 - beta) / (1 - beta^n), Cui et al. 2019, "Class-balanced loss".
    """
    present = np.maximum(counts, 1).astype(np.float64)
    raw = 1 / present if kind == "inverse_frequency" else (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**present)
    raw = np.where(counts > 0, raw, 0.0)
    total = (raw * counts).sum()
    return raw * counts.sum() / total if total else raw


def balanced_order(
    truth: Mapping[str, NDArray[Any]], valid: Mapping[str, NDArray[np.bool_]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw N of N frames with replacement, each expression equally often; frames without one as often as one with."""
    labels, labelled = truth[EXPRESSION.key], valid[EXPRESSION.key]
    counts = _class_counts(labels, labelled)
    chances = np.ones(len(labels))
    chances[labelled] = class_weights(counts, "inverse_frequency")[labels[labelled, 0].astype(np.int64)]
    return np.asarray(rng.choice(len(labels), size=len(labels), p=chances / chances.sum()), dtype=np.int64)


def _class_counts(labels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(labels[valid, 0].astype(np.int64), minlength=EXPRESSION.outputs).astype(np.int64)
