"""Triton model configurations: the committed templates made true for one set of trained heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from affserve.export import engine_sets
from affserve.export.contract import MODELS, MODELS_WITH_LABELS, TASK_OUTPUTS, TEMPORAL_STREAM, HeadDescription
from affserve.export.engine_sets import ONNX_RUNTIME
from affserve.export.precision.tolerances import Precision
from affserve.train.files import file_sha256

TEMPLATES = Path(__file__).parents[2] / "model_repository"


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt with Triton's own protobuf; unknown fields are errors."""
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def write_config(
    template: Path,
    place: Path,
    description: HeadDescription | None,
    version: int,
    computed_by: tuple[str, str] | None = None,
) -> None:
    """Write `template` to `place` without the outputs of tasks that were not trained and with what the head tells.

    description: what the parameters tell clients; None for a model that has none. version: the one that is served: a
    server that watches the repository ignores others until this line changes. computed_by: backend and precision, for
    a CPU.
    """
    text = template.read_text()
    if computed_by is not None:
        text = _computed_by(text, *computed_by)
    if description is not None:
        heading, config = text.splitlines()[0], text_format.Parse(text, model_config_pb2.ModelConfig())
        text = f"{heading}\n{text_format.MessageToString(_described(config, description))}"
    place.write_text(
        f"{text}# Others are kept for going back: affserve export --activate N REPOSITORY\n"
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}\n"
    )


def _described(config: Any, description: HeadDescription) -> Any:
    untrained = [key for key in TASK_OUTPUTS if key not in description.labels]
    for output in [output for output in config.output if output.name in untrained]:
        config.output.remove(output)
    for step in config.ensemble_scheduling.step:
        for key in untrained:
            step.output_map.pop(key, None)
    if description.stream is not None:
        for state in config.sequence_batching.state:
            state.dims[:] = state.initial_state[0].dims[:] = [description.stream.state_values]
    for key, value in description.to_parameters().items():
        config.parameters[key].string_value = value
    return config


def _computed_by(text: str, backend: str, precision: str) -> str:
    told = {"precision": precision}  # for whoever asks the server
    if precision == Precision.BF16.value:
        told["HINT_BF16"] = "YES"  # as Triton's native openvino backend has it
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in told.items()]
    return text.replace(f'backend: "{ONNX_RUNTIME}"', f'backend: "{backend}"') + "".join(lines)


def served_version(config: Any, folder: Path) -> int | None:
    """Return the version that Triton serves of the model in `folder`: the one its policy names, else the highest."""
    if config.version_policy.WhichOneof("policy_choice") == "specific":
        return max(config.version_policy.specific.versions, default=None)
    return max((int(one.name) for one in folder.iterdir() if one.is_dir() and one.name.isdecimal()), default=None)


def write_configs(
    folder: Path,
    description: HeadDescription,
    version: int,
    computed_by: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> None:
    """Write every configuration of a repository into `folder`: those of a repository that serves `version`.

    computed_by: backend and precision on a CPU, by model; a model without keeps what the template says.
    """
    for model in MODELS:
        if model == TEMPORAL_STREAM.name and description.stream is None:
            continue
        described = description if model in MODELS_WITH_LABELS else None
        for template in sorted((TEMPLATES / model).rglob("*.pbtxt")):
            place = folder / template.relative_to(TEMPLATES)
            place.parent.mkdir(parents=True, exist_ok=True)
            engine = computed_by.get(model) if template.stem == engine_sets.CPU else None
            write_config(template, place, described, version, engine)


def config_files(folder: Path) -> dict[str, bytes]:
    """Return the configurations in `folder` by their path relative to it, in the order in which to place them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for model in MODELS
        for path in sorted((folder / model).rglob("*.pbtxt"))
    }


def config_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each configuration in `folder`, as a manifest lists them."""
    return {file: file_sha256(folder / file) for file in config_files(folder)}
