"""How many frames fit a GPU in one forward and backward pass of stage 1.

What a training step holds, in bytes, P being the parameters:

    weights 4 P, gradients 4 P, AdamW's two moments 8 P; several ranks: 4 P of buckets; autocast: 2 P of cast weights
    activations a frame: 16 x tokens x width x layers numbers, in a ViT

The 16 are, per token and block and in units of the width: the inputs of two layer norms (2) and their outputs, which
the linear layers keep (2), query, key and value (3), the attention's output (1), the hidden layer of the MLP before and
after its activation, four widths each (8). Attention itself keeps one number a head and token: its matrix is computed
again. A number has 4 bytes, 2 under autocast, where a GPU keeps the two layer norm inputs at 4.

    ViT-B-32: 16 x  50 x 768 x 12 =  7.4 M numbers:  29 MB a frame,  17 MB under autocast on a GPU
    ViT-B-16: 16 x 197 x 768 x 12 = 29.0 M numbers: 116 MB a frame,  65 MB under autocast on a GPU

So 256 frames of ViT-B-32 fit 24 GB at once and ViT-B-16 takes two halves. Training does not trust the formula: it asks
PyTorch what a frame of the model at hand keeps, which holds for any architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch  # noqa: TID253 - this file is about it
from torch import Tensor, nn  # noqa: TID253

from affserve.train.models.device import autocast

CARD_BYTES = 24e9  # of the paper's GPUs
RESERVED_BYTES = 1.5e9  # CUDA itself, workspaces of its libraries
SLACK = 1.25  # what a backward pass holds for a moment, and what is lost between blocks of memory


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a training step of a model holds, in bytes."""

    fixed: float  # whatever the batch
    per_frame: float  # activations

    def needed(self, frames: int) -> float:
        """Return the bytes of a pass over so many frames."""
        return RESERVED_BYTES + self.fixed + SLACK * self.per_frame * frames

    def frames(self, budget: float = CARD_BYTES) -> int:
        """Return how many frames fit at once; at least one."""
        return max(1, int((budget - RESERVED_BYTES - self.fixed) / (SLACK * self.per_frame)))


def plan_memory(model: nn.Module, amp: str, device: str, *, ranks: int = 1) -> MemoryPlan:
    """Measure what a step of a model of frames (B, 224, 224, 3) keeps; the model is on the device."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    per_parameter = 16 + (4 if ranks > 1 else 0) + (2 if amp != "none" else 0)
    # The difference: what is kept once, such as cast weights, is no part of a frame.
    per_frame = saved_bytes(model, 2, amp, device) - saved_bytes(model, 1, amp, device)
    return MemoryPlan(fixed=per_parameter * parameters, per_frame=per_frame)


def saved_bytes(model: nn.Module, frames: int, amp: str, device: str) -> int:
    """Return the bytes that a forward pass over some frames keeps for the backward pass, parameters not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no storage's place is used twice

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept.setdefault(place, tensor)
        return tensor

    was_training = model.training
    model.eval()  # leaves the statistics of batch norms alone; dropout is a few numbers a frame
    images = torch.zeros(frames, 224, 224, 3, dtype=torch.uint8, device=device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(amp, device):
        model(images)
    model.train(was_training)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
