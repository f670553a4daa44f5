"""Stage 2 of the paper: TCN -> Transformer encoder -> MLP over the features of a segment, and ensembles of such heads.

In come features (B, T, D), out go raw outputs (B, T, K) for every task the head is trained for; `activate` turns raw
outputs into what is served. The paper's ablations are switches of this model. Sizes that the paper leaves open are
those of the same authors' ABAW6 configuration. The folds of a cross-validation give several heads that share encoder
and tasks, not sizes; `HeadEnsemble` answers with their mean wherever a single head does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch  # noqa: TID253 - this file is about it
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn.utils.parametrizations import weight_norm  # noqa: TID253

from affserve.train.labels import TASKS, Kind, task_by_key


@dataclass(frozen=True, kw_only=True)
class TemporalHeadConfig:
    """Every size of the head; one trunk serves all tasks named."""

    tasks: tuple[str, ...] = tuple(TASKS)  # keys of train.labels.TASKS
    feature_width: int = 512  # D, width of the encoder's features
    use_tcn: bool = True  # False: the paper's ablation "without TCN"
    use_encoder: bool = True  # False: the paper's ablation "without temporal encoder"
    tcn_channels: tuple[int, ...] = (768, 256, 128)  # output channels of each residual block
    tcn_kernels: tuple[int, ...] = (5, 5, 5)  # frames
    tcn_dilations: tuple[int, ...] = (1, 2, 4)  # frames
    causal: bool = True  # whether the TCN sees only the past; the Transformer sees the whole segment
    width: int = 512  # C, width of the Transformer
    heads: int = 4  # attention heads
    layers: int = 8  # Transformer blocks
    feedforward: int = 512  # hidden width of a Transformer block
    mlp_width: int = 256  # hidden width of the output layers
    dropout: float = 0.3  # probability

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(task_by_key(key).key for key in self.tasks))
        for name in ("tcn_channels", "tcn_kernels", "tcn_dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.tasks:
            raise ValueError("tasks is empty; expected at least one task")
        if not len(self.tcn_channels) == len(self.tcn_kernels) == len(self.tcn_dilations):
            raise ValueError(
                f"tcn_channels, tcn_kernels and tcn_dilations have {len(self.tcn_channels)}, {len(self.tcn_kernels)} "
                f"and {len(self.tcn_dilations)} entries; expected one each per block"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class TemporalConv(nn.Module):
    """A dilated convolution over time that keeps the length; causal or centred."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, causal: bool) -> None:
        super().__init__()
        reach = (kernel - 1) * dilation
        self.left, self.right = (reach, 0) if causal else (reach - reach // 2, reach // 2)
        self.conv = weight_norm(nn.Conv1d(inputs, outputs, kernel, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, T) -> (B, C_out, T)."""
        y: Tensor = self.conv(F.pad(x, (self.left, self.right)))
        return y


class ResidualBlock(nn.Module):
    """Two dilated convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, config: TemporalHeadConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                TemporalConv(channels, outputs, kernel, dilation, config.causal),
                nn.PReLU(),
                nn.Dropout(config.dropout),
            ]
        self.body = nn.Sequential(*layers)
        self.around = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.activation = nn.PReLU()

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """x: (B, C_in, T), present: (B, T) bool or None -> (B, C_out, T)."""
        y = x
        for layer in self.body:
            # Beyond the end of a segment a convolution sees zeros, in a padded batch as in a segment of its own.
            y = layer(y * present[:, None] if present is not None and isinstance(layer, TemporalConv) else y)
        out: Tensor = self.activation(y + self.around(x))
        return out


class TransformerBlock(nn.Module):
    """Self-attention over the segment, then a feed-forward layer; normalised after each, as in the original."""

    def __init__(self, config: TemporalHeadConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feedforward)
        self.down = nn.Linear(config.feedforward, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x: (B, T, C), present: (B, T) bool or None -> (B, T, C)."""
        x = self.norm1(x + self.drop(self.attend(x, present)))  # (B, T, C)
        x = self.norm2(x + self.drop(self.down(self.drop(F.relu(self.up(x))))))  # (B, T, C)
        return x

    def attend(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x: (B, T, C) -> (B, T, C); frames where `present` is False are looked at by none."""
        b, t, c = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.heads, c // self.heads)  # (B, T, 3, heads, C/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, C/heads) each
        mask = None if present is None else present[:, None, None, :]  # (B, 1, 1, T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, T, C/heads)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, c))  # (B, T, C)
        return out


class OutputLayers(nn.Module):
    """The MLP of one task."""

    def __init__(self, config: TemporalHeadConfig, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.width, config.mlp_width)
        self.norm = nn.BatchNorm1d(config.mlp_width)
        self.drop = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.mlp_width, outputs)

    def forward(self, h: Tensor, present: Tensor | None = None) -> Tensor:
        """h: (B, T, C), present: (B, T) bool or None -> (B, T, K)."""
        x = self.normalised(self.hidden(h), present)  # (B, T, M)
        y: Tensor = self.out(self.drop(F.relu(x)))  # (B, T, K)
        return y

    def normalised(self, x: Tensor, present: Tensor | None) -> Tensor:
        """x: (B, T, M) -> (B, T, M); the statistics are those of frames, padding is zero."""
        if present is None or int(present.sum()) == 1:  # one frame alone has no statistics
            y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)  # (B, T, M)
            return y
        frames: Tensor = self.norm(x[present])  # (n, M)
        return frames.new_zeros(x.shape).index_put((present,), frames)


