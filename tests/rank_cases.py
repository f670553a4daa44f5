"""What test_distributed.py runs alone and, by torchrun, on two ranks: rank_cases.py CORPUS OUT [COMMAND ...]."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from restart_case import run_command
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from affserve.train.corpus.affwild2 import open_corpus
from affserve.train.labels import EXPRESSION, TASKS
from affserve.train.models.encoder import ClipEncoder, EncoderConfig, FrameClassifier
from affserve.train.models.temporal_head import TemporalHead, demo_head_config
from affserve.train.stages.finetune import frame_outputs
from affserve.train.stages.fit import FitConfig, fit, window_outputs
from affserve.train.trainer.gradient import Batch, BatchGradient, parts_of
from affserve.train.trainer.ranks import Ranks, joined_ranks, share_batch_norms

TINY_VIT = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32}
HEAD = demo_head_config(feature_width=8, width=32, layers=1, tcn_channels=(16, 16, 16), dropout=0.0)
CASES = {  # samples of the global batch and of a forward pass
    "head-of-all-tasks": (5, None),
    "head-in-micro-batches": (5, 2),
    "head-with-an-idle-rank": (1, None),
    "encoder": (5, None),
    "encoder-in-micro-batches": (7, 2),
    "encoder-with-an-idle-rank": (1, None),
}


def labels(shape: tuple[int, ...], keys: list[str]) -> Batch:
    """Random labels of which some are missing, not the same number in each sample."""
    truth, valid = {}, {}
    for key in keys:
        task = TASKS[key]
        drawn = torch.rand(*shape, task.columns)
        truth[key] = (drawn * 8).floor() if key == EXPRESSION.key else drawn.round() if task.integer else drawn * 2 - 1
        valid[key] = torch.rand(shape) < 0.7
        valid[key][0] = True
    return {"truth": truth, "valid": valid}


def gradients_of(case: str, ranks: Ranks, micro_batch: int | None = None) -> dict[str, torch.Tensor]:
    """Return the gradient of a fixed global batch by parameter, the loss as `loss`, and what batch norms remember."""
    count, split = CASES[case]
    torch.manual_seed(3)
    if case.startswith("head"):
        model: nn.Module = TemporalHead(HEAD)
        batch = {"features": torch.randn(count, 30, 8), "present": torch.ones(count, 30, dtype=torch.bool)}
        batch |= labels((count, 30), list(TASKS))
    else:
        encoder = ClipEncoder(EncoderConfig(architecture="tiny", embed_dim=16, vision_cfg=TINY_VIT))
        model = FrameClassifier(encoder, [EXPRESSION.key], dropout=0.0)
        batch = {"frames": torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8)}
        batch |= labels((count,), [EXPRESSION.key])
    wrapped = model.train()
    if ranks.world > 1:
        share_batch_norms(model)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    forward = partial(window_outputs if case.startswith("head") else frame_outputs, device="cpu")
    gradient = BatchGradient(wrapped, forward, micro_batch=micro_batch or split, ranks=ranks)
    loss = gradient(parts_of(batch, [ranks.share(count)])[0], count, step=0)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    found |= {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    return {**found, "loss": torch.tensor(loss)}


def train(corpus: Path, out: Path) -> None:
    [features] = (corpus / "features").iterdir()
    config = FitConfig(head=HEAD, epochs=3, batch=5, lr=1e-3, window=60, stride=40)
    fit(open_corpus(corpus), features, config, out, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    torch.set_num_threads(1)
    corpus, out = map(Path, sys.argv[1:3])
    with joined_ranks("cpu") as ranks:
        found = {case: gradients_of(case, ranks) for case in CASES}
        if ranks.first:
            torch.save(found, out / "gradients.pt")
        train(corpus, out / "head")
        run_command(*sys.argv[3:])
