"""Heads that stream, as graphs with their state explicit: the next frames and the state in, answers and the state out.

The state is one vector of float32, so that a server keeps one tensor for each stream: how many frames the keys hold,
the last inputs of each convolution, the last keys and values of each Transformer block; all zeros before the first
frame. Each frame gathers its own W keys and values: the same products of the same shape, whatever else shares the run,
so frames give the same bits one at a time and three hundred together. (One product of all frames with all keys is a
fifth faster for 300 frames and differs in the seventh digit.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch  # noqa: TID253 - this file is about it
from torch import Tensor, nn  # noqa: TID253 - this file is about it

from affserve.export.graphs.layers import HeadBlock, LeanOutput, Product
from affserve.train.errors import ExportError
from affserve.train.models.temporal_head import (
    OutputLayers,
    ResidualBlock,
    TemporalConv,
    TemporalHead,
    TransformerBlock,
    activate,
)

# Added to what a frame must not look at: its weight is then 0 to the last bit, and half precision can hold it.
NEVER = -3e4


class Tape:
    """A state on its way through the layers: each takes its part, in order, and leaves its part of the next."""

    def __init__(self, state: Tensor, sizes: Sequence[int]) -> None:
        self._parts: Iterator[Tensor] = iter(state.split(list(sizes)))
        self._after: list[Tensor] = []

    def take(self) -> Tensor:
        """Return the next part (n,)."""
        return next(self._parts)

    def leave(self, part: Tensor) -> None:
        """Keep a part for the next run."""
        self._after.append(part.reshape(-1))

    def joined(self, x: Tensor, past: int) -> Tensor:
        """Put the `past` frames before in front of x (R, T, C), and leave as many of the last ones."""
        if past == 0:
            return x
        joined = torch.cat([self.take().reshape(x.shape[0], past, x.shape[2]), x], dim=1)  # (R, past + T, C)
        self.leave(joined[:, -past:])
        return joined

    def after(self) -> Tensor:
        """Return the state for the next run."""
        return torch.cat(self._after)


class StreamHead(nn.Module):
    """One temporal head; (1, T, C) throughout."""

    def __init__(self, head: TemporalHead) -> None:
        super().__init__()
        config = head.config
        if config.recurrent:
            raise ExportError(
                "this head is recurrent: it remembers without a limit, so that a stream could not be started anew from "
                "the last frames. It is there to be compared with; export one with --context-frames"
            )
        self.context = config.context_frames or 1
        self.tcn = nn.ModuleList(StreamResidual(cast(ResidualBlock, block)) for block in head.tcn)
        self.answered, self.late = head.answered, config.lookahead_frames
        self.project = _pointwise(head.project)
        self.encoder = nn.ModuleList(
            StreamTransformer(cast(TransformerBlock, block), self.context) for block in head.encoder
        )
        self.mlps = nn.ModuleDict({key: LeanOutput(cast(OutputLayers, mlp)) for key, mlp in head.mlps.items()})
        convolutions = [one for one in self.modules() if isinstance(one, StreamConvolution)]
        past = 2 * (self.context - 1) * config.width  # keys and values
        convolved = (one.past * one.inputs for one in convolutions)
        sizes = [1, *convolved, self.answered * self.late, *(past for _ in self.encoder)]
        self.sizes = [size for size in sizes if size]
        self.state_values = sum(self.sizes)

    def answers(self, features: Tensor, state: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """features: (1, T, D), state: (S,) -> what comes out at their positions, (1, T, K) by task, and the state."""
        tape = Tape(state, self.sizes)
        held = tape.take()  # (1,)
        tape.leave(torch.clamp(held + features.shape[1], max=float(self.context - 1)))
        h = features
        for residual in self.tcn:
            h = residual(h, tape)  # (1, T, C_out)
        if self.answered:
            h = torch.cat([h, tape.joined(features, self.late)[:, : features.shape[1]]], dim=2)  # (1, T, C_out + D)
        h = self.project(h)  # (1, T, C)
        frames = torch.arange(features.shape[1])
        keys = frames[:, None] + torch.arange(self.context)  # (T, W): which of the frames before and those of the run
        unseen = torch.where(keys >= self.context - 1 - held, 0.0, NEVER)[:, :, None]  # (T, W, 1)
        for block in self.encoder:
            h = block(h, keys.reshape(-1), unseen, tape)  # (1, T, C)
        return activate({key: mlp(h) for key, mlp in self.mlps.items()}), tape.after()


class StreamConvolution(nn.Module):
    """A causal convolution as one matrix product over the frames that each output sees."""

    def __init__(self, layer: TemporalConv) -> None:
        super().__init__()
        weight = layer.conv.weight  # (outputs, inputs, kernel)
        self.inputs, self.kernel = weight.shape[1], weight.shape[2]
        self.dilation, self.past = layer.conv.dilation[0], layer.left
        self.product = Product(weight.permute(2, 1, 0).reshape(-1, weight.shape[0]), cast(Tensor, layer.conv.bias))

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """x: (1, T, inputs) -> (1, T, outputs)."""
        seen = torch.arange(x.shape[1])[:, None] + self.dilation * torch.arange(self.kernel)  # (T, kernel)
        columns = tape.joined(x, self.past).index_select(1, seen.reshape(-1))  # (1, T * kernel, inputs)
        y: Tensor = self.product(columns.reshape(1, -1, self.kernel * self.inputs))
        return y


class StreamResidual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        first, self.first_activation, _, second, self.second_activation, _ = block.body
        self.first = StreamConvolution(cast(TemporalConv, first))
        self.second = StreamConvolution(cast(TemporalConv, second))
        self.around = block.around if isinstance(block.around, nn.Identity) else _pointwise(block.around)
        self.activation = block.activation

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """x: (1, T, inputs) -> (1, T, outputs)."""
        y = self.first_activation(self.first(x, tape))
        y = self.second_activation(self.second(y, tape))
        out: Tensor = self.activation(y + self.around(x))
        return out


class StreamTransformer(HeadBlock):
    """Attention to the last W frames and a feed-forward layer."""

    def __init__(self, block: TransformerBlock, context: int) -> None:
        super().__init__(block)
        self.context, self.heads = context, block.heads
        self.width = block.out.in_features
        # Softmax takes q k / sqrt(C / heads): the root goes into q, which also keeps the product small in float16.
        scale = torch.ones(3 * self.width)
        scale[: self.width] = (self.width // self.heads) ** -0.5
        self.qkv = Product((block.qkv.weight * scale[:, None]).T, block.qkv.bias * scale)
        self.out = Product.of(block.out)

    def forward(self, x: Tensor, keys: Tensor, unseen: Tensor, tape: Tape) -> Tensor:
        """x: (1, T, C), keys: (T * W,), unseen: (T, W, 1) -> (1, T, C)."""
        return self.around(lambda seen: self.attend(seen, keys, unseen, tape), x)

    def attend(self, x: Tensor, keys: Tensor, unseen: Tensor, tape: Tape) -> Tensor:
        """x: (1, T, C) -> (1, T, C)."""
        heads, width = self.heads, self.width // self.heads
        qkv = self.qkv(x).reshape(-1, 3 * heads, width).transpose(0, 1)  # (3 heads, T, C/heads)
        q, kv = qkv.split([heads, 2 * heads])
        k, v = tape.joined(kv, self.context - 1).split(heads)  # (heads, W - 1 + T, C/heads) each
        shape = (heads, -1, self.context, width)
        k, v = (one.index_select(1, keys).reshape(shape) for one in (k, v))  # (heads, T, W, C/heads) each
        weights = (k @ q[..., None] + unseen).softmax(dim=2)  # (heads, T, W, 1)
        y = weights.transpose(2, 3) @ v  # (heads, T, 1, C/heads)
        out: Tensor = self.out(y.reshape(heads, -1, width).transpose(0, 1).reshape(1, -1, self.width))
        return out


def _pointwise(layer: nn.Module) -> Product:
    conv = cast(nn.Conv1d, layer)
    return Product(conv.weight[:, :, 0].T, cast(Tensor, conv.bias))
