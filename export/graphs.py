"""What is exported: the trained modules wrapped so that the graph alone turns what travels into what is answered.

The encoder graph takes uint8 frames (its preprocessing is part of ClipEncoder); the head graph holds every trained
task, its activations included, so that no Python touches a number on the server. `HeadGraph` is the reference that
artefacts are compared with; `encoder_graph` and `LeanHeadGraph` are the same functions as they are exported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn  # noqa: TID253 - this file is about it
from torch.nn.utils import parametrize  # noqa: TID253

from affserve.export.contract import TASK_OUTPUTS
from affserve.export.lean_encoder import LeanEncoder, is_plain_vit
from affserve.export.lean_head import LeanEnsemble, LeanHead, lean_head
from affserve.export.lean_layers import Dialect
from affserve.train.clip_encoder import ClipEncoder
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


class LeanHeadGraph(nn.Module):
    """A HeadGraph as it is exported."""

    def __init__(self, graph: HeadGraph, dialect: Dialect) -> None:
        super().__init__()
        heads = [cast("TemporalHead | HeadEnsemble", head) for head in graph.heads]
        self.heads = nn.ModuleList(lean_head(head, dialect) for head in heads)
        self.tasks = graph.tasks

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """features: (B, T, D) float32 -> one (B, T, K) float32 per task, in the order of `tasks`."""
        answers: dict[str, Tensor] = {}
        for head in self.heads:
            answers.update(cast("LeanHead | LeanEnsemble", head).answers(features))
        return tuple(answers[key] for key in self.tasks)


def encoder_graph(encoder: ClipEncoder, dialect: Dialect) -> nn.Module:
    """Return the encoder as it is exported; a tower that is no plain ViT is exported as it stands."""
    return LeanEncoder(encoder, dialect) if is_plain_vit(encoder.visual) else encoder


def _with_plain_weights(head: TemporalHead | HeadEnsemble) -> TemporalHead | HeadEnsemble:
    """Copy a head with its weight normalisation multiplied out: the graph holds each weight once, ready to use."""
    plain = copy.deepcopy(head).eval()
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if parametrize.is_parametrized(child, "weight"):
                setattr(module, name, _plain_convolution(cast(nn.Conv1d, child)))
    return plain


def _plain_convolution(conv: nn.Conv1d) -> nn.Conv1d:
    """Copy a convolution with its weight as it is used.

    PyTorch's remove_parametrizations would take the weight away from the original too: copies share their class.
    """
    plain = nn.Conv1d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], dilation=conv.dilation[0], bias=conv.bias is not None
    )
    plain.load_state_dict({name: getattr(conv, name).detach() for name in plain.state_dict()})
    return plain.eval()
