"""A model repository with another number of encoder instances, without a change to the repository.

Triton takes the number of instances from a model's configuration alone. So the server is given a folder of its own:
symbolic links to the models as they are, and one configuration written anew.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from affserve.export.contract import CLIP_ENCODER
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config


def with_instances(repository: Path, config_name: str, instances: int, folder: Path) -> Path | None:
    """Return a repository below `folder` that serves `repository` with so many instances of the encoder.

    None where the encoder runs on a GPU: there an instance more takes memory and gains nothing.
    """
    source = repository.resolve()
    config = read_config(config_path(source, CLIP_ENCODER.name, config_name))
    on_cpu = [group for group in config.instance_group if group.Kind.Name(group.kind) == "KIND_CPU"]
    if not on_cpu:
        return None
    on_cpu[0].count = instances
    root = folder / "models"
    root.mkdir()
    for model in served_models(source):
        if model != CLIP_ENCODER:
            (root / model.name).symlink_to(source / model.name)
    encoder = root / CLIP_ENCODER.name
    encoder.mkdir()
    (encoder / "config.pbtxt").write_text(text_format.MessageToString(config))
    for entry in (source / CLIP_ENCODER.name).iterdir():
        if entry.is_dir() and entry.name.isdecimal():
            (encoder / entry.name).symlink_to(entry)
    return root
