"""An encoder checkpoint in, the files out that open_clip loads: `local-dir:FOLDER`, or uploaded, `hf-hub:NAME`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from affserve.train.errors import ExportError
from affserve.train.files import staged_folder

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "open_clip_config.json", "open_clip_model.safetensors", "README.md"


def write_open_clip(checkpoint: Path, folder: Path) -> None:
    """Write an encoder for open_clip; ExportError for a tower that it does not know."""
    import open_clip
    from safetensors.torch import save_file

    from affserve.train.models.checkpoint import load_encoder
    from affserve.train.models.encoder import DEMO_ARCHITECTURE, TEXT_TOWER, build_clip

    encoder, read = load_encoder(checkpoint)
    if encoder.config.architecture == DEMO_ARCHITECTURE:
        raise ExportError(
            f"{checkpoint} is {DEMO_ARCHITECTURE}, a tower of affserve's own, which open_clip does not know; train one "
            "of open_clip's architectures, such as ViT-B-32"
        )
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and holds something else; choose another folder")
    clip = build_clip(encoder.config)
    clip.visual = encoder.visual
    pixels = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "size": [224, 224]}
    shape = {"embed_dim": encoder.config.embed_dim, "quick_gelu": encoder.config.quick_gelu}
    model = {**shape, "vision_cfg": encoder.config.vision_cfg, "text_cfg": asdict(TEXT_TOWER)}
    with staged_folder(folder) as staging:
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, staging / WEIGHTS_FILE)
        (staging / CONFIG_FILE).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pixels}, indent=2) + "\n")
        (staging / CARD_FILE).write_text(
            f"---\nlibrary_name: open_clip\nlicense: other  # to be filled in\n---\n# A face encoder\n\n"
            f"{encoder.config.architecture}, trained on {read.provenance.trained_on} by affserve, fingerprint "
            f"{read.fingerprint}. `open_clip.create_model` loads it; `encode_image` gives its features. There is no "
            "text: the text tower is a placeholder with random weights.\n"
        )
