"""Stage 1: fine-tune the CLIP image encoder on single frames.

In come labelled crops, out goes an encoder checkpoint. As in the paper every parameter is trained, through new fully
connected layers, on the expression labels; an encoder that starts from random weights has no features to fall back on
and may be trained on all three label sets instead (`tasks`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate  # noqa: TID253

from affserve.train.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.alignment import ENCODER_SIZE_PX, to_encoder_input
from affserve.train.checkpoint import Provenance, save_encoder
from affserve.train.clip_encoder import FrameClassifier, create_encoder
from affserve.train.errors import DataError
from affserve.train.evaluation import Scores, score
from affserve.train.labels import EXPRESSION, Task, task_by_key
from affserve.train.loop import check_device, to_device, warmup_cosine
from affserve.train.losses import task_losses
from affserve.train.temporal_head import activate


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Stage 1; the defaults are the paper's where it gives them."""

    architecture: str = "ViT-B-32"  # open_clip's model name
    pretrained: str | None = "openai"  # open_clip's tag, a local file, or None for random weights
    tasks: tuple[str, ...] = (EXPRESSION.key,)  # label sets to train on
    epochs: int = 10  # passes over the frames
    batch: int = 256  # frames
    lr: float = 1e-4  # peak learning rate of AdamW
    weight_decay: float = 0.05  # of AdamW
    warmup: float = 0.05  # part of all steps in which the learning rate rises
    frame_step: int = 1  # use every n-th frame: neighbours hardly differ
    augment: bool = True  # shift, scale, turn, mirror and relight crops
    workers: int = 0  # processes that read crops; 0: the training process itself
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(task_by_key(key).key for key in self.tasks))
        for name in ("epochs", "batch", "frame_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class LabelledFrames:
    """The labelled frames of a corpus part, one row per crop; tasks a frame is not labelled for are marked invalid."""

    paths: list[Path]
    truth: dict[str, NDArray[np.float32]]  # (N, columns) by task
    valid: dict[str, NDArray[np.bool_]]  # (N,) by task


class FrameDataset(Dataset[dict[str, Any]]):
    """Crops as the encoder takes them, with their labels."""

    def __init__(self, frames: LabelledFrames, augment: bool, seed: int = 0) -> None:
        self.frames = frames
        self.augment = augment
        self.seed = seed
        self.epoch = 0  # changes what is augmented how

    def __len__(self) -> int:
        return len(self.frames.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        crop = read_crop(self.frames.paths[index])
        image = _augmented(crop, np.random.default_rng([self.seed, self.epoch, index])) if self.augment else None
        return {
            "frames": to_encoder_input(crop) if image is None else image,
            "truth": {key: values[index] for key, values in self.frames.truth.items()},
            "valid": {key: values[index] for key, values in self.frames.valid.items()},
        }


def read_crop(path: Path) -> NDArray[np.uint8]:
    """Read a crop as (H, W, 3) RGB; DataError names a file that cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path} cannot be read as an image; delete or replace it")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _augmented(crop: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Resize a crop (H, W, 3) to (224, 224, 3) through a random similarity transform, mirroring and relighting it.

    What a detector's jitter and another camera do to a face, and nothing that changes its expression. The resize and
    the transform are one interpolation, so augmented crops are no blurrier than served ones.
    """
    scale = ENCODER_SIZE_PX / crop.shape[0] * rng.uniform(0.92, 1.08)
    angle = rng.uniform(-8, 8)
    centre = (crop.shape[1] - 1) / 2, (crop.shape[0] - 1) / 2
    transform = cv2.getRotationMatrix2D(centre, angle, scale)
    shift = rng.uniform(-0.04, 0.04, 2) * ENCODER_SIZE_PX
    transform[:, 2] = transform[:, 2] + (ENCODER_SIZE_PX - 1) / 2 - np.array(centre) + shift
    size = (ENCODER_SIZE_PX, ENCODER_SIZE_PX)
    gains = rng.uniform(0.8, 1.2) * rng.uniform(0.85, 1.15, 3)  # brightness, then the white balance of each channel
    levels = np.arange(256)[:, None] * gains + rng.uniform(-15, 15)
    relit = cv2.LUT(crop, levels.clip(0, 255).astype(np.uint8)[:, None])
    mirrored = cv2.flip(relit, 1) if rng.random() < 0.5 else relit
    image = cv2.warpAffine(mirrored, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(image, dtype=np.uint8)


def labelled_frames(corpus: Corpus, tasks: Sequence[Task], part: str, frame_step: int = 1) -> LabelledFrames:
    """Collect the crops of a set that are labelled for at least one of the tasks."""
    paths: list[Path] = []
    truth: dict[str, list[NDArray[np.float32]]] = {task.key: [] for task in tasks}
    valid: dict[str, list[NDArray[np.bool_]]] = {task.key: [] for task in tasks}
    for video in corpus.part_videos(tasks, part):
        crops = corpus.crops(video)
        numbers = np.fromiter(crops, dtype=np.int64, count=len(crops))[::frame_step]
        labels = {task.key: corpus.labels(task, part, video, numbers) for task in tasks}
        keep = np.any([ok for _, ok in labels.values()], axis=0)
        paths += [crops[number] for number in numbers[keep].tolist()]
        for key, (rows, ok) in labels.items():
            truth[key].append(rows[keep])
            valid[key].append(ok[keep])
    if not paths:
        raise DataError(f"{corpus.root}: no labelled crops in {part} for {', '.join(task.key for task in tasks)}")
    return LabelledFrames(
        paths=paths,
        truth={key: np.concatenate(rows) for key, rows in truth.items()},
        valid={key: np.concatenate(rows) for key, rows in valid.items()},
    )


def finetune(corpus: Corpus, config: FinetuneConfig, target: Path, log: Callable[[str], None] = print) -> Scores:
    """Train an encoder on a corpus, write its checkpoint to `target` and return its scores on the validation videos."""
    check_device(config.device)
    torch.manual_seed(config.seed)
    tasks = [task_by_key(key) for key in config.tasks]
    dataset = FrameDataset(labelled_frames(corpus, tasks, TRAIN, config.frame_step), config.augment, config.seed)
    validation = FrameDataset(labelled_frames(corpus, tasks, VALIDATION, config.frame_step), augment=False)
    model = FrameClassifier(create_encoder(config.architecture, config.pretrained), config.tasks).to(config.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(len(dataset) / config.batch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, config.warmup * steps)
    )
    generator = torch.Generator().manual_seed(config.seed)

    for epoch in range(config.epochs):
        started, total = time.monotonic(), 0.0
        dataset.epoch = epoch
        model.train()
        for batch in _loader(dataset, config, shuffle=True, generator=generator):
            batch = to_device(batch, config.device)
            losses = task_losses(model(batch["frames"]), batch["truth"], batch["valid"])
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += float(loss.detach()) * len(batch["frames"])
        rate = len(dataset) / (time.monotonic() - started)
        log(f"encoder epoch {epoch + 1}/{config.epochs}: loss {total / len(dataset):.3f}, {rate:.0f} frames/s")

    scores = evaluate_frames(model, validation, config)
    provenance = Provenance(
        trained_on=corpus.name,
        data={"fingerprint": corpus.fingerprint(), "frames": len(dataset)},
        metrics=scores.summary(),
        training=asdict(config),
    )
    save_encoder(target, model.encoder, provenance)
    return scores


def evaluate_frames(model: FrameClassifier, dataset: FrameDataset, config: FinetuneConfig) -> Scores:
    """Score single-frame predictions on a dataset."""
    model.eval()
    outputs: dict[str, list[NDArray[np.float32]]] = {key: [] for key in config.tasks}
    with torch.inference_mode():
        for batch in _loader(dataset, config, shuffle=False):
            for key, values in activate(model(batch["frames"].to(config.device))).items():
                outputs[key].append(values.float().cpu().numpy())
    predicted = {key: np.concatenate(values) for key, values in outputs.items()}
    return score(predicted, dataset.frames.truth, dataset.frames.valid)


def _loader(
    dataset: FrameDataset, config: FinetuneConfig, *, shuffle: bool, generator: torch.Generator | None = None
) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        dataset,
        batch_size=config.batch,
        shuffle=shuffle,
        num_workers=config.workers,
        generator=generator,
        pin_memory=config.device.startswith("cuda"),
        collate_fn=default_collate,
    )
