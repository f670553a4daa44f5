"""The gradient of one global batch, whatever it is split into: micro batches, ranks, or both.

The loss of a batch is not the mean over its parts. Cross-entropy divides by the labelled frames of the whole batch, so
each part weighs with its own; 1 - CCC is no sum over frames at all, so its derivative by the outputs is taken where all
outputs are together, and carried back through each part. Batch norms see a micro batch at a time, as with any
accumulation; across ranks they see all (trainer.ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from torch import Tensor, nn  # noqa: TID253
from torch.nn.parallel import DistributedDataParallel  # noqa: TID253

from affserve.train.errors import DataError
from affserve.train.labels import TASKS
from affserve.train.models.device import autocast
from affserve.train.trainer.losses import SUMS_OVER_FRAMES, UNWEIGHTED, LossWeights, loss_denominators, task_losses
from affserve.train.trainer.ranks import Ranks, share_of

TINY = 1e-12  # in place of a denominator of 0: its numerator is 0 too

Batch = dict[str, Any]  # nested dictionaries of tensors whose first axis is the batch
Forward = Callable[[nn.Module, Batch], dict[str, Tensor]]


def step_seed(seed: int, *place: int) -> int:
    """Return the seed of everything random at one place (step, rank, micro batch) of a training.

    So nothing random needs to be remembered: a step draws the same however the training got there.
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def parts_of(batch: Batch, spans: list[slice]) -> list[Batch]:
    """Cut a nested dictionary of tensors along the first axis."""

    def cut(value: Any, span: slice) -> Any:
        return {key: cut(one, span) for key, one in value.items()} if isinstance(value, dict) else value[span]

    return [cut(batch, span) for span in spans]


@dataclass(eq=False)
class BatchGradient:
    """Adds the gradient of a global batch to the parameters of a model."""

    model: nn.Module  # as `forward` takes it, wrapped in DistributedDataParallel when there are several ranks
    forward: Forward
    _: KW_ONLY
    device: str = "cpu"
    micro_batch: int | None = None  # how many of a rank's samples go through the model at once; None: all
    amp: str = "none"
    weights: LossWeights = UNWEIGHTED
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    seed: int = 0

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.partition(":")[0], enabled=self.amp == "fp16")

    def __call__(self, batch: Batch, count: int, step: int) -> float:
        """Add the gradient of this rank's share of a batch of `count` samples; return the loss of the whole batch."""
        parts = parts_of(batch, self._spans(count))
        sums = all(SUMS_OVER_FRAMES[TASKS[key].kind] for key in batch["truth"])
        loss = self._by_parts(parts, step) if sums else self._by_outputs(parts, count, step)
        if not np.isfinite(loss):
            raise DataError(
                f"the loss of step {step} is {loss}; expected a finite number: lower the learning rate, choose amp "
                "none, or look for broken features"
            )
        return loss

    def _spans(self, count: int) -> list[slice]:
        """Cut the rank's share into micro batches, as many on every rank: batch norms of all ranks meet."""
        most = share_of(count, 0, self.ranks.world).stop
        mine = self.ranks.share(count)
        pieces = -(-most // (self.micro_batch or most))
        return [share_of(mine.stop - mine.start, piece, pieces) for piece in range(pieces)]

    def _by_parts(self, parts: list[Batch], step: int) -> float:
        """Weigh each part's loss by its share in the denominator of the whole batch."""
        shares = [loss_denominators(part["truth"], part["valid"], self.weights) for part in parts]
        keys = list(shares[0])
        local = torch.stack([torch.stack([share[key] for share in shares]).sum() for key in keys])
        totals = dict(zip(keys, self.ranks.total(local.to(self.device)), strict=True))
        sums = []
        for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
            truth, valid = _on(part["truth"], self.device), _on(part["valid"], self.device)
            with self._synchronised(last=index == len(parts) - 1):
                losses = task_losses(self._outputs(self.model, part, step, index), truth, valid, self.weights)
                weighed = [losses[key] * (share[key].to(self.device) / totals[key].clamp_min(TINY)) for key in keys]
                loss = torch.stack(weighed).sum()
                # DistributedDataParallel averages over the ranks; what is wanted is the sum.
                self.scaler.scale(loss * self.ranks.world).backward()
            sums.append(loss.detach())
        return float(self.ranks.total(torch.stack(sums).sum()))

    def _by_outputs(self, parts: list[Batch], count: int, step: int) -> float:
        """Take the derivative of the whole batch's loss by its outputs and carry it back through each part.

        With several parts the outputs are computed twice, first without their graphs.
        """
        several = len(parts) > 1
        plain = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        with torch.set_grad_enabled(not several):
            outputs = [
                self._outputs(plain if several else self.model, part, step, index) for index, part in enumerate(parts)
            ]
        loss, gradients = self._output_gradients(outputs, parts, count)
        start = 0
        for index, part in enumerate(parts):
            with self._synchronised(last=index == len(parts) - 1):
                raw = self._outputs(self.model, part, step, index) if several else outputs[index]
                size = len(next(iter(raw.values())))
                cut = [gradients[key][start : start + size].to(raw[key].dtype) for key in raw]
                torch.autograd.backward(list(raw.values()), cut)
            start += size
        return loss

    def _output_gradients(
        self, outputs: list[dict[str, Tensor]], parts: list[Batch], count: int
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of the global batch and its derivative by this rank's outputs."""
        keys = list(outputs[0])

        def joined(tensors: list[Tensor]) -> Tensor:
            mine = torch.cat([tensor.detach().to(self.device) for tensor in tensors])
            return self.ranks.gather(mine, count)

        raw = {key: joined([one[key] for one in outputs]).float().requires_grad_() for key in keys}
        truth = {key: joined([part["truth"][key] for part in parts]) for key in keys}
        valid = {key: joined([part["valid"][key].to(torch.uint8) for part in parts]).bool() for key in keys}
        loss = torch.stack(list(task_losses(raw, truth, valid, self.weights).values())).sum()
        scaled = self.scaler.scale(loss * self.ranks.world)
        mine = self.ranks.share(count)
        gradients = torch.autograd.grad(scaled, list(raw.values()))
        return float(loss.detach()), {key: one[mine] for key, one in zip(keys, gradients, strict=True)}

    def _outputs(self, model: nn.Module, part: Batch, step: int, index: int) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(self.seed, step, self.ranks.rank, index))
        with autocast(self.amp, self.device):
            return self.forward(model, part)

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        """Let the ranks add up their gradients in the backward pass of the last part only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()


def _on(tensors: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {key: tensor.to(device, non_blocking=True) for key, tensor in tensors.items()}
