"""What 8 bits do to a product of an activation and a weight: scales, and how much noise they make.

Rounding to steps of width d adds noise of power d^2 / 12. Channels are taken as independent: an estimate that is good
enough to choose between ways of rounding, not to say how good one is; parity says that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ACTIVATION_STEPS = 255  # uint8
WEIGHT_STEPS = 127  # int8, symmetric: -127 to 127
# Rounding of activations differs from token to token, and attention and sums over the layers average it out; rounding
# of weights is the same everywhere and adds up. Its power counts this many times as much: found on a ViT-B-32, where 1
# made smoothing double the error of the features.
SYSTEMATIC = 10
SMALLEST_SCALE = 1e-10  # of tensors that are all zero

Array = NDArray[np.float32]


@dataclass
class ChannelRange:
    """What calibration saw of one activation, per channel."""

    low: Array  # (C,)
    high: Array  # (C,)
    mean: Array  # (C,)
    variance: Array  # (C,)

    def divided(self, factors: Array) -> ChannelRange:
        """Return what would have been seen had the channels been divided by positive factors (C,)."""
        return ChannelRange(
            low=self.low / factors,
            high=self.high / factors,
            mean=self.mean / factors,
            variance=self.variance / factors**2,
        )


def activation_scale(seen: ChannelRange) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point of a whole activation; zero itself is always exact."""
    low, high = min(0.0, float(seen.low.min())), max(0.0, float(seen.high.max()))
    scale = max((high - low) / ACTIVATION_STEPS, SMALLEST_SCALE)
    return np.float32(scale), np.uint8(np.clip(round(-low / scale), 0, ACTIVATION_STEPS))


def weight_scales(weight: Array) -> Array:
    """Return one scale per output channel of a weight (inputs, outputs): (outputs,)."""
    scales: Array = np.maximum(np.abs(weight).max(axis=0) / WEIGHT_STEPS, SMALLEST_SCALE).astype(np.float32)
    return scales


def noise_power(seen: ChannelRange, weight: Array) -> float:
    """Estimate the power that rounding both of them adds to all outputs of activation @ weight, in effect."""
    power = float((np.square(seen.mean.astype(np.float64)) + seen.variance).sum())
    of_weight = float(np.square(weight_scales(weight), dtype=np.float64).sum()) / 12 * power
    return _activation_noise(seen, weight) + SYSTEMATIC * of_weight


def signal_to_noise(seen: ChannelRange, weight: Array) -> float:
    """Estimate how far what varies in the outputs stands above the rounding of the activation, as a ratio of powers."""
    signal = float(seen.variance.astype(np.float64) @ np.square(weight, dtype=np.float64).sum(axis=1))
    return signal / max(_activation_noise(seen, weight), 1e-30)


def _activation_noise(seen: ChannelRange, weight: Array) -> float:
    step, _ = activation_scale(seen)
    return float(step) ** 2 / 12 * float(np.square(weight, dtype=np.float64).sum())
