"""The folder that the server takes for its repository: exactly our models, with so many instances of the encoder.

Triton loads whatever lies in its repository, and takes the number of instances from a model's configuration alone. So
it is given a folder of its own: symbolic links to our models as they are and, for more instances, one configuration
written anew. The repository itself stays unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from affserve.export.contract import CLIP_ENCODER
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config


def lay_out_models(repository: Path, engine: str, instances: int, folder: Path) -> Path:
    """Return a folder below `folder` with the models of `repository`, of the encoder so many instances.

    Where the encoder runs on a GPU there is one: an instance more takes memory and gains nothing.
    """
    source = repository.resolve()
    config = _cpu_config(source / CLIP_ENCODER.name, engine, instances) if instances > 1 else None
    root = folder / "models"
    root.mkdir()
    for model in served_models(source):
        if config is None or model != CLIP_ENCODER:
            (root / model.name).symlink_to(source / model.name)
    if config is not None:
        _write_encoder(root / CLIP_ENCODER.name, config, source / CLIP_ENCODER.name)
    return root


def _write_encoder(encoder: Path, config: Any, source: Path) -> None:
    encoder.mkdir()
    (encoder / "config.pbtxt").write_text(text_format.MessageToString(config))
    for entry in source.iterdir():
        if entry.is_dir() and entry.name.isdecimal():
            (encoder / entry.name).symlink_to(entry)


def _cpu_config(model: Path, engine: str, instances: int) -> Any | None:
    config = read_config(config_path(model.parent, model.name, engine))
    on_cpu = [group for group in config.instance_group if group.Kind.Name(group.kind) == "KIND_CPU"]
    if not on_cpu:
        return None
    on_cpu[0].count = instances
    return config
