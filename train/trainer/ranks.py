"""Training on several processes at once: who is here, and what they must tell each other.

torchrun starts the processes and says who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK); without it there
is one. The batch of the configuration is the batch of all ranks together, in the order one process would see it: rank
r takes the r-th contiguous share. Numbers that do not add up over shares (CCC, the statistics of a batch norm, metrics)
are computed from what all ranks hold, so a step on several ranks is the step of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch  # noqa: TID253 - this file is about it
import torch.distributed as dist  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: TID253

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one training; alone, every method returns what it was given."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this rank's contiguous part of `count` things; parts differ by one at most."""
        return share_of(count, self.rank, self.world)

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Join the shares (n, ...) of all ranks to (count, ...), in order; without gradient."""
        if self.world == 1:
            return part
        most = share_of(count, 0, self.world).stop
        padded = part.new_zeros((most, *part.shape[1:]))
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        lengths = [share_of(count, rank, self.world) for rank in range(self.world)]
        return torch.cat([one[: span.stop - span.start] for one, span in zip(parts, lengths, strict=True)])

    def gather_objects(self, part: T) -> list[T]:
        """Return what each rank holds, in order of ranks."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part)
        return cast(list[T], parts)

    def total(self, values: Tensor) -> Tensor:
        """Add up a tensor over the ranks; without gradient."""
        if self.world == 1:
            return values
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    def any_of(self, *flags: bool) -> list[bool]:
        """Say for each flag whether it is set on any rank."""
        if self.world == 1:
            return list(flags)
        # On the CPU, over gloo: a question to the GPU would make it wait for the answer.
        votes = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.any_of(False)


def share_of(count: int, rank: int, world: int) -> slice:
    """Return the rank's contiguous part of `count` things; the first `count % world` ranks have one more."""
    small, more = divmod(count, world)
    start = rank * small + min(rank, more)
    return slice(start, start + small + (rank < more))


def ranks_of_environment() -> Ranks:
    """Return what torchrun says about this process; one process when there is no torchrun."""
    return Ranks(rank=int(os.environ.get("RANK", 0)), world=int(os.environ.get("WORLD_SIZE", 1)))


def local_device(device: str) -> str:
    """Return this process's own device: each rank of a machine takes the GPU of its number."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes and leave it at the end; alone, do nothing.

    device: this process's; tensors on it travel over NCCL if it is a GPU, tensors on the CPU over gloo.
    """
    ranks = ranks_of_environment()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


class _SumOverRanks(torch.autograd.Function):
    """A sum that every rank uses: its gradient is the sum of what every rank's use asks for."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


class SharedBatchNorm(nn.Module):
    """A batch norm over the samples of all ranks, under the same parameter names as PyTorch's.

    nn.SyncBatchNorm does the same on GPUs only; this one is also what the tests on CPU processes run. Ranks without a
    sample take part too.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, ...) -> (B, C, ...), normalised over everything but C."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        channel = (1, -1, *[1] * (x.ndim - 2))
        values = x.float().transpose(0, 1).flatten(1)  # (C, n)
        count = x.numel() // x.shape[1]  # n
        sums = _SumOverRanks.apply(torch.cat([values.sum(dim=1), values.new_tensor([count])]))  # (C + 1,)
        total = sums[-1].detach()
        mean = sums[:-1] / total  # (C,)
        variance = _SumOverRanks.apply((values - mean[:, None]).square().sum(dim=1)) / total  # (C,)
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        scale = self.weight * (variance + self.eps).rsqrt()  # (C,)
        normal: Tensor = (x - mean.view(channel)) * scale.view(channel) + self.bias.view(channel)
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked += 1


def share_batch_norms(model: nn.Module) -> None:
    """Replace the batch norms below a module by ones over all ranks; parameters and buffers stay the same objects."""
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, SharedBatchNorm(child))
        else:
            share_batch_norms(child)
