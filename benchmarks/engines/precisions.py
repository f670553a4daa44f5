"""What a precision gains and costs on this CPU: PyTorch's eager modules against the exported graphs, in one run.

Everything that is compared is timed in turns, so that what else the machine does disturbs all alike; figures are
medians and ratios of medians. The heads have the paper's sizes. Artefacts that fail parity are timed too, and say so.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this file measures it

from affserve.export.artefacts.making import make_artefacts
from affserve.export.artefacts.material import CALIBRATION_FRAMES, PARITY_FRAMES, Material, generated_material
from affserve.export.artefacts.parity import Artefact
from affserve.export.artefacts.timing import in_turns, runner, timed_feed
from affserve.export.contract import CLIP_ENCODER, FEATURES, FRAMES, TEMPORAL_HEAD
from affserve.export.graphs.head import HeadGraph
from affserve.export.precision.tolerances import Precision
from affserve.train.labels import TASKS
from affserve.train.models.checkpoint import load_encoder
from affserve.train.models.encoder import ClipEncoder, create_encoder
from affserve.train.models.temporal_head import TemporalHead, TemporalHeadConfig

BATCHES = (1, 8, 32)  # frames
ROUNDS = {1: 20, 8: 7, 32: 4}  # by batch
FP16_UP_TO = 8  # frames: ONNX Runtime converts FP16 to and fro on a CPU, and larger batches only take longer
HEAD_ROUNDS = 15
EAGER = "pytorch_eager"


def measure_precisions(
    architecture: str,
    encoder_path: Path | None,
    threads: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return speeds, parity and build times of one architecture; without a checkpoint its weights are random."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if encoder_path is not None:
        encoder, checkpoint = load_encoder(encoder_path)
        architecture = encoder.config.architecture
        weights = f"trained on {checkpoint.provenance.trained_on}"
    else:
        encoder, weights = create_encoder(architecture), "random"
    progress("faces")
    material = generated_material(PARITY_FRAMES, CALIBRATION_FRAMES)
    with tempfile.TemporaryDirectory() as scratch:
        separate = _measure(encoder, _three_heads(), Path(scratch), tuple(Precision), material, threads, progress)
        shared = _measure_heads(encoder, _one_trunk(), Path(scratch), material, threads, progress)
    return {
        "architecture": architecture,
        "encoder_weights": weights,
        "head_weights": "random, the paper's sizes",
        "threads": threads,
        "inputs": "generated faces",
        **separate,
        "head_one_trunk": shared,
    }


def _three_heads() -> list[TemporalHead]:
    return [TemporalHead(TemporalHeadConfig(tasks=(key,))).eval() for key in TASKS]


def _one_trunk() -> list[TemporalHead]:
    return [TemporalHead(TemporalHeadConfig()).eval()]


def _measure(
    encoder: ClipEncoder,
    heads: list[TemporalHead],
    folder: Path,
    precisions: Sequence[Precision],
    material: Material,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    wanted = {CLIP_ENCODER.name: precisions, TEMPORAL_HEAD.name: precisions}
    artefacts = make_artefacts(encoder, HeadGraph(heads), folder, wanted, material, progress)
    made_s = time.perf_counter() - started
    progress("speed")
    encoders = [one for one in artefacts if one.model == CLIP_ENCODER.name]
    return {
        "all_artefacts_seconds": round(made_s, 1),
        "artefacts": [_describe(one) for one in artefacts],
        "encoder": {f"batch_{batch}": _encoder_speed(encoder, encoders, batch, threads) for batch in BATCHES},
        "head_three_trunks": _head_speed(heads, artefacts, threads),
    }


def _measure_heads(
    encoder: ClipEncoder,
    heads: list[TemporalHead],
    folder: Path,
    material: Material,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    below = folder / "one_trunk"
    below.mkdir()
    wanted = {TEMPORAL_HEAD.name: (Precision.FP32, Precision.INT8)}
    artefacts = make_artefacts(encoder, HeadGraph(heads), below, wanted, material, progress)
    return {"artefacts": [_describe(one) for one in artefacts], "speed": _head_speed(heads, artefacts, threads)}


def _encoder_speed(encoder: ClipEncoder, artefacts: Sequence[Artefact], batch: int, threads: int) -> dict[str, Any]:
    feed = timed_feed(CLIP_ENCODER.name, batch)
    frames = torch.from_numpy(feed[FRAMES.name])
    runs = {EAGER: _eager(lambda: encoder(frames))}
    for one in artefacts:
        if one.precision is not Precision.FP16 or batch <= FP16_UP_TO:
            runs[one.precision.value] = runner(one.path, feed, threads)
    times_s = in_turns(list(runs.values()), ROUNDS[batch])
    return _speeds(dict(zip(runs, times_s, strict=True)), "frames_per_second", batch)


def _head_speed(heads: Sequence[TemporalHead], artefacts: Sequence[Artefact], threads: int) -> dict[str, Any]:
    feed = timed_feed(TEMPORAL_HEAD.name)
    features = torch.from_numpy(feed[FEATURES.name])
    runs = {EAGER: _eager(lambda: [head.answers(features) for head in heads])}
    for one in artefacts:
        if one.model == TEMPORAL_HEAD.name:
            runs[one.precision.value] = runner(one.path, feed, threads)
    times_s = in_turns(list(runs.values()), HEAD_ROUNDS)
    return _speeds(dict(zip(runs, times_s, strict=True)), "windows_per_second", 1)


def _eager(run: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            run()

    return call


def _speeds(times_s: Mapping[str, Sequence[float]], unit: str, items: int) -> dict[str, Any]:
    medians_s = {name: statistics.median(times) for name, times in times_s.items()}
    return {
        name: {
            "median_ms": round(1000 * median_s, 2),
            "fastest_ms": round(1000 * min(times_s[name]), 2),
            unit: round(items / median_s, 2),
            "times_as_fast_as_eager": round(medians_s[EAGER] / median_s, 2),
        }
        for name, median_s in medians_s.items()
    }


def _describe(artefact: Artefact) -> dict[str, Any]:
    return {
        "model": artefact.model,
        "precision": artefact.precision.value,
        "passed": artefact.passed,
        "bytes": artefact.path.stat().st_size,
        "seconds": round(artefact.seconds, 1),
        "notes": list(artefact.notes),
        "parity": [asdict(check) for check in artefact.checks],
    }
