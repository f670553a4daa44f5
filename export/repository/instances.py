"""The folder that the server takes for its repository: exactly our models, as this machine is to compute them.

Triton loads whatever lies in its repository, and takes the number of instances and the backend from a model's
configuration alone. So it is given a folder of its own: symbolic links to our models as they are and, for more
instances or another backend, configurations written anew. The repository itself stays unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf import text_format

from affserve.export.contract import CLIP_ENCODER
from affserve.export.repository.check import config_path, served_models
from affserve.export.repository.templates import read_config


def lay_out_models(
    repository: Path, engine: str, instances: int, folder: Path, stand_ins: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Return a folder below `folder` with the models of `repository`, of the encoder so many instances (on each GPU).

    stand_ins: backends and what computes in their place.
    """
    source = repository.resolve()
    root = folder / "models"
    root.mkdir()
    for model in served_models(source):
        count = instances if model == CLIP_ENCODER else 1
        config = _changed(config_path(source, model.name, engine), count, stand_ins)
        if config is not None:
            _write_model(root / model.name, config, source / model.name)
        else:
            (root / model.name).symlink_to(source / model.name)
    return root


def _changed(path: Path, instances: int, stand_ins: Mapping[str, str]) -> Any | None:
    """Return a configuration as it is to be here; None when it is as it stands."""
    if instances == 1 and not stand_ins:
        return None
    config = read_config(path)
    if more := instances > 1 and bool(config.instance_group):  # an ensemble has none
        config.instance_group[0].count = instances
    if other := stand_ins.get(config.backend):
        config.backend = other
    return config if more or other else None


def _write_model(place: Path, config: Any, source: Path) -> None:
    place.mkdir()
    (place / "config.pbtxt").write_text(text_format.MessageToString(config))
    for entry in source.iterdir():
        if entry.is_dir() and entry.name.isdecimal():
            (place / entry.name).symlink_to(entry)
