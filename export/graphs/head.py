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
from affserve.export.graphs.layers import CpuConvolution, Dialect, Product, SelfAttention
from affserve.train.errors import ExportError
from affserve.train.models.temporal_head import (
    HeadEnsemble,
    OutputLayers,
    ResidualBlock,
    TemporalConv,
    TemporalHead,
    TransformerBlock,
    activate,
)


class LeanHead(nn.Module):
    """One temporal head; in the CPU dialect time stays the second axis throughout."""

    def __init__(self, head: TemporalHead, dialect: Dialect) -> None:
        super().__init__()
        if head.config.streams:
            raise ExportError("this head streams, and whole segments are not how it answers; export one that does not")
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
        self.members = nn.ModuleList(LeanHead(head, dialect) for head in ensemble.heads)

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """features: (B, T, D) -> what is served, (B, T, K) by task."""
        each = [cast(LeanHead, member).answers(features) for member in self.members]
        return {key: sum((one[key] for one in each[1:]), each[0][key]) / len(each) for key in each[0]}


def lean_head(head: TemporalHead | HeadEnsemble, dialect: Dialect) -> LeanHead | LeanEnsemble:
    """Rewrite a head or an ensemble for export."""
    return LeanEnsemble(head, dialect) if isinstance(head, HeadEnsemble) else LeanHead(head, dialect)


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


class LeanTransformer(nn.Module):
    """Self-attention and a feed-forward layer, normalised after each or before each."""

    def __init__(self, block: TransformerBlock, dialect: Dialect) -> None:
        super().__init__()
        self.attention = SelfAttention(block.qkv.weight, block.qkv.bias, block.out, block.heads, dialect)
        self.norm1, self.norm2, self.pre_norm = block.norm1, block.norm2, block.pre_norm
        self.up, self.down = Product.of(block.up), Product.of(block.down)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        if self.pre_norm:
            a = self.norm1(x)  # (B, T, C)
            x = x + self.attention(a, a)  # (B, T, C)
            return x + self.feed(self.norm2(x))  # (B, T, C)
        x = self.norm1(x + self.attention(x, x))  # (B, T, C)
        y: Tensor = self.norm2(x + self.feed(x))  # (B, T, C)
        return y

    def feed(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class LeanOutput(nn.Module):
    """The MLP of one task, its batch normalisation in the layer before."""

    def __init__(self, mlp: OutputLayers) -> None:
        super().__init__()
        norm = mlp.norm
        mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        gain = norm.weight.detach().double() / torch.sqrt(variance + norm.eps)  # (M,)
        weight = mlp.hidden.weight.detach().double().T * gain
        bias = (mlp.hidden.bias.detach().double() - mean) * gain + norm.bias.detach().double()
        self.hidden = Product(weight.float(), bias.float())
        self.out = Product.of(mlp.out)

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, T, C) -> (B, T, K)."""
        y: Tensor = self.out(F.relu(self.hidden(h)))
        return y


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
            answers.update(cast("TemporalHead | HeadEnsemble | LeanHead | LeanEnsemble", head).answers(features))
        return tuple(answers[key] for key in self.tasks)


class LeanHeadGraph(HeadGraph):
    """A HeadGraph as it is exported."""

    def __init__(self, graph: HeadGraph, dialect: Dialect) -> None:
        nn.Module.__init__(self)
        heads = [cast("TemporalHead | HeadEnsemble", head) for head in graph.heads]
        self.heads = nn.ModuleList(lean_head(head, dialect) for head in heads)
        self.tasks = graph.tasks


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
