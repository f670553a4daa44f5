"""What is sent is checked here, and what a server answers about its models or with them is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from affserve.export.contract import TEMPORAL_HEAD, HeadDescription, ModelSpec, TensorSpec
from affserve.train.errors import InferenceError
from affserve.train.labels import TASKS


def checked_input(model: ModelSpec, url: str, array: object) -> str:
    """Check an array against a model's first input before it travels; return who is asked what, for messages."""
    spec = model.inputs[0]
    shape = (-1, *spec.shape) if model.max_batch_size else spec.shape
    expected = TensorSpec(name=spec.name, datatype=spec.datatype, shape=shape)
    if not isinstance(array, np.ndarray):
        found = f"a {type(array).__name__}"
        raise InferenceError(f"{model.name} on {url} expects {spec.name} {shape} {expected.numpy_dtype}, got {found}")
    if not expected.matches(array.shape) or array.dtype != expected.numpy_dtype:
        raise InferenceError(
            f"{model.name} on {url} expects {spec.name} {shape} {expected.numpy_dtype}, got {array.shape} {array.dtype}"
        )
    return f"{model.name} on {url}, sent {spec.name} {array.shape} {array.dtype}"


def check_finite(features: NDArray[np.float32], asked: str) -> None:
    """Refuse what Triton would pass on: one NaN in a window makes every answer of that window NaN."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InferenceError(
            f"{asked}: {len(bad)} of {len(features)} frames have features that are not numbers (NaN or infinity), the "
            f"first of them frame {bad[0]}; they would spoil the answers of the whole window: encode these frames again"
        )


def output(result: triton.InferResult, asked: str, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return output `name` as a writable float32 array of this shape that owns its memory."""
    array = result.as_numpy(name)
    if array is None or array.shape != shape or array.dtype != np.float32:
        found = "no such output" if array is None else f"{array.dtype} {array.shape}"
        raise InferenceError(
            f"{asked}: expected {name} {shape} float32 in the answer, got {found}: the server does not serve what "
            "`affserve export` wrote; export the repository again and restart the server"
        )
    return np.array(array, dtype=np.float32)


def head_of(config: Any, url: str) -> HeadDescription:
    """Read what a served head says about itself; tasks come in the project's order, those unknown here last."""
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    described = HeadDescription.from_parameters(parameters, f"{TEMPORAL_HEAD.name} on {url}")
    order = [*TASKS, *sorted(described.labels.keys() - TASKS.keys())]
    return replace(described, labels={task: described.labels[task] for task in order if task in described.labels})


def engine_of(config: Any) -> str:
    """Say what computes a model: `onnxruntime on CPU`."""
    devices = {group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group}
    return f"{config.backend or config.platform} on {'+'.join(sorted(devices))}"
