"""What is sent is checked here, and what a server answers about its models or with them is read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from affserve.export.contract import TEMPORAL_HEAD, HeadDescription, ModelSpec, TensorSpec
from affserve.train.errors import InferenceError, printable
from affserve.train.labels import TASKS

ROUNDING = 1e-3  # of half precision


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
    try:
        array = result.as_numpy(name)
    except (ValueError, TypeError, IndexError, struct.error) as error:  # of fewer bytes than it announces, say
        array, found = None, f"what cannot be read ({error})"
    else:
        found = "no such output" if array is None else f"{array.dtype} {array.shape}"
    if array is None or array.shape != shape or array.dtype != np.float32:
        raise InferenceError(
            f"{asked}: expected {name} {shape} float32 in the answer, got {found}: the server does not serve what "
            "`affserve export` wrote; export the repository again and restart the server"
        )
    _check_answer(array, asked, name)
    return np.array(array, dtype=np.float32)


def _check_answer(array: NDArray[np.float32], asked: str, name: str) -> None:
    """Refuse numbers that cannot be an answer: once in a file, nobody would see that they are none."""
    task = TASKS.get(name)
    low, high = (-np.inf, np.inf) if task is None else (-1.0, 1.0) if task.kind == "regression" else (0.0, 1.0)
    good = np.isfinite(array) & (array >= low - ROUNDING) & (array <= high + ROUNDING)
    if not good.all():
        frame, k = np.argwhere(~good)[0]
        rule = "a finite number" if task is None else f"{low:g} to {high:g}"
        raise InferenceError(
            f"{asked}: {np.count_nonzero(~good)} values of {name} in the answer cannot be true, the first of them "
            f"{array[frame, k]:g} in frame {frame}, expected {rule}: the server does not serve what `affserve export` "
            "wrote, or the frames' features are beyond what its head was made for"
        )


def head_of(config: Any, url: str) -> HeadDescription:
    """Read what a served head says about itself; tasks come in the project's order, those unknown here last."""
    parameters = {key: printable(value.string_value) for key, value in config.parameters.items()}
    described = HeadDescription.from_parameters(parameters, f"{TEMPORAL_HEAD.name} on {url}")
    order = [*TASKS, *sorted(described.labels.keys() - TASKS.keys())]
    return replace(described, labels={task: described.labels[task] for task in order if task in described.labels})


def engine_of(config: Any) -> str:
    """Say what computes a model: `openvino int8 on CPU`."""
    devices = {group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group}
    told = [config.backend or config.platform, config.parameters["precision"].string_value]
    return f"{' '.join(filter(None, told))} on {'+'.join(sorted(devices))}"


def engines_of(configs: Sequence[Any]) -> str:
    """Say what computes some models: each with its engine, or one engine for all of them."""
    engines = {config.name: engine_of(config) for config in configs}
    if len(set(engines.values())) < 2:
        return next(iter(engines.values()), "")
    return ", ".join(f"{name} {engine}" for name, engine in engines.items())
