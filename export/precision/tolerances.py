"""The precisions an artefact can be made in, and what each must keep to: every tolerance of the parity gate, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Precision(str, Enum):
    """What the numbers inside a graph are; frames go in as uint8 and answers come out as float32 in all of them."""

    FP32 = "fp32"  # the reference: PyTorch's own arithmetic
    FP16 = "fp16"  # half, with float32 islands: for TensorRT and CUDA
    BF16 = "bf16"  # the half graph, its products rounded to bfloat16 by OpenVINO: for CPUs, without quantisation
    INT8 = "int8"  # static 8 bit weights and activations in the matrix products: for CPUs


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Limits of one precision; None: not judged."""

    feature_difference: float | None  # largest absolute one, in units of the largest feature magnitude (at least 1)
    feature_cosine: float  # of the worst frame, inputs that are no faces included
    centred_cosine: float | None  # of the worst face, after the mean over the faces is taken off both
    batch_difference: float  # of a frame alone and in a batch, in the same units as feature_difference
    output_difference: float  # largest absolute one of any served value
    tie: float  # PyTorch's margin below which a decision may fall either way: twice what rounding typically moves it
    agreement: float  # fraction of decisions that are the same: expression, and action units at 0.5
    ccc: float  # of every served series with PyTorch's, over whole windows


TOLERANCES: Mapping[Precision, Tolerance] = {
    # Only the order of sums differs: some units in the sixth digit, ten times that through twelve blocks.
    Precision.FP32: Tolerance(
        feature_difference=1e-4,
        feature_cosine=0.999999,
        centred_cosine=None,
        batch_difference=1e-5,
        output_difference=1e-4,
        tie=2e-4,
        agreement=1.0,
        ccc=0.9999,
    ),
    # 11 bits round by 2^-12; over a ViT's residual sums that leaves a cosine of 0.999999, and damage shows far below
    # 0.9999: a LayerNormalization in float16 that overflows gives 0.9 and less.
    Precision.FP16: Tolerance(
        feature_difference=None,
        feature_cosine=0.9999,
        centred_cosine=None,
        batch_difference=1e-2,
        output_difference=0.05,
        tie=0.01,
        agreement=0.999,
        ccc=0.999,
    ),
    # 8 bits of every value round by 2^-9 of it; large and small values alike, which is what spares calibration.
    Precision.BF16: Tolerance(
        feature_difference=None,
        feature_cosine=0.999,
        centred_cosine=0.998,
        batch_difference=1e-2,
        output_difference=0.1,
        tie=0.02,
        agreement=0.995,
        ccc=0.998,
    ),
    # 8 bits round by 2^-9 of the largest value. A ViT in INT8 that is as good as in float32 on its task keeps 0.995 of
    # what tells faces apart, hence centred: raw features share a large constant part that hides damage. Inputs that
    # are no faces may leave the calibrated range: they are clipped, and must only stay recognisable.
    Precision.INT8: Tolerance(
        feature_difference=None,
        feature_cosine=0.97,
        centred_cosine=0.995,
        batch_difference=1e-5,
        output_difference=0.2,
        tie=0.04,
        agreement=0.99,
        ccc=0.99,
    ),
}
