"""Stage 2 of the paper: TCN -> Transformer encoder -> MLP over the features of a segment, and ensembles of such heads.

In come features (B, T, D), out go raw outputs (B, T, K) for every task the head is trained for; `activate` turns raw
outputs into what is served. The paper's ablations are switches of this model. Sizes that the paper leaves open are
those of the same authors' ABAW6 configuration. The folds of a cross-validation give several heads that share encoder
and tasks, not sizes; `HeadEnsemble` answers with their mean wherever a single head does.

A head streams when `context_frames` limits what each Transformer layer looks back at, or a GRU stands in its place: the
TCN is causal, frame i attends to the frames j in (i - W, i], and a bounded state holds all that later frames need.
`forward` takes a whole sequence, `stream` any number of frames and the state after those before: the same numbers. A
look-ahead of L frames is a plain delay: the answer for frame t is what comes out at position t + L, and at the end of a
sequence its last frame is held for L more positions. So whoever calls `stream` leaves out the first L answers and, at
the end, sends the last frame L times more. Beside the TCN's output at t + L, the Transformer is shown the feature of t:
convolutions that look back remember L frames ago badly (action units lost .05 F1 of drawn films by that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch  # noqa: TID253 - this file is about it
import torch.nn.functional as F  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn.utils.parametrizations import weight_norm  # noqa: TID253

from affserve.train.labels import TASKS, Kind, task_by_key

NORMS = ("post", "pre")


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
    norm: str = "post"  # where a Transformer block normalises: post, as the paper's authors, or pre
    context_frames: int | None = None  # W, last frames, its own included, a layer attends to; None: whole segment
    lookahead_frames: int = 0  # L, frames that the answers of a head that streams are late
    recurrent: bool = False  # GRU layers in the Transformer's place: the simplest head that streams

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
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}; expected {' or '.join(NORMS)}")
        if self.recurrent and self.context_frames is not None:
            raise ValueError("context_frames limits attention, and a recurrent head has none; expected one of the two")
        if self.context_frames is not None and self.context_frames < 1:
            raise ValueError(f"context_frames is {self.context_frames}; expected at least 1, the frame itself")
        if self.lookahead_frames < 0 or (self.lookahead_frames and not self.streams):
            raise ValueError(
                f"lookahead_frames is {self.lookahead_frames}; expected 0 or more, and 0 unless context_frames is "
                "given or the head is recurrent: others see the whole segment"
            )
        if self.streams and self.use_tcn and not self.causal:
            raise ValueError("causal is False, but a head that streams cannot see ahead; expected lookahead_frames")

    @property
    def streams(self) -> bool:
        """Whether the head can answer frame by frame with a bounded state."""
        return self.recurrent or self.context_frames is not None

    @property
    def attends(self) -> bool:
        """Whether there are Transformer layers."""
        return self.use_encoder and not self.recurrent and self.layers > 0

    @property
    def reach_frames(self) -> int | None:
        """How many positions before one have a part in what comes out at it; None: all there are."""
        if self.recurrent or (self.attends and self.context_frames is None):
            return None
        tcn = sum(2 * (k - 1) * d for k, d in zip(self.tcn_kernels, self.tcn_dilations, strict=True))
        attention = self.layers * (self.context_frames - 1) if self.attends and self.context_frames else 0
        return (max(tcn, self.lookahead_frames) if self.use_tcn else 0) + attention


State = tuple[Tensor, ...]  # what a stream remembers, batch first: see TemporalHead.initial_state


class Memory:
    """A state on its way through the layers: each takes its own part and leaves what it needs the next time."""

    def __init__(self, state: State) -> None:
        self._left = iter(state)
        self.after: list[Tensor] = []

    def take(self) -> Tensor:
        """Return the next part."""
        return next(self._left)

    def joined(self, x: Tensor, dim: int) -> Tensor:
        """Put the frames before in front of the frames of x, and leave as many of the last ones."""
        before = self.take()
        joined = torch.cat([before, x], dim=dim)
        self.after.append(joined.narrow(dim, joined.shape[dim] - before.shape[dim], before.shape[dim]))
        return joined


class TemporalConv(nn.Module):
    """A dilated convolution over time that keeps the length; causal or centred."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, causal: bool) -> None:
        super().__init__()
        reach = (kernel - 1) * dilation
        self.left, self.right = (reach, 0) if causal else (reach - reach // 2, reach // 2)
        self.conv = weight_norm(nn.Conv1d(inputs, outputs, kernel, dilation=dilation))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """x: (B, C_in, T) -> (B, C_out, T); without memory, zeros are before."""
        y: Tensor = self.conv(memory.joined(x, dim=2) if memory else F.pad(x, (self.left, self.right)))
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

    def forward(self, x: Tensor, present: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """x: (B, C_in, T), present: (B, T) bool or None -> (B, C_out, T)."""
        y = x
        for layer in self.body:
            if isinstance(layer, TemporalConv):
                # Beyond the end of a segment a convolution sees zeros, in a padded batch as in a segment of its own.
                y = layer(y if present is None else y * present[:, None], memory)
            else:
                y = layer(y)
        out: Tensor = self.activation(y + self.around(x))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, then a feed-forward layer; normalised after each, as in the original, or before each."""

    def __init__(self, config: TemporalHeadConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feedforward)
        self.down = nn.Linear(config.feedforward, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Memory | None = None) -> Tensor:
        """x: (B, T, C), mask: (..., T, keys) bool or None, False where a frame is not looked at -> (B, T, C)."""
        if self.pre_norm:
            x = x + self.drop(self.attend(self.norm1(x), mask, memory))  # (B, T, C)
            x = x + self.drop(self.feed(self.norm2(x)))  # (B, T, C)
            return x
        x = self.norm1(x + self.drop(self.attend(x, mask, memory)))  # (B, T, C)
        x = self.norm2(x + self.drop(self.feed(x)))  # (B, T, C)
        return x

    def attend(self, x: Tensor, mask: Tensor | None, memory: Memory | None = None) -> Tensor:
        """x: (B, T, C) -> (B, T, C); keys are the frames of x, after those in memory."""
        b, t, c = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.heads, c // self.heads)  # (B, T, 3, heads, C/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, C/heads) each
        if memory:
            k, v = memory.joined(k, dim=2), memory.joined(v, dim=2)  # (B, heads, W - 1 + T, C/heads) each
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, T, C/heads)
        out: Tensor = self.out(y.transpose(1, 2).reshape(b, t, c))  # (B, T, C)
        return out

    def feed(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        out: Tensor = self.down(self.drop(F.relu(self.up(x))))
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
        self.answered = config.feature_width if config.use_tcn and config.lookahead_frames else 0  # D of what is beside
        self.project = nn.Conv1d(sizes[-1] + self.answered, config.width, 1)
        self.encoder = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers if config.attends else 0))
        self.gru = _gru(config) if config.recurrent else None
        self.mlps = nn.ModuleDict({key: OutputLayers(config, task_by_key(key).outputs) for key in config.tasks})

    def forward(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool, False where padding -> raw outputs (B, T, K) by task.

        Padding is behind the frames.
        """
        late = self.config.lookahead_frames
        h = self.hidden(*(_last_frame_held(features, present, late) if late else (features, present)))  # (B, T + L, C)
        return {key: mlp(h[:, late:], present) for key, mlp in self.mlps.items()}  # (B, T, K) each

    def hidden(self, features: Tensor, present: Tensor | None, memory: Memory | None = None) -> Tensor:
        """features: (B, T, D), present: (B, T) bool or None -> h (B, T, C)."""
        f = features.transpose(1, 2)  # (B, D, T)
        g = f
        for residual in self.tcn:
            g = residual(g, present, memory)  # (B, C_out, T)
        if self.answered:
            g = torch.cat([g, self._late(f, memory)], dim=1)  # (B, C_out + D, T)
        h: Tensor = self.project(g).transpose(1, 2)  # (B, T, C)
        if self.gru is not None:
            return self._recurrence(h, memory)
        mask = self._mask(h, present, memory)
        for block in self.encoder:
            h = block(h, mask, memory)  # (B, T, C)
        return h

    def _late(self, f: Tensor, memory: Memory | None) -> Tensor:
        """Delay features (B, D, T) by the look-ahead: at each position that of the frame that is answered there."""
        late = self.config.lookahead_frames
        return (memory.joined(f, dim=2) if memory else F.pad(f, (late, 0)))[..., : f.shape[2]]

    def _recurrence(self, x: Tensor, memory: Memory | None) -> Tensor:
        """x: (B, T, C) -> (B, T, C)."""
        before = memory.take().transpose(0, 1).contiguous() if memory else None  # (layers, B, C)
        h, after = cast(nn.GRU, self.gru)(x, before)
        if memory:
            memory.after.append(after.transpose(0, 1))
        return cast(Tensor, h)

    def _mask(self, x: Tensor, present: Tensor | None, memory: Memory | None) -> Tensor | None:
        """Say which frames each frame looks at, (..., T, keys) bool; None: at all of them. x: (B, T, C)."""
        context = self.config.context_frames
        if not self.encoder or context is None:
            return None if present is None else present[:, None, None, :]  # (B, 1, 1, T)
        frames = torch.arange(x.shape[1], device=x.device)
        if memory is None:
            age = frames[:, None] - frames  # (T, T); padding is behind the frames, where nobody looks
            return (age >= 0) & (age < context)
        seen = memory.take()  # (B,)
        memory.after.append((seen + x.shape[1]).clamp(max=context - 1))
        keys = torch.arange(1 - context, x.shape[1], device=x.device)  # (W - 1 + T,)
        age = frames[:, None] - keys  # (T, W - 1 + T)
        there = keys >= -seen[:, None]  # (B, W - 1 + T)
        return ((age >= 0) & (age < context) & there[:, None])[:, None]  # (B, 1, T, W - 1 + T)

    def answers(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool -> what is served, (B, T, K) by task."""
        return activate(self(features, present))

    def initial_state(self, batch: int = 1) -> State:
        """Return the state of `batch` streams before their first frame.

        In order: the last inputs (B, C_in, reach) of each convolution, zeros; behind a TCN with a look-ahead the last L
        features (B, D, L); how many frames the keys hold (B,) int64, at most W - 1; the last keys and values
        (B, heads, W - 1, C/heads) of each block. Of a GRU: (B, layers, C).
        """
        config, like = self.config, self.project.weight
        convolutions = [module for module in self.tcn.modules() if isinstance(module, TemporalConv)]
        state = [like.new_zeros(batch, module.conv.in_channels, module.left) for module in convolutions]
        if self.answered:
            state.append(like.new_zeros(batch, self.answered, config.lookahead_frames))
        if self.encoder:
            past = cast(int, config.context_frames) - 1
            state.append(like.new_zeros(batch, dtype=torch.int64))
            shape = (batch, config.heads, past, config.width // config.heads)
            state += [like.new_zeros(shape) for _ in range(2 * len(self.encoder))]
        if self.gru is not None:
            state.append(like.new_zeros(batch, config.layers, config.width))
        return tuple(state)

    def stream(self, features: Tensor, state: State) -> tuple[dict[str, Tensor], State]:
        """features: (B, T, D), the next frames -> what is served at their positions, (B, T, K) by task, and the state.

        With a look-ahead of L it is about the frames L before.
        """
        memory = Memory(state)
        h = self.hidden(features, None, memory)  # (B, T, C)
        return activate({key: mlp(h) for key, mlp in self.mlps.items()}), tuple(memory.after)


def _gru(config: TemporalHeadConfig) -> nn.GRU:
    dropout = config.dropout if config.layers > 1 else 0.0
    return nn.GRU(config.width, config.width, config.layers, batch_first=True, dropout=dropout)


def _last_frame_held(features: Tensor, present: Tensor | None, more: int) -> tuple[Tensor, Tensor | None]:
    """Hold the last frame of each sequence for some more. features: (B, T, D), present: (B, T) bool or None."""
    b, t, d = features.shape
    frames = features.new_full((b,), t, dtype=torch.int64) if present is None else present.sum(dim=1)  # (B,)
    positions = torch.arange(t + more, device=features.device)
    source = torch.minimum(positions, frames[:, None] - 1).clamp_min(0)  # (B, T + more)
    held = features.gather(1, source[..., None].expand(-1, -1, d))  # (B, T + more, D)
    return held, None if present is None else positions < frames[:, None] + more


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


def gru_of_similar_cost(config: TemporalHeadConfig) -> TemporalHeadConfig:
    """Return two GRU layers of twice the width in place of TCN and Transformer, for about as much arithmetic."""
    return replace(config, recurrent=True, context_frames=None, use_tcn=False, layers=2, width=2 * config.width)


class HeadEnsemble(nn.Module):
    """The mean over heads of their activated outputs: a mean of distributions is a distribution."""

    def __init__(self, members: Sequence[TemporalHead]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble of no heads; expected at least one")
        first = members[0].config
        for member in members[1:]:
            for name in ("tasks", "feature_width", "streams", "lookahead_frames"):
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
        """What all members share: read `tasks`, `feature_width`, `streams` and `lookahead_frames` only."""
        return self.heads[0].config

    def answers(self, features: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """features: (B, T, D), present: (B, T) bool -> what is served, (B, T, K) by task."""
        return _mean([head.answers(features, present) for head in self.heads])

    def initial_state(self, batch: int = 1) -> State:
        """Return the states of all members, one after the other."""
        return tuple(part for head in self.heads for part in head.initial_state(batch))

    def stream(self, features: Tensor, state: State) -> tuple[dict[str, Tensor], State]:
        """Do what TemporalHead.stream does."""
        parts = iter(state)
        each: list[dict[str, Tensor]] = []
        after: list[Tensor] = []
        for head in self.heads:
            answers, left = head.stream(features, tuple(islice(parts, len(head.initial_state()))))
            each.append(answers)
            after += left
        return _mean(each), tuple(after)


def _mean(each: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([answers[key] for answers in each]).mean(dim=0) for key in each[0]}
