"""The visual tower of the `affserve-demo` configuration: it learns from random weights on a CPU in minutes.

It takes and gives what ViT-B-32 does, but a plain ViT has to be shown far more faces before it sees anything. Three
differences make up for that: the patches go through convolutions first (Xiao et al. 2021, "Early convolutions help
transformers see better"), there is one Transformer block, and the output layer sees every patch at its place instead of
one summary of them.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 - this file is about it
from timm.models import register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn  # noqa: TID253 - this file is about it

PATCHES = 7 * 7  # of 32 px in a 224 px image


class DemoTower(nn.Module):
    """Convolutions, one Transformer block, one linear layer over all patches."""

    def __init__(self, outputs: int, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 12, stride=8, padding=2, bias=False),  # (B, 32, 28, 28)
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            *_convolution(32, 32, stride=1),  # (B, 32, 28, 28)
            *_convolution(32, 64, stride=2),  # (B, 64, 14, 14)
            *_convolution(64, 64, stride=1),  # (B, 64, 14, 14)
            *_convolution(64, width, stride=2),  # (B, C, 7, 7)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, PATCHES, width))
        self.block = Block(width, num_heads=4, qkv_bias=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(PATCHES * width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, 224, 224), normalised -> (B, outputs)."""
        patches = self.stem(images).flatten(2).transpose(1, 2)  # (B, 49, C)
        patches = self.norm(self.block(patches + self.positions))  # (B, 49, C)
        features: Tensor = self.out(patches.flatten(1))  # (B, outputs)
        return features


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


@register_model
def affserve_demo(num_classes: int, **_: Any) -> DemoTower:
    """Build the tower under the name that `affserve-demo.json` gives open_clip; timm passes more than it needs."""
    return DemoTower(num_classes)
