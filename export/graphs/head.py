"""The temporal heads as one graph: features in, activated outputs of every trained task out.

`HeadGraph` is the trained modules as they are, the reference that artefacts are compared with. `LeanHeadGraph` is the
same function as it is exported: weight and batch normalisation multiplied out, dropout gone. No Python touches a
number on the server.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch  # noqa: TID253 - this file is about it
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253 - this file is about it
from torch.nn.utils import parametrize  # noqa: TID253

from affserve.export.contract import TASK_OUTPUTS
from affserve.export.graphs.layers import CpuConvolution, Dialect, HeadBlock, LeanOutput, SelfAttention
from affserve.export.graphs.stream import StreamHead
from affserve.train.errors import ExportError
from affserve.train.models.temporal_head import (
    HeadEnsemble,
    OutputLayers,
    ResidualBlock,
    TemporalConv,
    TemporalHead,
    TemporalHeadConfig,
    TransformerBlock,
    activate,
)


class LeanHead(nn.Module):
    """One temporal head; in the CPU dialect time stays the second axis throughout."""

    def __init__(self, head: TemporalHead, dialect: Dialect) -> None:
        super().__init__()
        self.dialect = dialect
        blocks = [cast(ResidualBlock, block) for block in head.tcn]
        self.tcn = nn.Sequential(*(LeanResidual(block, dialect) for block in blocks))
        self.project = _convolution(head.project, dialect)
        self.encoder = nn.ModuleList(LeanTransformer(cast(TransformerBlock, b), dialect) for b in head.encoder)
        self.mlps = nn.ModuleDict({key: LeanOutput(cast(OutputLayers, mlp)) for key, mlp in head.mlps.items()})

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """features: (B, T, D) -> what is served, (B, T, K) by task."""
        if self.dialect is Dialect.CPU:
            h = self.project(self.tcn(features))  # (B, T, C)
        else:
            h = self.project(self.tcn(features.transpose(1, 2))).transpose(1, 2)  # (B, T, C)
        for block in self.encoder:
            h = block(h)  # (B, T, C)
        return activate({key: mlp(h) for key, mlp in self.mlps.items()})


class LeanEnsemble(nn.Module):
    """The mean of what several heads serve."""

    def __init__(self, ensemble: HeadEnsemble, dialect: Dialect) -> None:
        super().__init__()
        self.members = nn.ModuleList(lean_head(head, dialect) for head in ensemble.heads)

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """features: (B, T, D) -> what is served, (B, T, K) by task."""
        return _mean([cast(LeanHead, member).answers(features) for member in self.members])


class StreamedSegment(nn.Module):
    """A head that streams, over a segment that nothing was before: the numbers are those of its stream."""

    def __init__(self, head: TemporalHead) -> None:
        super().__init__()
        self.head, self.late = StreamHead(head), head.config.lookahead_frames

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """features: (1, T, D) -> what is served, (1, T, K) by task."""
        if self.late:
            held = features[:, -1:].expand(-1, self.late, -1)
            features = torch.cat([features, held], dim=1)  # (1, T + L, D)
        answers, _ = self.head.answers(features, torch.zeros(self.head.state_values))
        return {key: values[:, self.late :] for key, values in answers.items()}


Lean = LeanHead | LeanEnsemble | StreamedSegment


def lean_head(head: TemporalHead | HeadEnsemble, dialect: Dialect) -> Lean:
    """Rewrite a head or an ensemble for export."""
    if isinstance(head, HeadEnsemble):
        return LeanEnsemble(head, dialect)
    return StreamedSegment(head) if head.config.streams else LeanHead(head, dialect)


def _mean(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: sum((one[key] for one in each[1:]), each[0][key]) / len(each) for key in each[0]}


class LeanResidual(nn.Module):
    """Two convolutions and a way around them; (B, C, T), or (B, T, C) in the CPU dialect."""

    def __init__(self, block: ResidualBlock, dialect: Dialect) -> None:
        super().__init__()
        first, first_activation, _, second, second_activation, _ = block.body
        self.body = nn.Sequential(
            _convolution(first, dialect), first_activation, _convolution(second, dialect), second_activation
        )
        self.around = block.around if isinstance(block.around, nn.Identity) else _convolution(block.around, dialect)
        self.activation = block.activation

    def forward(self, x: Tensor) -> Tensor:
        """Keep the length."""
        y: Tensor = self.activation(self.body(x) + self.around(x))
        return y


class PaddedConvolution(nn.Module):
    """A convolution with its own zeros before and after, as one node: no Pad in front."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.dilation, self.padding = dilation, padding

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, T) -> (B, outputs, T)."""
        return F.conv1d(F.pad(x, self.padding), self.weight, self.bias, dilation=self.dilation)


def _convolution(layer: nn.Module, dialect: Dialect) -> nn.Module:
    padding = (layer.left, layer.right) if isinstance(layer, TemporalConv) else (0, 0)
    conv = cast(nn.Conv1d, layer.conv if isinstance(layer, TemporalConv) else layer)
    kind = CpuConvolution if dialect is Dialect.CPU else PaddedConvolution
    return kind(conv.weight, cast(Tensor, conv.bias), conv.dilation[0], padding)


class LeanTransformer(HeadBlock):
    """Self-attention of a whole segment and a feed-forward layer."""

    def __init__(self, block: TransformerBlock, dialect: Dialect) -> None:
        super().__init__(block)
        self.attention = SelfAttention(block.qkv.weight, block.qkv.bias, block.out, block.heads, dialect)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        return self.around(lambda seen: cast(Tensor, self.attention(seen, seen)), x)


class HeadGraph(nn.Module):
    """One to three temporal heads or ensembles over the same features, as one graph with the contract's outputs."""

    def __init__(self, heads: Sequence[TemporalHead | HeadEnsemble]) -> None:
        super().__init__()
        tasks = [key for head in heads for key in head.config.tasks]
        if len(set(tasks)) != len(tasks):
            raise ExportError(f"the heads' tasks overlap: {', '.join(tasks)}; expected each task from one head")
        self.heads = nn.ModuleList(_with_plain_weights(head) for head in heads)
        self.tasks = tuple(key for key in TASK_OUTPUTS if key in tasks)

    @property
    def configs(self) -> list[TemporalHeadConfig]:
        """What every head is, the members of ensembles one by one."""
        return [module.config for module in self.modules() if isinstance(module, TemporalHead)]

    @property
    def streams(self) -> bool:
        """Whether every head can answer frame by frame with a bounded state."""
        return all(config.streams for config in self.configs)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """features: (B, T, D) float32 -> one (B, T, K) float32 per task, in the order of `tasks`."""
        answers: dict[str, Tensor] = {}
        for head in self.heads:
            answers.update(cast("TemporalHead | HeadEnsemble | Lean", head).answers(features))
        return tuple(answers[key] for key in self.tasks)


