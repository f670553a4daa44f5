"""What may differ between two pictures of the same face and expression: the augmentation of stage 1.

What a detector's jitter and another camera do to a face, and nothing that changes its expression: a little turned,
moved, scaled, relit, and mirrored. A crop (112, 112, 3) stays one; it is then resized as a served crop is.
"""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode, v2  # noqa: TID253 - this file is about it

from affserve.train.gradients import step_seed

TURN_DEGREES = 8.0
SHIFT = 0.04  # of the side
SCALE = (0.92, 1.08)
BRIGHTNESS, CONTRAST, SATURATION = 0.25, 0.2, 0.2
MARGIN_PX = 12  # what turning and shifting can bring into view: the border, repeated


class Augmentation:
    """Transforms of crops that depend on nothing but (seed, epoch, index)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION),
                v2.Pad(MARGIN_PX, padding_mode="edge"),
                v2.RandomAffine(TURN_DEGREES, (SHIFT, SHIFT), SCALE, interpolation=InterpolationMode.BILINEAR),
            ]
        )

    def __call__(self, crop: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """Return another picture (H, W, 3) of a crop (H, W, 3)."""
        # torchvision draws from PyTorch's generator, which others draw from too: it is put back.
        generator = torch.default_generator
        before = generator.get_state()
        try:
            generator.manual_seed(step_seed(self.seed, epoch, index))
            # Colour planes one after the other: half the time of a view on pixels.
            planes = torch.from_numpy(crop).permute(2, 0, 1).contiguous()
            image = self._transform(planes)  # (3, H + 2 margin, W + 2 margin)
        finally:
            generator.set_state(before)
        inside = image[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX].permute(1, 2, 0)  # (H, W, 3)
        return np.ascontiguousarray(inside.numpy())
