"""The paper's losses over the labelled frames, and what can be done about skewed labels.

1 - CCC, cross-entropy and binary cross-entropy; a batch without a single labelled frame has loss zero and zero
gradients. Fear is 1.5 % of Aff-Wild2's training frames: weights by class and action unit are made here from the labels
of a training set, and are off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the weights are what a loss multiplies with
import torch.nn.functional as F  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253 - this file is about it

from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL

LEAST_DISTANCE = 1e-8  # keeps the gradient finite where prediction and truth are both constant; no effect elsewhere


@dataclass(frozen=True, kw_only=True, eq=False)
class LossWeights:
    """What the losses do about skewed labels; train.balance makes it from a training set."""

    classes: Tensor | None = None  # (8,) weight of each expression
    units: Tensor | None = None  # (12,) weight of each action unit where it is active
    label_smoothing: float = 0.0  # share of a label that is spread over all expressions


UNWEIGHTED = LossWeights()


def ccc_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """raw, truth: (N, 2) -> 1 - mean CCC over the N frames, population variances."""
    x, y = truth - truth.mean(dim=0), raw - raw.mean(dim=0)  # (N, 2) each
    covariance = (x * y).mean(dim=0)  # (2,)
    distance = x.square().mean(dim=0) + y.square().mean(dim=0) + (truth.mean(dim=0) - raw.mean(dim=0)).square()  # (2,)
    return 1 - (2 * covariance / distance.clamp_min(LEAST_DISTANCE)).mean()


def expression_loss(raw: Tensor, truth: Tensor, weights: LossWeights = UNWEIGHTED) -> Tensor:
    """raw: (N, 8), truth: (N, 1) class indices -> cross-entropy."""
    target = truth[:, 0].long()
    return F.cross_entropy(raw, target, weight=weights.classes, label_smoothing=weights.label_smoothing)


def action_unit_loss(raw: Tensor, truth: Tensor, weights: LossWeights = UNWEIGHTED) -> Tensor:
    """raw: (N, 12), truth: (N, 12) of 0 and 1 -> binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(raw, truth, pos_weight=weights.units)


LOSSES: dict[str, Callable[[Tensor, Tensor, LossWeights], Tensor]] = {
    VALENCE_AROUSAL.key: lambda raw, truth, _: ccc_loss(raw, truth),
    EXPRESSION.key: expression_loss,
    ACTION_UNITS.key: action_unit_loss,
}


def task_losses(
    raw: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    weights: LossWeights = UNWEIGHTED,
) -> dict[str, Tensor]:
    """Return the loss of each task over its valid frames.

    raw: (..., K), truth: (..., columns), valid: (...) bool, by task; any leading shape.
    """
    losses: dict[str, Tensor] = {}
    for key, outputs in raw.items():
        chosen = valid[key]
        picked = outputs[chosen].float()  # (N, K): sums over thousands of frames do not fit half precision
        losses[key] = LOSSES[key](picked, truth[key][chosen], weights) if len(picked) else picked.sum()
    return losses


def loss_denominators(
    truth: Mapping[str, Tensor], valid: Mapping[str, Tensor], weights: LossWeights = UNWEIGHTED
) -> dict[str, Tensor]:
    """Return what the loss of each task divides its sum over frames by: the valid frames, or the sum of their weights.

    The loss of a whole batch is the sum over its parts of loss x denominator / denominator of the whole. This holds
    for the cross-entropies; CCC is not a sum over frames.
    """
    counts = {key: chosen.sum().float() for key, chosen in valid.items()}
    if weights.classes is not None and EXPRESSION.key in truth:
        target = truth[EXPRESSION.key][valid[EXPRESSION.key]][:, 0].long()
        counts[EXPRESSION.key] = weights.classes[target].sum()
    return counts


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
