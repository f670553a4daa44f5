"""Does training on the whole of Aff-Wild2 fit a workstation? A corpus of its size is generated, without its images.

Labels are written in full, features are sparse files (their rows are all zeros, and holes), crops are empty files, a
part of them as a sample. Each measurement runs in a process of its own, whose peak memory is the kernel's.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from affserve.benchmarks.measuring.processes import memory_mib
from affserve.train.corpus.affwild2 import IMAGE_ROOT_PREFIX, TRAIN, VALIDATION, open_corpus
from affserve.train.corpus.annotations import format_annotation
from affserve.train.corpus.check import PARTS, PUBLISHED, check_corpus
from affserve.train.crops import CROP_SIZE_PX
from affserve.train.features.store import DTYPE, FeatureStore, StoreDescription, seal
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Task
from affserve.train.provenance import AFF_WILD2

VIDEOS = 594  # of Aff-Wild2
WIDTH = 512  # D
FINGERPRINT = "0123456789abcdef"
GAP_EVERY_FRAMES, GAP_FRAMES = 2048, 10
LIMIT_MIB = 2048  # what training data may hold in memory
# The first training video of each task: with these every video has labels, many for several tasks, and no task trains
# on what another validates on.
TRAIN_STARTS = {VALENCE_AROUSAL.key: 0, EXPRESSION.key: 100, ACTION_UNITS.key: 194}
DECODE_CROPS, DECODE_BATCHES = 256, 4  # crops of a batch, batches of one reading
EPOCH_BATCH = 32  # windows, as the paper


def measure_feature_scale(frames: int, files: int, work_s: float, scratch: Path) -> dict[str, Any]:
    """Return what it costs to check a corpus of `frames` frames, to sample it, and to write features.

    files: crops that exist as empty files, for the check. work_s: seconds of writing, and of decoding.
    """
    lengths = video_lengths(frames)
    _write_corpus(scratch / "corpus", lengths, files)
    store = scratch / "features" / FINGERPRINT
    _write_store(store, lengths)
    written = [path.stat() for path in store.glob("*.npy")]
    measured: dict[str, Any] = {
        "videos": VIDEOS,
        "frames": sum(lengths.values()),
        "store_apparent_bytes": sum(file.st_size for file in written),
        "store_actual_bytes": sum(file.st_blocks * 512 for file in written),
        "sampling": _alone(_sample, scratch / "corpus", store),
        "writing": _alone(_write, scratch / "written", lengths, work_s),
        "checking": _alone(_check, scratch / "corpus"),
        "decoding": _alone(_decode, scratch / "crops", work_s),
        "limit_mib": LIMIT_MIB,
    }
    peaks = [measured[name]["peak_mib"] for name in ("sampling", "writing", "checking")]
    return {**measured, "within_limit": max(peaks) < LIMIT_MIB}


def video_lengths(frames: int) -> dict[str, int]:
    """Return frames by video name: skewed as Aff-Wild2's, from 73 to 47,434 where `frames` is its 3 million."""
    shares = np.random.default_rng(0).lognormal(0, 1.1, VIDEOS)
    lengths = np.maximum(1, np.round(shares / shares.sum() * frames).astype(np.int64))
    lengths[int(lengths.argmax())] += frames - lengths.sum()
    return {f"video{number}": int(length) for number, length in enumerate(lengths.tolist())}