class LeanHeadGraph(HeadGraph):
    """A HeadGraph as it is exported."""

    def __init__(self, graph: HeadGraph, dialect: Dialect) -> None:
        nn.Module.__init__(self)
        heads = [cast("TemporalHead | HeadEnsemble", head) for head in graph.heads]
        self.heads = nn.ModuleList(lean_head(head, dialect) for head in heads)
        self.tasks = graph.tasks


class StreamGraph(nn.Module):
    """Heads that stream as one graph, with one state for all of them."""

    def __init__(self, graph: HeadGraph) -> None:
        super().__init__()
        self.tasks = graph.tasks
        members = [one.heads if isinstance(one, HeadEnsemble) else [cast(TemporalHead, one)] for one in graph.heads]
        self.heads = nn.ModuleList(nn.ModuleList(StreamHead(head) for head in several) for several in members)
        self.sizes = [one.state_values for one in self.modules() if isinstance(one, StreamHead)]
        self.state_values = sum(self.sizes)

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        """features: (1, T, D), state: (S,) float32 -> one (1, T, K) float32 per task, and the state after (S,)."""
        parts = iter(state.split(self.sizes))
        answers: dict[str, Tensor] = {}
        after: list[Tensor] = []
        for members in self.heads:
            each = [cast(StreamHead, head).answers(features, next(parts)) for head in cast(nn.ModuleList, members)]
            answers.update(_mean([answer for answer, _ in each]))
            after += [left for _, left in each]
        return (*(answers[key] for key in self.tasks), torch.cat(after))


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
