"""Layers as they are exported: the arithmetic of the trained ones with everything that is constant multiplied out.

Weights lie as a matrix product takes them, (inputs, outputs), so that no graph transposes them, and shapes are known
but for one axis, so that no graph computes them. There are two dialects. `STANDARD` has only ONNX's own operators, for
TensorRT, CUDA and CPUs. `CPU` is what INT8 graphs are made of: attention as one node of ONNX Runtime (com.microsoft,
also in Triton's native backend), convolutions as matrix products, pixels as the 8 bit numbers they are.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import cast

import torch  # noqa: TID253 - this file is about it
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253

from affserve.train.models.temporal_head import OutputLayers, TransformerBlock


class Dialect(Enum):
    """Which operators a graph may use."""

    STANDARD = "standard"
    CPU = "cpu"


class Product(nn.Module):
    """x @ weight + bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)  # (inputs, outputs)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)  # (outputs,)

    @classmethod
    def of(cls, layer: nn.Linear) -> Product:
        """Take over a trained linear layer."""
        return cls(layer.weight.T, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs) -> (..., outputs)."""
        return x @ self.weight + self.bias


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; the queries may be fewer than the sequence."""

    def __init__(self, qkv_weight: Tensor, qkv_bias: Tensor, out: nn.Linear, heads: int, dialect: Dialect) -> None:
        """qkv_weight: (3 C, C), qkv_bias: (3 C,), as PyTorch has them."""
        super().__init__()
        self.width, self.heads, self.dialect = qkv_weight.shape[1], heads, dialect
        weights, biases = list(qkv_weight.detach().chunk(3)), list(qkv_bias.detach().chunk(3))
        if dialect is Dialect.STANDARD:
            # Softmax takes q k / sqrt(C / heads): the root goes into q, which also keeps the product small in float16.
            scale = (self.width // heads) ** -0.5
            weights[0], biases[0] = weights[0] * scale, biases[0] * scale
        self.q, self.k, self.v = (Product(w.T, b) for w, b in zip(weights, biases, strict=True))
        self.out = Product.of(out)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """queries: (B, S, C), x: (B, T, C) -> (B, S, C)."""
        if self.dialect is Dialect.CPU:
            joined: Tensor = self.out(self._as_one_node(queries, x))  # (B, S, C)
            return joined
        q = self._by_head(self.q(queries)).transpose(1, 2)  # (B, heads, S, C/heads)
        k = self._by_head(self.k(x)).permute(0, 2, 3, 1)  # (B, heads, C/heads, T)
        v = self._by_head(self.v(x)).transpose(1, 2)  # (B, heads, T, C/heads)
        y = (q @ k).softmax(dim=-1) @ v  # (B, heads, S, C/heads)
        out: Tensor = self.out(y.transpose(1, 2).reshape(-1, queries.shape[1], self.width))  # (B, S, C)
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], self.heads, self.width // self.heads)  # (B, T, heads, C/heads)

    def _as_one_node(self, queries: Tensor, x: Tensor) -> Tensor:
        """Biases go in apart from the products: one pass over the numbers less for each."""
        q, k, v = queries @ self.q.weight, x @ self.k.weight, x @ self.v.weight
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])  # (3 C,)
        attended: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (q, k, v, bias),
            {"num_heads": self.heads},
            dtype=q.dtype,
            shape=q.shape,
            version=1,
        )
        return attended


class HeadBlock(nn.Module):
    """A Transformer block of a head but for its attention; normalised after each layer or before each."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.pre_norm = block.norm1, block.norm2, block.pre_norm
        self.up, self.down = Product.of(block.up), Product.of(block.down)

    def around(self, attention: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        if self.pre_norm:
            x = x + attention(self.norm1(x))  # (B, T, C)
            return x + self.feed(self.norm2(x))  # (B, T, C)
        x = self.norm1(x + attention(x))  # (B, T, C)
        y: Tensor = self.norm2(x + self.feed(x))  # (B, T, C)
        return y

    def feed(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class CpuConvolution(nn.Module):
    """A convolution over time as one matrix product over shifted copies: INT8 kernels know products only."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, padding: tuple[int, int]) -> None:
        """weight: (outputs, inputs, kernel); padding: zero frames before and after."""
        super().__init__()
        self.kernel, self.dilation, self.padding = weight.shape[2], dilation, padding
        self.product = Product(weight.permute(2, 1, 0).reshape(-1, weight.shape[0]), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, inputs) -> (B, T, outputs)."""
        frames = x.shape[1]
        if self.kernel > 1:
            padded = F.pad(x, (0, 0, *self.padding))
            shifts = range(0, self.kernel * self.dilation, self.dilation)
            x = torch.cat([padded[:, shift : shift + frames] for shift in shifts], dim=-1)  # (B, T, kernel * inputs)
        y: Tensor = self.product(x)
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
