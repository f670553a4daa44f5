"""The paper's losses, each over the labelled frames only: 1 - CCC, cross-entropy, binary cross-entropy.

A batch without a single labelled frame has loss zero and zero gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F  # noqa: TID253
from torch import Tensor  # noqa: TID253 - this file is about it

from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL

EPSILON = 1e-8  # keeps the gradient finite where prediction and truth are both constant


def ccc_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """raw, truth: (N, 2) -> 1 - mean CCC over the N frames, population variances."""
    x, y = truth - truth.mean(dim=0), raw - raw.mean(dim=0)  # (N, 2) each
    covariance = (x * y).mean(dim=0)  # (2,)
    distance = x.square().mean(dim=0) + y.square().mean(dim=0) + (truth.mean(dim=0) - raw.mean(dim=0)).square()  # (2,)
    return 1 - (2 * covariance / (distance + EPSILON)).mean()


def expression_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """raw: (N, 8), truth: (N, 1) class indices -> cross-entropy."""
    return F.cross_entropy(raw, truth[:, 0].long())


def action_unit_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """raw: (N, 12), truth: (N, 12) of 0 and 1 -> binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(raw, truth)


LOSSES = {
    VALENCE_AROUSAL.key: ccc_loss,
    EXPRESSION.key: expression_loss,
    ACTION_UNITS.key: action_unit_loss,
}


def task_losses(
    raw: Mapping[str, Tensor], truth: Mapping[str, Tensor], valid: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the loss of each task over its valid frames.

    raw: (..., K), truth: (..., columns), valid: (...) bool, by task; any leading shape.
    """
    losses: dict[str, Tensor] = {}
    for key, outputs in raw.items():
        chosen = valid[key]
        picked = outputs[chosen].float()  # (N, K): sums over thousands of frames do not fit half precision
        losses[key] = LOSSES[key](picked, truth[key][chosen]) if len(picked) else picked.sum()
    return losses
