"""What training needs: time and memory of the paper's optimiser steps, images a second of the loader, bytes on a GPU.

The steps are those of training itself, at the paper's sizes and on random weights; each runs in a process of its own,
so that its peak is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch  # noqa: TID253 - this file is about it
from torch import nn  # noqa: TID253

from affserve.train.corpus.affwild2 import TRAIN, open_corpus
from affserve.train.crops import read_crop
from affserve.train.labels import EXPRESSION, task_by_key
from affserve.train.models.device import chosen_amp
from affserve.train.models.encoder import FrameClassifier, create_encoder
from affserve.train.models.temporal_head import TemporalHead
from affserve.train.stages.finetune import FinetuneConfig, frame_outputs
from affserve.train.stages.fit import FitConfig, window_outputs
from affserve.train.stages.frames import Augmentation, FrameDataset, labelled_frames
from affserve.train.stages.memory import CARD_BYTES, plan_memory
from affserve.train.trainer.gradient import Batch, BatchGradient, Forward
from affserve.train.trainer.stage import TrainingConfig
from affserve.train.windows import WINDOW_FRAMES

NUMBERS_PER_TOKEN_AND_WIDTH = 16
LAYER_NORM_INPUTS = 2  # of the 16


def vit_activation_bytes(vision: Mapping[str, Any], amp: str = "none", *, gpu: bool = False) -> float:
    """Return the formula's bytes a frame for open_clip's description of a ViT."""
    tokens = (vision.get("image_size", 224) // vision["patch_size"]) ** 2 + 1
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    size = 4 if amp == "none" else 2
    wide = LAYER_NORM_INPUTS * (4 - size) if gpu else 0
    return float(tokens * width * layers * (NUMBERS_PER_TOKEN_AND_WIDTH * size + wide))


ARCHITECTURES = ("ViT-B-32", "ViT-B-16")
MATRIX = 4096  # rows of the products that tell a device's peak
MIB = 2**20


def measure_training(corpus: Path, device: str, frames: int, repeats: int) -> dict[str, Any]:
    """Return every figure; `frames` crops are read to measure the loader, steps are repeated on a GPU."""
    measured: dict[str, Any] = {
        "loader": measure_loader(corpus, frames),
        "memory": {name: memory_arithmetic(name) for name in ARCHITECTURES},
        "encoder_step": {},
    }
    on_gpu = device.startswith("cuda")
    for name in ARCHITECTURES if on_gpu else ARCHITECTURES[:1]:
        step = partial(encoder_step, name, device=device, amp="auto" if on_gpu else "none", repeats=repeats)
        measured["encoder_step"][name] = in_a_process(step)
    measured["head_step"] = in_a_process(partial(head_step, device=device, repeats=repeats))
    return measured


def measure_loader(corpus: Path, frames: int) -> dict[str, Any]:
    """Return milliseconds of one core for each part of reading a training crop, and crops a second."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    labelled = labelled_frames(open_corpus(corpus), [task_by_key(EXPRESSION.key)], TRAIN)
    paths = labelled.paths[:frames]
    augment = Augmentation(seed=0)
    times: dict[str, list[float]] = {"read": [], "augment": []}
    for index, path in enumerate(paths):
        crop = _timed(times["read"], partial(read_crop, path))
        _timed(times["augment"], partial(augment, crop, 0, index))
    dataset = FrameDataset(labelled, augment=True)
    whole: list[float] = []
    for index in range(len(paths)):
        _timed(whole, partial(dataset.__getitem__, index))
    median = statistics.median(whole)
    return {
        "crops": len(paths),
        **{f"{name}_ms": round(1000 * statistics.median(values), 3) for name, values in times.items()},
        "crop_ms": round(1000 * median, 3),
        "images_per_s_per_core": round(1 / median, 1),
    }


def _timed(times: list[float], work: Callable[[], Any]) -> Any:
    # The process's own time: a worker has a core to itself, this process may not.
    started = time.process_time()
    result = work()
    times.append(time.process_time() - started)
    return result


def memory_arithmetic(architecture: str) -> dict[str, Any]:
    """Return the bytes of a stage-1 step by formula and as PyTorch tells them, and what fits the paper's GPU."""
    model = FrameClassifier(create_encoder(architecture), [EXPRESSION.key])
    vision = model.encoder.config.vision_cfg
    rows: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    for amp in ("none", "bf16"):
        plan = plan_memory(model, amp, "cpu")
        rows[amp] = {
            "formula_mib_per_frame": round(vit_activation_bytes(vision, amp) / MIB, 2),
            "measured_mib_per_frame": round(plan.per_frame / MIB, 2),
            "fixed_mib": round(plan.fixed / MIB, 1),
            "batch_256_gib": round(plan.needed(256) / 2**30, 2),
            "frames_in_24_gb": plan.frames(CARD_BYTES),
        }
    return rows


