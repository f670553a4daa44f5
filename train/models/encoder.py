"""Stage 1 of the paper: the CLIP image encoder and the fully connected layers it is fine-tuned through.

In come face crops as they travel, (B, 224, 224, 3) uint8 RGB; out goes the image embedding, (B, 512), the feature of
stage 2. Cast and normalisation are part of the module, so training, export and serving cannot disagree about them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip  # noqa: TID253 - this file is about it
import torch  # noqa: TID253 - this file is about it
from torch import Tensor, nn  # noqa: TID253

import affserve.train.models.demo_tower  # noqa: F401 - makes the tower known to timm
from affserve.train.errors import CheckpointError
from affserve.train.labels import task_by_key

DEMO_ARCHITECTURE = "affserve-demo"  # a small ViT with the input and output of ViT-B-32, for CPUs and tests
open_clip.add_model_config(Path(__file__).with_name(f"{DEMO_ARCHITECTURE}.json"))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything needed to rebuild an encoder without looking anything up."""

    architecture: str  # open_clip's model name
    embed_dim: int  # D, feature width
    vision_cfg: dict[str, Any]  # open_clip's description of the visual tower
    quick_gelu: bool = False  # OpenAI's weights were trained with the QuickGELU activation

    def __post_init__(self) -> None:
        if self.vision_cfg.get("image_size", 224) != 224:
            raise CheckpointError(
                f"{self.architecture} takes images of {self.vision_cfg['image_size']} px; affserve serves 224 px: "
                "choose a 224 px variant"
            )


class ClipEncoder(nn.Module):
    """open_clip's visual tower with the preprocessing in front."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: EncoderConfig, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.visual: nn.Module = tower if tower is not None else build_clip(config).visual
        mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (B, 224, 224, 3) uint8 RGB -> features: (B, D) float."""
        # (x / 255 - mean) / std in one pass over the pixels: on a CPU the passes cost as much as a small model.
        pixels = torch.addcmul(self.shift, frames.to(self.scale.dtype), self.scale)  # (B, H, W, 3)
        features: Tensor = self.visual(pixels.permute(0, 3, 1, 2))  # (B, D)
        return features


class FrameClassifier(nn.Module):
    """The encoder with new fully connected layers, one output per task: what stage 1 trains."""

    def __init__(self, encoder: ClipEncoder, tasks: Sequence[str], hidden: int = 256, dropout: float = 0.3) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk = nn.Sequential(nn.Linear(encoder.config.embed_dim, hidden), nn.GELU(), nn.Dropout(dropout))
        self.heads = nn.ModuleDict({key: nn.Linear(hidden, task_by_key(key).outputs) for key in tasks})

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames: (B, 224, 224, 3) uint8 -> raw outputs (B, K) by task."""
        hidden = self.trunk(self.encoder(frames))  # (B, hidden)
        return {key: head(hidden) for key, head in self.heads.items()}  # (B, K) each


def create_encoder(architecture: str = "ViT-B-32", pretrained: str | None = None) -> ClipEncoder:
    """Make an encoder from open_clip's model name, with its pretrained weights (a tag or a local file) or random ones.

    CheckpointError when open_clip knows no such model or cannot get the weights.
    """
    described = open_clip.get_model_config(architecture)
    if described is None:
        raise CheckpointError(f"open_clip knows no model {architecture!r}; see open_clip.list_models()")
    config = EncoderConfig(
        architecture=architecture,
        embed_dim=described["embed_dim"],
        vision_cfg=described["vision_cfg"],
        quick_gelu=described.get("quick_gelu", False),
    )
    if pretrained is None:
        return ClipEncoder(config)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    try:
        with _quiet():
            model = open_clip.create_model(architecture, pretrained=pretrained)
    except (RuntimeError, OSError) as error:
        wanted = f"a tag such as {tags[0]}, " if tags and pretrained not in tags else ""
        raise CheckpointError(
            f"{architecture}: the pretrained weights {pretrained!r} cannot be had: {_first_line(error)}; expected "
            f"{wanted}a file of weights (--pretrained FILE), or none (--pretrained none: random weights)"
        ) from error
    # A tag may switch the activation (OpenAI's do): what was built tells, not the name.
    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in model.visual.modules())
    return ClipEncoder(EncoderConfig(**{**asdict(config), "quick_gelu": quick_gelu}), model.visual)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries log from the terminal: their last word is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return str(error).split(". ")[0].split("\n")[0].rstrip(".")


# open_clip builds towers in pairs; this is the smallest text tower there is, and nothing reads it.
TEXT_TOWER = open_clip.CLIPTextCfg(context_length=1, vocab_size=1, width=64, heads=1, layers=1)


def build_clip(config: EncoderConfig) -> Any:
    """Return open_clip's model with a tower of random weights, and TEXT_TOWER beside it."""
    vision = open_clip.CLIPVisionCfg(**config.vision_cfg)
    return open_clip.CLIP(config.embed_dim, vision, TEXT_TOWER, quick_gelu=config.quick_gelu)
