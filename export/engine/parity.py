"""A plan against the graph it was built from: the same inputs through TensorRT on the GPU and ONNX Runtime on the CPU.

The graph has been compared with PyTorch on real crops before; what is left to prove is that TensorRT computes the
graph. So the inputs are generated: every kind of length of the profile, and frames that are meant to hurt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID253 - this file compares with it
from numpy.typing import NDArray

from affserve.export.artefacts.comparing import Check, cosines
from affserve.export.artefacts.parity import adversarial_frames
from affserve.export.engine.profile import Profile, Runner, Shape

# Half precision has 11 bits: one rounding is 5e-4 of a value. The two runtimes add in different orders and round in
# different places; what a fault does (a wrong kernel, an overflow, a lost layer) is far beyond these.
WORST_COSINE = 0.9999  # of the outputs of any one frame
LARGEST_DIFFERENCE = 0.02  # in units of the largest output magnitude (at least 1)
SAMPLES = 8  # different frames in a batch; longer batches repeat them, so that ONNX Runtime computes few


def compare_with_graph(runner: Runner, onnx: Path, profile: Profile) -> list[Check]:
    """Compare what a plan computes with what its graph does; runner: the plan as a function."""
    session = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (name,) = profile.shapes
    checks: list[Check] = []
    for values, different in batches(profile):
        length = f"batch of {values.shape[0]}" if profile.model.max_batch_size else f"T = {values.shape[1]}"
        truth = session.run(names, {name: values[:different]})
        for output, expected, found in zip(names, truth, runner(values), strict=True):
            checks += compare(f"{output}, {length}", expected, found)
    return checks


def batches(profile: Profile) -> list[tuple[NDArray[Any], int]]:
    """Return inputs of the profile's lengths, each with how many of its first rows are different."""
    (smallest, optimum, largest), generator = next(iter(profile.shapes.values())), np.random.default_rng(0)
    if profile.model.max_batch_size:
        return [_frames(shape, generator) for shape in (smallest, (SAMPLES, *optimum[1:]), optimum, largest)]
    lengths = sorted({smallest[1], smallest[1] + 1, largest[1] - 1, largest[1]})
    return [(_features((1, length, largest[2]), generator), 1) for length in lengths]


def _frames(shape: Shape, generator: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
    """Black, white, noise and smooth gradients, repeated to fill the batch."""
    ramps = np.linspace(0, 255, shape[1])[None, :, None, None] * generator.random((SAMPLES, 1, shape[2], 3))
    different = np.concatenate([adversarial_frames(), ramps.astype(np.uint8)])[:SAMPLES]
    return np.resize(different, shape), min(SAMPLES, shape[0])


def _features(shape: Shape, generator: np.random.Generator) -> NDArray[np.float32]:
    return generator.normal(size=shape).astype(np.float32)


def compare(what: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> list[Check]:
    """Compare one output, (rows, ..., K) as the graph gives it, with the plan's; more rows of the plan repeat them."""
    if found.shape[1:] != expected.shape[1:]:
        return [Check(what=f"{what}: shape", figure=float("nan"), limit=0.0, at_least=False)]
    truth = np.resize(expected, found.shape)
    scale = max(1.0, float(np.abs(truth).max()))
    rows, answers = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (truth, found))
    difference = float(np.abs(answers - rows).max()) / scale
    checks = [Check(what=f"{what}: difference", figure=difference, limit=LARGEST_DIFFERENCE, at_least=False)]
    if truth.shape[-1] > 2:  # the direction of a pair near zero, such as valence and arousal, is noise
        worst = f"{what}: cosine of the worst frame"
        checks.append(Check(what=worst, figure=float(cosines(rows, answers).min()), limit=WORST_COSINE, at_least=True))
    return checks
