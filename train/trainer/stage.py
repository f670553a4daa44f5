"""What the training loop is told: the configuration both stages share, and what is special about each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253 - a stage holds its model
from torch.utils.data import Dataset  # noqa: TID253

from affserve.train.evaluation.prediction import Validation
from affserve.train.evaluation.scores import OFFICIAL, Scores
from affserve.train.models.device import AMP
from affserve.train.trainer.gradient import Batch
from affserve.train.trainer.losses import UNWEIGHTED, BalanceConfig, LossWeights
from affserve.train.trainer.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What both stages can be told; the stages' own configurations add to it and know the paper's values."""

    epochs: int | None = None  # passes over the samples; None: the paper's for the tasks
    batch: int = 32  # samples of an optimiser step, over all ranks and micro batches
    micro_batch: int | None = None  # samples of a forward pass; None: what the stage says
    lr: float = 1e-4  # peak learning rate of AdamW
    weight_decay: float = 0.0  # of AdamW
    clip_norm: float | None = None  # largest norm of the gradient; None: any
    amp: str = "auto"  # autocast: none, bf16, fp16, or by the device
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    hold_out: str = "any"  # whose validation videos are not trained on: any task's, or only the trained tasks' ("task")
    patience: int | None = None  # epochs without a better score after which training ends; None: never
    workers: int = 0  # processes that read samples; 0: the training process itself
    checkpoint_every_s: float = 600.0  # seconds between saved states, besides one an epoch
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro_batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.amp not in AMP:
            raise ValueError(f"amp is {self.amp!r}; expected one of {', '.join(AMP)}")

    @property
    def passes(self) -> int:
        """Epochs to train, the paper's where none are given."""
        if self.epochs is None:
            raise ValueError("epochs is not given, and this stage has no default for it")
        return self.epochs

    def description(self) -> dict[str, Any]:
        """Return the fields that the weights depend on beyond rounding."""
        run_only = ("workers", "checkpoint_every_s", "device")
        return {**{key: value for key, value in asdict(self).items() if key not in run_only}, "epochs": self.passes}


class Stage(ABC):
    """What is special about one of the two stages: its model, its samples, and what the loop asks of them."""

    name: str  # for people
    model: nn.Module
    dataset: Dataset[dict[str, Any]]
    samples: int  # in an epoch
    frames_per_sample: int
    warmup_steps: float
    weights: LossWeights = UNWEIGHTED
    validator: str = OFFICIAL  # whose scores choose the best epoch
    micro_batch: int | None = None  # samples of a forward pass; None: all of a rank
    seed: int

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Begin an epoch and return the indices of its samples, in order."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.samples)

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the raw outputs (B, ..., K) by task; model: this stage's, perhaps wrapped. B may be 0."""

    @abstractmethod
    def validate(self, ranks: Ranks, now_and_then: Callable[[], None]) -> Validation:
        """Judge the model on the validation set, in evaluation mode; each rank predicts its share."""

    @abstractmethod
    def save(self, path: Path, scores: Scores) -> str:
        """Write a checkpoint and return its fingerprint."""
