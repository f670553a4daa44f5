"""Several trained heads that answer as one: the mean of what each of them serves.

The folds of a cross-validation give such heads. They share the encoder and the tasks, not the sizes, so an ensemble
evaluates and exports wherever a single head does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch  # noqa: TID253 - this file is about it
from torch import Tensor, nn  # noqa: TID253

from affserve.train.temporal_head import TemporalHead, TemporalHeadConfig


class HeadEnsemble(nn.Module):
    """The mean over heads of their activated outputs: a mean of distributions is a distribution."""

    def __init__(self, members: Sequence[TemporalHead]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble of no heads; expected at least one")
        first = members[0].config
        for member in members[1:]:
            for name in ("tasks", "feature_width"):
                if getattr(member.config, name) != getattr(first, name):
                    raise ValueError(
                        f"heads of one ensemble differ in {name}: {getattr(first, name)} and "
                        f"{getattr(member.config, name)}; expected the same for all"
                    )
        self.members = nn.ModuleList(members)

    @property
    def heads(self) -> list[TemporalHead]:
        """The members, in order."""
        return [cast(TemporalHead, member) for member in self.members]

    @property
    def config(self) -> TemporalHeadConfig:
        """What all members share: read `tasks` and `feature_width` only."""
        return self.heads[0].config

    def answers(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool -> what is served, (B, T, K) by task."""
        each = [head.answers(features, present) for head in self.heads]
        return {key: torch.stack([answer[key] for answer in each]).mean(dim=0) for key in self.config.tasks}
