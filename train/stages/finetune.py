"""Stage 1: fine-tune the CLIP image encoder on single frames.

In come labelled crops, out goes an encoder checkpoint, of the epoch that does best on videos never trained on. As in
the paper every parameter is trained, through new fully connected layers, on the expression labels; an encoder that
starts from random weights has no features to fall back on and may be trained on all three label sets (`tasks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.utils.data import DataLoader, Subset  # noqa: TID253

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.corpus.annotations import untaught
from affserve.train.evaluation.prediction import Validation
from affserve.train.evaluation.scores import OFFICIAL, Scores
from affserve.train.labels import EXPRESSION, task_by_key
from affserve.train.models.checkpoint import save_encoder
from affserve.train.models.device import autocast, chosen_amp
from affserve.train.models.encoder import FrameClassifier, create_encoder
from affserve.train.models.temporal_head import activate
from affserve.train.provenance import Provenance
from affserve.train.stages.frames import FrameDataset, labelled_frames
from affserve.train.stages.memory import plan_memory
from affserve.train.trainer.gradient import Batch
from affserve.train.trainer.log import Log
from affserve.train.trainer.loop import run_training
from affserve.train.trainer.losses import drawn_order, loss_weights
from affserve.train.trainer.ranks import Ranks
from affserve.train.trainer.run_folder import Fresh
from affserve.train.trainer.stage import Stage, TrainingConfig
from affserve.train.trainer.stop import ignore_signals


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Stage 1; the defaults are the paper's where it gives them."""

    architecture: str = "ViT-B-32"  # open_clip's model name
    pretrained: str | None = "openai"  # open_clip's tag, a local file, or None for random weights
    tasks: tuple[str, ...] = (EXPRESSION.key,)  # label sets to train on
    epochs: int = 10  # passes over the frames
    batch: int = 256  # frames of an optimiser step
    # micro_batch: frames of a forward pass; None: as many as fit 24 GB (stages.memory)
    weight_decay: float = 0.05  # of AdamW
    clip_norm: float | None = 1.0  # largest norm of the gradient
    warmup: float = 0.05  # part of all steps in which the learning rate rises
    frame_step: int = 1  # use every n-th frame: neighbours hardly differ
    augment: bool = True  # turn, shift, scale, mirror and relight crops

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(task_by_key(key).key for key in self.tasks))
        if self.frame_step < 1:
            raise ValueError(f"frame_step is {self.frame_step}; expected at least 1")
        if self.balance.sampling == "balanced" and EXPRESSION.key not in self.tasks:
            raise ValueError(f"sampling is balanced, over expressions, but tasks are {', '.join(self.tasks)}")


def finetune(corpus: Corpus, config: FinetuneConfig, target: Path, log: Log = print, *, fresh: Fresh = False) -> Scores:
    """Train an encoder on a corpus, write its best checkpoint to `target` and return its scores on validation videos.

    Run again after it was stopped or killed, it goes on; its state, log and last checkpoint are in `<target>.run/`
    (trainer.run_folder). CheckpointError when another training is there.
    """
    fingerprint = corpus.fingerprint()
    description = {"stage": "encoder", "config": config.description(), "corpus": fingerprint, "images": corpus.images}
    return run_training(target, config, description, partial(_Frames, corpus, config, fingerprint), log, fresh)


class _Frames(Stage):
    """Single frames, shuffled or balanced."""

    name = "encoder"
    frames_per_sample = 1

    def __init__(self, corpus: Corpus, config: FinetuneConfig, fingerprint: str, ranks: Ranks, device: str) -> None:
        """fingerprint: of the corpus."""
        tasks = [task_by_key(key) for key in config.tasks]
        frames = labelled_frames(corpus, tasks, TRAIN, config.frame_step, hold_out=config.hold_out)
        self.dataset: FrameDataset = FrameDataset(frames, config.augment, config.seed)
        self.held_out = FrameDataset(labelled_frames(corpus, tasks, VALIDATION, config.frame_step), augment=False)
        encoder = create_encoder(config.architecture, config.pretrained)
        self.model: FrameClassifier = FrameClassifier(encoder, config.tasks).to(device)
        self.config, self.device, self.seed = config, device, config.seed
        self.amp = chosen_amp(config.amp, device)
        self.samples = len(self.dataset)
        self.warmup_steps = config.warmup * config.passes * -(-self.samples // config.batch)
        self.weights = loss_weights(config.balance, frames.truth, frames.valid, device)
        self.micro_batch = plan_memory(self.model, self.amp, device, ranks=ranks.world).frames()
        data = {"fingerprint": fingerprint, "images": corpus.images, "frames": self.samples}
        data |= untaught(frames.truth, frames.valid)
        self.provenance = Provenance(trained_on=corpus.name, data=data, training=asdict(config))

    def order(self, epoch: int) -> NDArray[np.int64]:
        self.dataset.epoch = epoch
        frames, rng = self.dataset.frames, np.random.default_rng([self.seed, epoch])
        if self.config.balance.sampling == "balanced":
            return drawn_order(rng, frames.weights, frames.truth, frames.valid)
        return drawn_order(rng, frames.weights)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return frame_outputs(model, batch, self.device)

    def validate(self, ranks: Ranks, now_and_then: Callable[[], None]) -> Validation:
        span = ranks.share(len(self.held_out))
        loader = DataLoader(
            Subset(self.held_out, range(span.start, span.stop)),
            batch_size=self.config.batch,
            num_workers=self.config.workers,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),
            pin_memory=self.device.startswith("cuda"),
        )
        keys = self.config.tasks
        mine: dict[str, list[NDArray[np.float32]]] = {key: [] for key in keys}
        for batch in loader:
            now_and_then()
            with autocast(self.amp, self.device):
                raw = self.forward(self.model, batch)
            for key, values in activate({key: value.float() for key, value in raw.items()}).items():
                mine[key].append(values.cpu().numpy())
        parts = ranks.gather_objects(mine)
        predicted = {key: np.concatenate([piece for part in parts for piece in part[key]]) for key in keys}
        frames = self.held_out.frames
        whose = dict.fromkeys(keys, frames.person)
        return Validation(arrays={OFFICIAL: (predicted, frames.truth, frames.valid, whose)})

    def save(self, path: Path, scores: Scores) -> str:
        return save_encoder(path, self.model.encoder, replace(self.provenance, **scores.record()))


def frame_outputs(model: nn.Module, batch: Batch, device: str) -> dict[str, Tensor]:
    """Return the raw outputs (B, K) by task of a batch of frames; B may be 0."""
    frames = batch["frames"].to(device, non_blocking=True)
    if len(frames):
        outputs: dict[str, Tensor] = model(frames)
        return outputs
    # A Vision Transformer cannot take no frames, and a rank without any still has to take part.
    outputs = model(frames.new_zeros((1, *frames.shape[1:])))
    return {key: values[:0] for key, values in outputs.items()}
