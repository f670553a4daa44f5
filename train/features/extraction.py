"""Between the stages: the features of every crop, computed once with the fine-tuned encoder.

In come an encoder and a corpus, out goes a feature store. What the store has already is not computed again, and what
is damaged is; several processes may each take a share. Threads decode crops ahead of the encoder, so that it does not
wait for them. A video's features are in memory until it is complete.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.errors import DataError
from affserve.train.features.decoding import CropBatch, decoded_ahead
from affserve.train.features.store import DTYPE, FeatureStore, StoreDescription, listed
from affserve.train.labels import TASKS
from affserve.train.models.device import AMP, autocast, check_device, chosen_amp
from affserve.train.models.encoder import ClipEncoder

Progress = Callable[[int, int], None]  # frames done, frames in all
NO_NUMBERS = np.zeros(0, np.int32)
Features = tuple[NDArray[np.int32], NDArray[np.float16]]  # frame numbers (m,) and the features (m, D) of their crops


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How features are computed; nothing but amp changes what they are beyond rounding."""

    batch: int = 64  # crops the encoder takes at once
    workers: int = 2  # threads that decode crops; one fills about one core
    amp: str = "none"  # autocast: none, bf16, fp16, or auto, by the device
    rank: int = 0  # this process among those that share the work, from 0
    world: int = 1  # processes that share the work

    def __post_init__(self) -> None:
        for name in ("batch", "workers", "world"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank is {self.rank}, expected 0 to {self.world - 1}: there are {self.world} processes")
        if self.amp not in AMP:
            raise DataError(f"amp is {self.amp!r}, expected one of {', '.join(AMP)}")


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction did."""

    folder: Path  # of the store
    videos: int  # of this process's share
    frames: int  # of this process's share that have features now
    computed: int  # of them in this run
    seconds: float  # wall-clock
    unreadable: tuple[Path, ...]  # crops that could not be decoded; they count as missing

    def warn(self) -> Extraction:
        """Warn of crops that could not be decoded."""
        if self.unreadable:
            warnings.warn(describe_unreadable(self.unreadable), stacklevel=2)
        return self


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """What has to be computed before the store is complete."""

    folder: Path
    description: StoreDescription
    crops: dict[str, NDArray[np.int32]]  # by video: frame numbers of its crops
    missing: dict[str, NDArray[np.int32]]  # those without a feature, by video
    damaged: tuple[str, ...] = ()  # videos whose file is not what was written

    @property
    def frames(self) -> int:
        """Crops in all."""
        return sum(len(numbers) for numbers in self.crops.values())

    @property
    def missing_frames(self) -> int:
        """Crops without a feature."""
        return sum(len(numbers) for numbers in self.missing.values())

    def describe(self) -> str:
        """Say how much there is to compute and to store."""
        width, row_bytes = self.description.width, self.description.row_bytes
        return (
            f"{self.frames:,} crops × {width} × {row_bytes // width} bytes = "
            f"{self.frames * row_bytes / 1e9:.2f} GB in {self.folder}; {self.missing_frames:,} crops "
            f"({self.missing_frames * row_bytes / 1e9:.2f} GB) to go"
            + (f"; damaged, so computed again: {listed(self.damaged, 10)}" if self.damaged else "")
        )

    def check_space(self) -> None:
        """Raise a DataError when what is missing does not fit on the disk."""
        needed = self.missing_frames * self.description.row_bytes
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"{self.folder}: {needed / 1e9:.2f} GB of features are to be written and {free / 1e9:.2f} GB are free; "
                f"make room for {(needed - free) / 1e9:.2f} GB more or choose another folder"
            )

    def share(self, rank: int, world: int) -> list[str]:
        """Return the videos of one of several processes: the same split whatever has been computed so far."""
        loads = [0] * world
        mine = []
        for video in sorted(self.crops, key=lambda video: (-len(self.crops[video]), video)):
            lightest = loads.index(min(loads))
            loads[lightest] += len(self.crops[video])
            if lightest == rank:
                mine.append(video)
        return sorted(mine)


def plan_extraction(corpus: Corpus, store: FeatureStore, videos: Sequence[str] | None = None) -> ExtractionPlan:
    """Compare the crops of some videos (None: of all that are labelled) with what a store has; no image is read."""
    if videos is None:
        videos = [v for task in TASKS.values() for part in (TRAIN, VALIDATION) for v in corpus.videos(task, part)]
    crops = {video: corpus.crop_numbers(video) for video in sorted(set(videos))}
    stored = {video: found.numbers for video in crops if (found := store.find(video))}
    return ExtractionPlan(
        folder=store.folder,
        description=store.description,
        crops=crops,
        missing={v: np.setdiff1d(crops[v], stored.get(v, NO_NUMBERS), assume_unique=True) for v in crops},
        damaged=tuple(store.damaged(crops)),
    )


def extract(
    encoder: ClipEncoder,
    fingerprint: str,
    corpus: Corpus,
    store: Path,
    *,
    device: str = "cpu",
    config: ExtractConfig | None = None,
    progress: Progress = lambda done, total: None,
    log: Callable[[str], None] = lambda text: None,
    videos: Sequence[str] | None = None,
) -> Extraction:
    """Encode this process's share of the crops of some videos; None: of all that are labelled.

    The features are in `store`/`fingerprint`; what is there is not computed again. A crop that cannot be decoded is
    left out and named in the result; it is tried again in the next run. DataError when the disk is too small for what
    is missing, before anything is computed.
    """
    config = config or ExtractConfig()
    check_device(device)
    amp = chosen_amp(config.amp, device)
    description = StoreDescription(width=encoder.config.embed_dim, corpus=corpus.image_source(), amp=amp)
    started = time.monotonic()
    opened = FeatureStore.create(store / fingerprint, description)
    plan = plan_extraction(corpus, opened, videos)
    log(plan.describe())
    plan.check_space()
    share = plan.share(config.rank, config.world)
    total = sum(len(plan.crops[video]) for video in share)
    todo = sum(len(plan.missing[video]) for video in share)
    progress(total - todo, total)
    run = _Run(encoder=encoder.eval().to(device), device=device, config=config, corpus=corpus, store=opened)
    unreadable = run.encode(plan, share, lambda count: progress(total - todo + count, total))
    return Extraction(
        folder=opened.folder,
        videos=len(share),
        frames=total - len(unreadable),
        computed=todo - len(unreadable),
        seconds=time.monotonic() - started,
        unreadable=tuple(unreadable),
    )


def describe_unreadable(paths: tuple[Path, ...]) -> str:
    """Name crops that could not be decoded."""
    named = listed([str(path) for path in paths], 10)
    return f"{len(paths)} crops cannot be decoded and count as missing: {named}; replace them and run again"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One pass over the missing crops."""

    encoder: ClipEncoder
    device: str
    config: ExtractConfig
    corpus: Corpus
    store: FeatureStore

    def encode(self, plan: ExtractionPlan, share: list[str], progress: Callable[[int], None]) -> list[Path]:
        """Compute what is missing of some videos and return the crops that could not be decoded."""
        unreadable: list[Path] = []
        computed: list[Features] = []  # of the video at hand
        done = 0
        with ThreadPoolExecutor(self.config.workers) as pool:
            for batch in decoded_ahead(pool, self._batches(plan, share), self.config.workers + 1):
                if len(batch.numbers):
                    computed.append((batch.numbers, self._features(batch.frames)))
                unreadable += [batch.crops.paths[number] for number in batch.unreadable]
                if batch.crops.last:
                    self._keep(batch.crops.video, computed)
                    computed = []
                done += len(batch.crops.paths)
                progress(done)
        return unreadable

    def _keep(self, video: str, computed: list[Features]) -> None:
        """Write the features of a video, with those it had before."""
        found = self.store.find(video)
        if found and not computed:
            return
        nothing = np.zeros((0, self.store.description.width), DTYPE)
        parts = [(found.numbers, found.read()) if found else (NO_NUMBERS, nothing), *computed]
        # Another process may have computed the same meanwhile.
        numbers, order = np.unique(np.concatenate([numbers for numbers, _ in parts]), return_index=True)
        self.store.write(video, numbers, np.concatenate([rows for _, rows in parts])[order])

    def _batches(self, plan: ExtractionPlan, share: list[str]) -> Iterator[CropBatch]:
        size = self.config.batch
        for video in share:
            numbers = plan.missing[video].tolist()
            if not numbers and self.store.find(video):
                continue
            paths = self.corpus.crops(video) if numbers else {}
            for start in range(0, max(1, len(numbers)), size):
                chosen = {number: paths[number] for number in numbers[start : start + size] if number in paths}
                yield CropBatch(video=video, paths=chosen, last=start + size >= len(numbers))

    def _features(self, frames: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode frames (B, 224, 224, 3) to features (B, D)."""
        with torch.inference_mode(), autocast(self.store.description.amp, self.device):
            tensor = torch.from_numpy(frames)
            if self.device.startswith("cuda"):
                tensor = tensor.pin_memory()  # an ordinary copy to the GPU is half as fast
            features = self.encoder(tensor.to(self.device, non_blocking=True))
            return np.asarray(features.half().cpu().numpy())