class TemporalHead(nn.Module):
    """f -> g = TCN(f) -> h = TransformerEncoder(g) -> y = MLP(h), frame for frame."""

    def __init__(self, config: TemporalHeadConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.feature_width, *config.tcn_channels) if config.use_tcn else (config.feature_width,)
        blocks = zip(sizes[:-1], sizes[1:], config.tcn_kernels, config.tcn_dilations, strict=False)
        self.tcn = nn.Sequential(*(ResidualBlock(*block, config) for block in blocks))
        self.project = nn.Conv1d(sizes[-1], config.width, 1)
        self.encoder = nn.ModuleList(
            TransformerBlock(config) for _ in range(config.layers if config.use_encoder else 0)
        )
        self.mlps = nn.ModuleDict({key: OutputLayers(config, task_by_key(key).outputs) for key in config.tasks})

    def forward(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool, False where padding -> raw outputs (B, T, K) by task."""
        f = features.transpose(1, 2)  # (B, D, T)
        for residual in self.tcn:
            f = residual(f, present)  # (B, C_out, T)
        g = self.project(f).transpose(1, 2)  # (B, T, C)
        h = g
        for block in self.encoder:
            h = block(h, present)  # (B, T, C)
        return {key: mlp(h, present) for key, mlp in self.mlps.items()}  # (B, T, K) each

    def answers(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool -> what is served, (B, T, K) by task."""
        return activate(self(features, present))


ACTIVATIONS: dict[Kind, Callable[[Tensor], Tensor]] = {
    "regression": lambda x: x.clamp(-1, 1),
    "one_of": lambda x: x.softmax(dim=-1),
    "any_of": torch.sigmoid,
}


def activate(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn raw outputs (..., K) into what is served: values in [-1, 1], a distribution, or probabilities."""
    return {key: ACTIVATIONS[TASKS[key].kind](value) for key, value in raw.items()}


def demo_head_config(**changes: Any) -> TemporalHeadConfig:
    """Return the configuration of a head that a CPU trains in a minute, with `changes` to its fields."""
    sizes: dict[str, Any] = {"width": 128, "layers": 2, "feedforward": 256, "mlp_width": 128}
    return TemporalHeadConfig(**{"tcn_channels": (128, 128, 128), **sizes, **changes})


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