def _write_corpus(root: Path, lengths: dict[str, int], files: int) -> None:
    """Write annotations with as many files a task and set as published, and empty crops evenly over the videos."""
    names = list(lengths)
    for task in TASKS.values():
        lines = _some_lines(task, max(lengths.values()))
        first, last = TRAIN_STARTS[task.key], TRAIN_STARTS[task.key] + PUBLISHED[task.key, TRAIN].files
        sets = {TRAIN: names[first:last], VALIDATION: names[VIDEOS - PUBLISHED[task.key, VALIDATION].files :]}
        for part, videos in sets.items():
            folder = root / "annotations" / task.challenge / part
            folder.mkdir(parents=True)
            for video in videos:
                (folder / f"{video}.txt").write_text("".join(lines[: 1 + lengths[video]]))
    for video in names:
        folder = root / IMAGE_ROOT_PREFIX / video
        folder.mkdir(parents=True)
        for number in range(1, 1 + min(lengths[video], -(-files // VIDEOS))):
            os.close(os.open(folder / f"{number:05d}.jpg", os.O_CREAT))


def _some_lines(task: Task, count: int) -> list[str]:
    rng = np.random.default_rng(1)
    high = 8 if task.columns == 1 else 2
    size = (1000, task.columns)
    values = rng.integers(0, high, size) if task.integer else rng.uniform(-1, 1, size)
    header, *lines = format_annotation(task, values.astype(np.float32)).splitlines(keepends=True)
    return [header, *(lines * (count // len(lines) + 1))]


def _write_store(folder: Path, lengths: dict[str, int]) -> None:
    """Write a store with a row for nearly every frame; the rows are holes in its files."""
    store = FeatureStore.create(folder, StoreDescription(width=WIDTH, corpus=AFF_WILD2))
    for video, frames in lengths.items():
        numbers = np.arange(1, frames + 1)
        # Most videos of Aff-Wild2 have gaps.
        numbers = numbers[(numbers + GAP_EVERY_FRAMES // 2) % GAP_EVERY_FRAMES >= GAP_FRAMES]
        path = store.path(video)
        np.lib.format.open_memmap(path, "w+", DTYPE, (len(numbers), WIDTH))  # type: ignore[no-untyped-call]
        with path.open("r+b") as file:
            seal(file, path.name, numbers)


def _alone(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a measurement in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def _sample(root: Path, store: Path) -> dict[str, Any]:
    """Start stage 2's sampler on both sets together and draw one epoch of shuffled batches."""
    import torch
    from torch.utils.data import DataLoader

    from affserve.train.features.videos import load_videos
    from affserve.train.stages.fit import WindowDataset
    from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES

    torch.set_num_threads(1)
    libraries_mib = memory_mib("VmRSS")
    watch = Stopwatch()
    corpus = open_corpus(root)
    videos = [video for part in PARTS for video in load_videos(corpus, store, list(TASKS.values()), part)]
    windows = WindowDataset(videos, WINDOW_FRAMES, STRIDE_FRAMES)
    loader = DataLoader(windows, batch_size=EPOCH_BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    batches = iter(loader)
    next(batches)
    ready = watch.lap()
    drawn = sum(len(batch["present"]) for batch in batches)
    epoch = watch.lap()
    return {
        "videos": len(videos),
        "frames": sum(video.frames for video in videos),
        "windows": len(windows),
        **ready.seconds("first_batch"),
        **epoch.rates("windows", drawn),
        "workers": 0,
        "libraries_mib": libraries_mib,
        "resident_mib": memory_mib("VmRSS"),
        "peak_mib": memory_mib("VmHWM"),
    }


def _write(folder: Path, lengths: dict[str, int], seconds: float) -> dict[str, Any]:
    """Write the features of videos as extraction does, as fast as the disk takes them."""
    rows = np.random.default_rng(0).normal(size=(max(lengths.values()), WIDTH)).astype(np.float16)
    store = FeatureStore.create(folder, StoreDescription(width=WIDTH, corpus=AFF_WILD2))
    resident: list[float] = []
    written = 0
    started = time.perf_counter()
    for video, frames in itertools.cycle(lengths.items()):
        store.write(video, np.arange(1, frames + 1), rows[:frames])
        written += frames
        resident.append(memory_mib("VmRSS"))
        if time.perf_counter() - started > seconds:
            break
    elapsed = time.perf_counter() - started
    tenth = max(1, len(resident) // 10)
    return {
        "rows": written,
        "rows_per_s": round(written / elapsed),
        "mb_per_s": round(written * rows[0].nbytes / elapsed / 1e6, 1),
        "resident_first_tenth_mib": round(statistics.median(resident[:tenth]), 1),
        "resident_last_tenth_mib": round(statistics.median(resident[-tenth:]), 1),
        "peak_mib": memory_mib("VmHWM"),
    }


def _decode(folder: Path, seconds: float) -> dict[str, Any]:
    """Decode crops as extraction does ahead of the encoder, by one thread and by two in turn."""
    from affserve.train.features.decoding import CropBatch, decoded_ahead

    paths = _write_crops(folder)
    batches = [CropBatch(video="video", paths=paths, last=False)] * DECODE_BATCHES
    laps: dict[int, list[Lap]] = {1: [], 2: []}
    begun = time.perf_counter()
    while not laps[1] or time.perf_counter() - begun < seconds:
        for threads, found in laps.items():
            watch = Stopwatch()
            with ThreadPoolExecutor(threads) as pool:
                images = sum(len(batch.numbers) for batch in decoded_ahead(pool, iter(batches), threads + 1))
            found.append(watch.lap())
    return {
        f"threads_{threads}": {
            "images_per_s": round(images / statistics.median(lap.wall_s for lap in found)),
            "images_per_cpu_s": round(images / statistics.median(lap.cpu_s for lap in found)),
        }
        for threads, found in laps.items()
    }


def _write_crops(folder: Path) -> dict[int, Path]:
    """Write crops with the smooth content of photographs; return them by number."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = {number: folder / f"{number:05d}.jpg" for number in range(1, DECODE_CROPS + 1)}
    for path in paths.values():
        small = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        size = (CROP_SIZE_PX, CROP_SIZE_PX)
        cv2.imwrite(str(path), cv2.resize(small, size, interpolation=cv2.INTER_CUBIC))
    return paths


def _check(root: Path) -> dict[str, Any]:
    """Look the corpus over, as affserve data check does."""
    watch = Stopwatch()
    corpus = open_corpus(root)
    listed = sum(len(corpus.crop_numbers(video)) for video in corpus.crop_folders)
    listing = watch.lap()
    report = check_corpus(corpus)
    return {
        "files": listed,
        **listing.rates("files", listed),
        "annotated_frames": sum(one.lines for one in report.sets),
        **watch.lap().seconds("check"),
        "peak_mib": memory_mib("VmHWM"),
    }


@dataclass(frozen=True, kw_only=True)
class Lap:
    """What a piece of work took; on a busy machine only its processor time says something about the work."""

    wall_s: float
    cpu_s: float  # of all threads

    def seconds(self, name: str) -> dict[str, float]:
        """Return both under the name of the work."""
        return {f"{name}_s": round(self.wall_s, 2), f"{name}_cpu_s": round(self.cpu_s, 2)}

    def rates(self, name: str, count: int) -> dict[str, float]:
        """Return how much was done in a second of either."""
        return {f"{name}_per_s": round(count / self.wall_s, 1), f"{name}_per_cpu_s": round(count / self.cpu_s, 1)}


class Stopwatch:
    """Takes the times of one piece of work after another."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def lap(self) -> Lap:
        """Return the times since the last lap."""
        now = time.perf_counter(), time.process_time()
        lap = Lap(wall_s=now[0] - self._started[0], cpu_s=now[1] - self._started[1])
        self._started = now
        return lap
