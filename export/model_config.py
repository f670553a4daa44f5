"""Triton model configurations: the committed templates made true for one set of trained heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from affserve.export.contract import TASK_OUTPUTS, HeadDescription


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with Triton's own protobuf; unknown fields are errors."""
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def write_config(template: Path, place: Path, tasks: Sequence[str], description: HeadDescription | None) -> None:
    """Write `template` to `place` without the outputs of tasks that were not trained and with what the head tells.

    description: None for a model that does not tell labels (the encoder).
    """
    if description is None:
        place.write_text(template.read_text())
        return
    config = read_config(template)
    untrained = [key for key in TASK_OUTPUTS if key not in tasks]
    _drop(config.output, [output for output in config.output if output.name in untrained])
    for step in config.ensemble_scheduling.step:
        for key in untrained:
            step.output_map.pop(key, None)
    config.parameters.clear()
    for key, value in description.to_parameters().items():
        config.parameters[key].string_value = value
    heading = template.read_text().splitlines()[0]
    place.write_text(f"{heading}\n{text_format.MessageToString(config)}")


def _drop(repeated: Any, items: Sequence[Any]) -> None:
    for item in items:
        repeated.remove(item)
