"""The paper's losses over the labelled frames, and what can be done about skewed labels.

1 - CCC, cross-entropy and binary cross-entropy; a batch without a single labelled frame has loss zero and zero
gradients. Fear is 1.5 % of Aff-Wild2's training frames: weights by class and action unit are made here from the labels
of a training set, and are off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch  # noqa: TID253 - the weights are what a loss multiplies with
import torch.nn.functional as F  # noqa: TID253
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253 - this file is about it

from affserve.train.labels import EXPRESSION, TASKS, Kind, Task

LEAST_DISTANCE = 1e-8  # keeps the gradient finite where prediction and truth are both constant; no effect elsewhere


@dataclass(frozen=True, kw_only=True, eq=False)
class LossWeights:
    """What the losses do about skewed labels; `loss_weights` makes it from a training set."""

    by_task: Mapping[str, Tensor] = field(default_factory=dict)  # (K,) weight of each class, or of each active unit
    label_smoothing: float = 0.0  # share of a class label that is spread over all classes


UNWEIGHTED = LossWeights()


def ccc_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """raw, truth: (N, 2) -> 1 - mean CCC over the N frames, population variances."""
    x, y = truth - truth.mean(dim=0), raw - raw.mean(dim=0)  # (N, 2) each
    covariance = (x * y).mean(dim=0)  # (2,)
    distance = x.square().mean(dim=0) + y.square().mean(dim=0) + (truth.mean(dim=0) - raw.mean(dim=0)).square()  # (2,)
    return 1 - (2 * covariance / distance.clamp_min(LEAST_DISTANCE)).mean()


def class_loss(raw: Tensor, truth: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """raw: (N, K), truth: (N, 1) class indices, weight: (K,) -> cross-entropy."""
    return F.cross_entropy(raw, truth[:, 0].long(), weight=weight, label_smoothing=smoothing)


def unit_loss(raw: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """raw: (N, K), truth: (N, K) of 0, 1 and -1 (no label), weight: (K,) of the ones -> mean binary cross-entropy."""
    labelled = truth >= 0
    weights = None if weight is None else weight.expand_as(raw)[labelled]
    return F.binary_cross_entropy_with_logits(raw[labelled], truth[labelled], pos_weight=weights)


LOSSES: dict[Kind, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "regression": lambda raw, truth, weight, smoothing: ccc_loss(raw, truth),
    "one_of": class_loss,
    "any_of": lambda raw, truth, weight, smoothing: unit_loss(raw, truth, weight),
}
# Whether a loss is a sum over frames, which adds up over the parts of a batch.
SUMS_OVER_FRAMES: dict[Kind, bool] = {"regression": False, "one_of": True, "any_of": True}


def task_loss(key: str, raw: Tensor, truth: Tensor, weights: LossWeights = UNWEIGHTED) -> Tensor:
    """raw: (N, K), truth: (N, columns), N > 0 -> the loss of one task over labelled frames."""
    return LOSSES[TASKS[key].kind](raw, truth, weights.by_task.get(key), weights.label_smoothing)


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
        losses[key] = task_loss(key, picked, truth[key][chosen], weights) if len(picked) else picked.sum()
    return losses


def loss_denominators(
    truth: Mapping[str, Tensor], valid: Mapping[str, Tensor], weights: LossWeights = UNWEIGHTED
) -> dict[str, Tensor]:
    """Return what the loss of each task divides its sum over frames by: frames, the sum of their weights, unit labels.

    The loss of a whole batch is the sum over its parts of loss x denominator / denominator of the whole. This holds
    for the cross-entropies; CCC is not a sum over frames.
    """
    counts = {key: chosen.sum().float() for key, chosen in valid.items()}
    for key in counts:
        weight = weights.by_task.get(key)
        if TASKS[key].kind == "one_of" and weight is not None:
            counts[key] = weight[truth[key][valid[key]][:, 0].long()].sum()
        elif TASKS[key].kind == "any_of":
            counts[key] = (truth[key][valid[key]] >= 0).sum().float()
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
    by_task = {}
    for key, labels in truth.items():
        found: NDArray[Any] | None = None
        if TASKS[key].kind == "one_of" and config.class_weights != "none":
            found = class_weights(_class_counts(TASKS[key], labels, valid[key]), config.class_weights)
        elif TASKS[key].kind == "any_of" and config.unit_weights:
            active = (labels[valid[key]] > 0).sum(axis=0)  # (K,)
            found = ((labels[valid[key]] >= 0).sum(axis=0) - active) / np.maximum(active, 1)
        if found is not None:
            by_task[key] = torch.tensor(found, dtype=torch.float32, device=device)
    return LossWeights(by_task=by_task, label_smoothing=config.label_smoothing)


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


def drawn_order(
    rng: np.random.Generator,
    weights: NDArray[np.float64],
    truth: Mapping[str, NDArray[Any]] | None = None,
    valid: Mapping[str, NDArray[np.bool_]] | None = None,
) -> NDArray[np.int64]:
    """Draw N of N samples with replacement, each as often as its weight (N,) says; all alike: each once.

    truth, valid: then every expression comes up equally often, and frames without one as often as one with.
    """
    chances = weights.copy()
    if truth is not None and valid is not None:
        labels, labelled = truth[EXPRESSION.key], valid[EXPRESSION.key]
        counts = _class_counts(EXPRESSION, labels, labelled)
        chances[labelled] *= class_weights(counts, "inverse_frequency")[labels[labelled, 0].astype(np.int64)]
    elif (weights == weights[0]).all():
        return rng.permutation(len(weights))
    return np.asarray(rng.choice(len(chances), size=len(chances), p=chances / chances.sum()), dtype=np.int64)


def _class_counts(task: Task, labels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(labels[valid, 0].astype(np.int64), minlength=task.outputs).astype(np.int64)
