"""What is exported: the trained modules wrapped so that the graph alone turns what travels into what is answered.

The encoder graph takes uint8 frames (its preprocessing is part of ClipEncoder); the head graph holds every trained
task, its activations included, so that no Python touches a number on the server.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn  # noqa: TID253 - this file is about it
from torch.nn.utils import parametrize  # noqa: TID253

from affserve.export.contract import TASK_OUTPUTS
from affserve.train.errors import ExportError
from affserve.train.head_ensemble import HeadEnsemble
from affserve.train.temporal_head import TemporalHead


class HeadGraph(nn.Module):
    """One to three temporal heads or ensembles over the same features, as one graph with the contract's outputs."""

    def __init__(self, heads: Sequence[TemporalHead | HeadEnsemble]) -> None:
        super().__init__()
        tasks = [key for head in heads for key in head.config.tasks]
        if len(set(tasks)) != len(tasks):
            raise ExportError(f"the heads' tasks overlap: {', '.join(tasks)}; expected each task from one head")
        self.heads = nn.ModuleList(_with_plain_weights(head) for head in heads)
        self.tasks = tuple(key for key in TASK_OUTPUTS if key in tasks)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """features: (B, T, D) float32 -> one (B, T, K) float32 per task, in the order of `tasks`."""
        answers: dict[str, Tensor] = {}
        for head in self.heads:
            answers.update(cast("TemporalHead | HeadEnsemble", head).answers(features))
        return tuple(answers[key] for key in self.tasks)


def _with_plain_weights(head: TemporalHead | HeadEnsemble) -> TemporalHead | HeadEnsemble:
    """Copy a head with its weight normalisation multiplied out: the graph holds each weight once, ready to use."""
    plain = copy.deepcopy(head).eval()
    for module in plain.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return plain