def encoder_step(
    architecture: str = "ViT-B-32",
    *,
    batch: int = FinetuneConfig.batch,
    micro_batch: int | None = 32,
    amp: str = "none",
    device: str = "cpu",
    repeats: int = 1,
) -> dict[str, Any]:
    """Take optimiser steps of stage 1 on random frames; on a GPU the micro batch is what fits."""
    torch.manual_seed(0)
    config = FinetuneConfig(architecture=architecture, pretrained=None, batch=batch, amp=amp)
    model = FrameClassifier(create_encoder(architecture), config.tasks).to(device)
    data: Batch = {
        "frames": torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8),
        "truth": {EXPRESSION.key: torch.randint(0, 8, (batch, 1)).float()},
        "valid": {EXPRESSION.key: torch.ones(batch, dtype=torch.bool)},
    }
    if device.startswith("cuda"):
        micro_batch = plan_memory(model, chosen_amp(amp, device), device).frames()
    gradient = _gradient(model, partial(frame_outputs, device=device), micro_batch, amp, device)
    told = _steps(gradient, data, config, repeats, torch.zeros(1, 224, 224, 3, dtype=torch.uint8, device=device))
    return {"micro_batch": micro_batch, "images_per_s": round(batch / told["seconds"], 1), **told}


def head_step(*, batch: int = FitConfig.batch, device: str = "cpu", repeats: int = 1) -> dict[str, Any]:
    """Take optimiser steps of stage 2, all tasks, on random windows of 300."""
    torch.manual_seed(0)
    config = FitConfig(batch=batch)
    model = TemporalHead(config.head).to(device)
    shape = (batch, WINDOW_FRAMES)
    tasks = [task_by_key(key) for key in config.head.tasks]
    data: Batch = {
        "features": torch.randn(*shape, config.head.feature_width),
        "present": torch.ones(shape, dtype=torch.bool),
        "truth": {task.key: torch.randint(0, 2, (*shape, task.columns)).float() for task in tasks},
        "valid": {task.key: torch.ones(shape, dtype=torch.bool) for task in tasks},
    }
    gradient = _gradient(model, partial(window_outputs, device=device), None, config.amp, device)
    sample = torch.zeros(1, WINDOW_FRAMES, config.head.feature_width, device=device)
    told = _steps(gradient, data, config, repeats, sample)
    return {"windows_per_s": round(batch / told["seconds"], 2), **told}


def _gradient(model: nn.Module, forward: Forward, micro_batch: int | None, amp: str, device: str) -> BatchGradient:
    return BatchGradient(model.train(), forward, device=device, micro_batch=micro_batch, amp=chosen_amp(amp, device))


def _steps(
    gradient: BatchGradient, data: Batch, config: TrainingConfig, repeats: int, sample: torch.Tensor
) -> dict[str, Any]:
    """Take steps and return their median time, the first one's loss, what it changed, and the peaks of memory.

    sample: one input, whose arithmetic is counted.
    """
    model, device = gradient.model, gradient.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    count = len(next(iter(data["valid"].values())))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    times: list[float] = []
    losses: list[float] = []
    cpu = time.process_time()
    for step in range(repeats):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        losses.append(gradient(data, count, step))
        gradient.scaler.step(optimizer)
        gradient.scaler.update()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    cpu = (time.process_time() - cpu) / repeats
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told: dict[str, Any] = {
        "batch": count,
        "amp": gradient.amp,
        "threads": torch.get_num_threads(),
        "seconds": round(statistics.median(times[1:] or times), 3),
        "cpu_seconds": round(cpu, 3),  # of all threads together: what other programs take is not in it
        "loss": losses[0],
        "tensors_changed": sum(changed),
        "tensors": len(changed),
        "peak_resident_mib": round(peak),
    }
    if device.startswith("cuda"):
        told["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / MIB)
    rate = 3 * count * _forward_flops(model, sample) / told["seconds"]
    peak_rate = matrix_peak(gradient.amp, device)
    told |= {"gflops": round(rate / 1e9, 1), "matrix_peak_gflops": round(peak_rate / 1e9, 1)}
    return {**told, "of_peak": round(rate / peak_rate, 3)}


def _forward_flops(model: nn.Module, one: torch.Tensor) -> float:
    """Return the floating-point operations of a forward pass over one sample, a multiply-add counting two."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(one)
    return float(counter.get_total_flops())


def matrix_peak(amp: str, device: str) -> float:
    """Return the operations a second of large matrix products, in the type that a step computes in."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.float32)
    rows = MATRIX if device.startswith("cuda") else MATRIX // 4
    a = torch.randn(rows, rows, device=device).to(kind)
    times: list[float] = []
    for _ in range(10):
        started = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * rows**3 / float(np.median(times))


def in_a_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run in a fresh process and return what it returned."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)
