"""The paper's losses, each over the labelled frames only: 1 - CCC, cross-entropy, binary cross-entropy.

A batch without a single labelled frame has loss zero and zero gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: TID253
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
