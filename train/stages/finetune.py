"""Stage 1: fine-tune the CLIP image encoder on single frames.

In come labelled crops, out goes an encoder checkpoint, of the epoch that does best on videos never trained on. As in
the paper every parameter is trained, through new fully connected layers, on the expression labels; an encoder that
starts from random weights has no features to fall back on and may be trained on all three label sets (`tasks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch import Tensor, nn  # noqa: TID253
from torch.utils.data import DataLoader, Subset  # noqa: TID253

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.evaluation.prediction import Validation
from affserve.train.evaluation.scores import OFFICIAL, Scores, score
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
from affserve.train.trainer.loop import run_training, shuffled
from affserve.train.trainer.losses import balanced_order, loss_weights
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
    (train.training_state). CheckpointError when another training is there.
    """
    description = {"stage": "encoder", "config": config.description(), "corpus": corpus.fingerprint()}
    return run_training(target, config, description, partial(_stage, corpus, config), log, fresh)


def _stage(corpus: Corpus, config: FinetuneConfig, ranks: Ranks, device: str) -> Stage:
    tasks = [task_by_key(key) for key in config.tasks]
    frames = labelled_frames(corpus, tasks, TRAIN, config.frame_step, hold_out=config.hold_out)
    dataset = FrameDataset(frames, config.augment, config.seed)
    held_out = FrameDataset(labelled_frames(corpus, tasks, VALIDATION, config.frame_step), augment=False)
    model = FrameClassifier(create_encoder(config.architecture, config.pretrained), config.tasks).to(device)
    amp = chosen_amp(config.amp, device)

    def order(epoch: int) -> NDArray[np.int64]:
        if config.balance.sampling == "balanced":
            return balanced_order(frames.truth, frames.valid, np.random.default_rng([config.seed, epoch]))
        return shuffled(config.seed, epoch, len(dataset))

    def save(path: Path, scores: Scores) -> str:
        provenance = Provenance(
            trained_on=corpus.name,
            data={"fingerprint": corpus.fingerprint(), "frames": len(dataset)},
            metrics=scores.summary(),
            training=asdict(config),
        )
        return save_encoder(path, model.encoder, provenance)

    return Stage(
        name="encoder",
        model=model,
        dataset=dataset,
        order=order,
        samples=len(dataset),
        frames_per_sample=1,
        forward=partial(frame_outputs, device=device),
        validate=partial(validate_frames, model, held_out, config, device),
        save=save,
        begin_epoch=partial(setattr, dataset, "epoch"),
        warmup_steps=config.warmup * config.passes * -(-len(dataset) // config.batch),
        weights=loss_weights(config.balance, frames.truth, frames.valid, device),
        micro_batch=plan_memory(model, amp, device, ranks=ranks.world).frames(),
    )


def frame_outputs(model: nn.Module, batch: Batch, device: str) -> dict[str, Tensor]:
    """Return the raw outputs (B, K) by task of a batch of frames; B may be 0."""
    frames = batch["frames"].to(device, non_blocking=True)
    if len(frames):
        outputs: dict[str, Tensor] = model(frames)
        return outputs
    # A Vision Transformer cannot take no frames, and a rank without any still has to take part.
    outputs = model(frames.new_zeros((1, *frames.shape[1:])))
    return {key: values[:0] for key, values in outputs.items()}


def validate_frames(
    model: FrameClassifier,
    dataset: FrameDataset,
    config: FinetuneConfig,
    device: str,
    ranks: Ranks,
    now_and_then: Callable[[], None] = lambda: None,
) -> Validation:
    """Score single-frame predictions on a whole dataset; each rank predicts its share."""
    span = ranks.share(len(dataset))
    loader = DataLoader(
        Subset(dataset, range(span.start, span.stop)),
        batch_size=config.batch,
        num_workers=config.workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),
        pin_memory=device.startswith("cuda"),
    )
    outputs: dict[str, list[NDArray[np.float32]]] = {key: [] for key in config.tasks}
    for batch in loader:
        now_and_then()
        with autocast(chosen_amp(config.amp, device), device):
            raw = frame_outputs(model, batch, device)
        for key, values in activate({key: value.float() for key, value in raw.items()}).items():
            outputs[key].append(values.cpu().numpy())
    mine = {key: np.concatenate(values) if values else None for key, values in outputs.items()}
    parts = ranks.gather_objects(mine)
    predicted = {key: np.concatenate([p for part in parts if (p := part[key]) is not None]) for key in config.tasks}
    truth, valid = dataset.frames.truth, dataset.frames.valid
    return Validation(
        scores={OFFICIAL: score(predicted, truth, valid)},
        predicted={OFFICIAL: predicted},
        truth={OFFICIAL: truth},
        valid={OFFICIAL: valid},
    )
