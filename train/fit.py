"""Stage 2: train a temporal head over windows of features.

In come the features of every frame, out goes a head checkpoint, the best epoch on videos never trained on. Validation
scores every labelled frame once, on predictions merged over overlapping segments: what a served video gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch import Tensor  # noqa: TID253
from torch.utils.data import DataLoader, Dataset  # noqa: TID253

from affserve.train.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.checkpoint import Provenance, save_head
from affserve.train.errors import DataError
from affserve.train.evaluation import Scores, score
from affserve.train.features import on_timeline, read_features
from affserve.train.labels import Task, task_by_key
from affserve.train.loop import check_device, to_device, warmup_cosine
from affserve.train.losses import task_losses
from affserve.train.temporal_head import TemporalHead, TemporalHeadConfig, activate
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES, Outputs, OverlapMerger


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Stage 2; the defaults are the paper's."""

    head: TemporalHeadConfig = field(default_factory=TemporalHeadConfig)
    epochs: int = 40  # passes over the windows
    batch: int = 32  # windows
    lr: float = 3e-5  # peak learning rate of AdamW
    weight_decay: float = 1e-5  # of AdamW
    window: int = WINDOW_FRAMES  # frames
    stride: int = STRIDE_FRAMES  # frames between training windows
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window <= WINDOW_FRAMES:
            raise ValueError(
                f"window is {self.window}, stride {self.stride}; expected 1 <= stride <= window <= {WINDOW_FRAMES}"
            )


@dataclass(frozen=True, kw_only=True)
class LabelledVideo:
    """One video on its annotation's timeline, frames 1..N."""

    features: NDArray[np.float32]  # (N, D), gaps held
    truth: dict[str, NDArray[np.float32]]  # (N, columns) by task
    valid: dict[str, NDArray[np.bool_]]  # (N,) by task: labelled, and its crop exists


class WindowDataset(Dataset[dict[str, Any]]):
    """Windows of at most T frames over videos, padded to T; `present` tells padding from frames."""

    def __init__(self, videos: Sequence[LabelledVideo], window: int, stride: int) -> None:
        self.videos = videos
        self.window = window
        # The last window starts where it still holds something no earlier window does.
        self.starts = [
            (index, start)
            for index, video in enumerate(videos)
            for start in range(0, max(1, len(video.features) - window + stride), stride)
        ]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, start = self.starts[item]
        video, cut = self.videos[index], slice(start, start + self.window)
        frames = len(video.features[cut])
        return {
            "features": self._padded(video.features[cut]),
            "present": np.arange(self.window) < frames,
            "truth": {key: self._padded(values[cut]) for key, values in video.truth.items()},
            "valid": {key: self._padded(values[cut]) for key, values in video.valid.items()},
        }

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        padding = [(0, self.window - len(values))] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, padding)


def load_videos(corpus: Corpus, features: Path, tasks: Sequence[Task], part: str) -> list[LabelledVideo]:
    """Lay out the videos of a set that are labelled for at least one of the tasks."""
    videos = []
    for name in corpus.part_videos(tasks, part):
        held = [task for task in tasks if name in corpus.videos(task, part)]
        frames = max(len(corpus.annotation(task, part, name).values) for task in held)
        sequence, present = on_timeline(read_features(features, name), frames)
        labels = {task.key: corpus.labels(task, part, name, np.arange(1, frames + 1)) for task in tasks}
        videos.append(
            LabelledVideo(
                features=sequence,
                truth={key: rows for key, (rows, _) in labels.items()},
                valid={key: ok & present for key, (_, ok) in labels.items()},
            )
        )
    if not videos:
        raise DataError(f"{corpus.root}: no videos in {part} for {', '.join(task.key for task in tasks)}")
    return videos


def fit(corpus: Corpus, features: Path, config: FitConfig, target: Path, log: Callable[[str], None] = print) -> Scores:
    """Train a head, write the best epoch's checkpoint to `target` and return its scores on the validation videos.

    features: the folder that extract_features returned; its name is the encoder's fingerprint.
    """
    check_device(config.device)
    torch.manual_seed(config.seed)
    tasks = [task_by_key(key) for key in config.head.tasks]
    training = load_videos(corpus, features, tasks, TRAIN)
    validation = load_videos(corpus, features, tasks, VALIDATION)
    windows = WindowDataset(training, config.window, config.stride)
    generator = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(windows, batch_size=config.batch, shuffle=True, generator=generator)
    model = TemporalHead(config.head).to(config.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * len(loader)
    # The paper warms up over the first epoch.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, len(loader)))

    best: tuple[float, Scores, dict[str, Tensor]] | None = None
    for epoch in range(config.epochs):
        model.train()
        total = 0.0
        for batch in loader:
            loss = _loss(model, to_device(batch, config.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += float(loss.detach())
        scores = evaluate_videos(model, validation, config)
        mean = float(np.mean(list(scores.by_task.values())))
        log(f"head epoch {epoch + 1}/{config.epochs}: loss {total / len(loader):.3f}, {_readable(scores)}")
        if best is None or mean > best[0]:
            best = mean, scores, copy.deepcopy(model.state_dict())

    if best is None:
        raise ValueError(f"epochs is {config.epochs}; expected at least 1")
    _, scores, weights = best
    model.load_state_dict(weights)
    save_head(target, model, _provenance(corpus, features, config, scores, windows))
    return scores


def _loss(model: TemporalHead, batch: dict[str, Any]) -> Tensor:
    raw = model(batch["features"], batch["present"])
    return torch.stack(list(task_losses(raw, batch["truth"], batch["valid"]).values())).sum()


def evaluate_videos(model: TemporalHead, videos: Sequence[LabelledVideo], config: FitConfig) -> Scores:
    """Score a head on whole videos, every labelled frame once."""
    keys = config.head.tasks
    merged = [predict_video(model, video.features, config) for video in videos]
    return score(
        {key: np.concatenate([outputs[key] for outputs in merged]) for key in keys},
        {key: np.concatenate([video.truth[key] for video in videos]) for key in keys},
        {key: np.concatenate([video.valid[key] for video in videos]) for key in keys},
    )


def predict_video(model: TemporalHead, features: NDArray[np.float32], config: FitConfig) -> Outputs:
    """Predict every frame of a video, (N, D) -> (N, K) by task, as it is served: windows of 300, 200 apart, merged."""

    def predict(segment: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            outputs = activate(model(torch.from_numpy(segment)[None].to(config.device)))
        return {key: values[0].float().cpu().numpy() for key, values in outputs.items()}

    model.eval()
    merger = OverlapMerger(predict, config.window, min(STRIDE_FRAMES, config.window))
    parts = [*merger.push(features), *merger.finish()]
    return {key: np.concatenate([part[key] for part in parts]) for key in config.head.tasks}


def _provenance(
    corpus: Corpus, features: Path, config: FitConfig, scores: Scores, windows: WindowDataset
) -> Provenance:
    return Provenance(
        trained_on=corpus.name,
        data={"fingerprint": corpus.fingerprint(), "windows": len(windows)},
        metrics=scores.summary(),
        training=asdict(config),
        encoder=features.name,
        window_frames=config.window,
        stride_frames=min(STRIDE_FRAMES, config.window),
    )


def _readable(scores: Scores) -> str:
    return ", ".join(f"{task_by_key(key).title} {value:.3f}" for key, value in scores.by_task.items())
