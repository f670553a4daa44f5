"""The service's calls as steps: what is sent, how answers are checked, how frames travel. Nothing here waits.

Both clients, blocking and asyncio, carry out what this file yields. Several threads, or tasks, may use it at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.wire.calls import RetryPolicy, Rpc, Steps, repeated
from affserve.client.wire.frame_carrier import FrameCarrier
from affserve.client.wire.messages import raw_tensor
from affserve.client.wire.transport import Transport
from affserve.export.contract import (
    AFFECT,
    CLIP_ENCODER,
    FEATURE_WIDTH,
    FEATURES,
    TEMPORAL_HEAD,
    HeadDescription,
    ModelSpec,
    TensorSpec,
)
from affserve.train.errors import InferenceError, ServerError
from affserve.train.labels import TASKS
from affserve.train.windows import Outputs, OverlapMerger, segments

CONNECT_TIMEOUT_S = 5.0

Array = NDArray[np.uint8] | NDArray[np.float32]


class Exchange:
    """What a client knows of its server, and every call to it."""

    def __init__(
        self, url: str, *, policy: RetryPolicy, transport: Transport, jpeg_quality: int, is_one_server: bool
    ) -> None:
        self._url = url
        self._policy = policy
        self._description: HeadDescription | None = None
        self.carrier = FrameCarrier(
            url, policy=policy, wanted=transport, jpeg_quality=jpeg_quality, is_one_server=is_one_server
        )

    def connect(self) -> Steps[None]:
        """Check that a Triton server answers, and choose how frames travel; who was never there is not waited for."""
        try:
            live = yield Rpc(method="is_server_live", timeout_s=CONNECT_TIMEOUT_S)
        except InferenceServerException as error:
            raise ServerError(
                f"no server at {self._url} ({error.message()}): start one with: affserve serve REPOSITORY"
            ) from error
        if not live:
            raise ServerError(f"the server at {self._url} says that it is not live: look at its log, then restart it")
        yield from self.carrier.choose()

    def disconnect(self) -> Steps[None]:
        """Have the server let go of what it holds for this client."""
        yield from self.carrier.release()

    def describe(self) -> Steps[HeadDescription]:
        """Return what the served head says about itself (asked once)."""
        if self._description is None:
            config = yield from self._config(TEMPORAL_HEAD)
            parameters = {key: value.string_value for key, value in config.parameters.items()}
            description = HeadDescription.from_parameters(parameters, f"{TEMPORAL_HEAD.name} on {self._url}")
            self._description = replace(description, labels=_in_task_order(description.labels))
        return self._description

    def engine(self) -> Steps[str]:
        """Say what computes."""
        server = yield from repeated(self._policy, f"the server at {self._url}", "get_server_metadata")
        config = yield from self._config(CLIP_ENCODER)
        devices = {group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group}
        return f"Triton {server.version}, {config.backend or config.platform} on {'+'.join(sorted(devices))}"

    def encode(self, frames: NDArray[np.uint8]) -> Steps[NDArray[np.float32]]:
        """Turn the frames of one message (n, 224, 224, 3) into features (n, 512)."""
        asked = self._asked(CLIP_ENCODER, frames)
        if len(frames) == 0:
            return no_features()
        result = yield from self.carrier.carry(CLIP_ENCODER, frames, asked)
        return _output(result, asked, FEATURES.name, (len(frames), FEATURE_WIDTH))

    def predict(self, features: NDArray[np.float32]) -> Steps[Outputs]:
        """Turn the features of one window (T, 512) into (T, K) per task."""
        asked = self._asked(TEMPORAL_HEAD, features)
        _check_finite(features, asked)
        tensor = raw_tensor(FEATURES.name, FEATURES.datatype, features)
        ask = partial(repeated, self._policy, asked, "infer", model_name=TEMPORAL_HEAD.name, inputs=[tensor])
        return (yield from self._outputs(ask(), len(features), asked))

    def affect(self, frames: NDArray[np.uint8]) -> Steps[Outputs]:
        """Turn the frames of one window (T, 224, 224, 3) into (T, K) per task."""
        asked = self._asked(AFFECT, frames)
        return (yield from self._outputs(self.carrier.carry(AFFECT, frames, asked), len(frames), asked))

    def merge(self, features: NDArray[np.float32]) -> Steps[Outputs]:
        """Turn the features of a whole video (N, 512) into (N, K) per task, averaged where its windows overlap."""
        described = yield from self.describe()
        answers: deque[Outputs] = deque()
        for segment in segments(len(features), described.window_frames, described.stride_frames):
            answers.append((yield from self.predict(features[segment])))
        merger = OverlapMerger(lambda _: answers.popleft(), described.window_frames, described.stride_frames)
        parts = [*merger.push(features), *merger.finish()]
        return {
            task: np.concatenate([np.empty((0, len(names)), np.float32), *(part[task] for part in parts)])
            for task, names in described.labels.items()
        }

    def _outputs(self, ask: Steps[triton.InferResult], length: int, asked: str) -> Steps[Outputs]:
        labels = (yield from self.describe()).labels
        result = yield from ask
        return {task: _output(result, asked, task, (length, len(names))) for task, names in labels.items()}

    def _config(self, model: ModelSpec) -> Steps[Any]:
        asked = f"{model.name} on {self._url}, asked for its configuration"
        answer = yield from repeated(self._policy, asked, "get_model_config", model_name=model.name)
        return answer.config

    def _asked(self, model: ModelSpec, array: Array) -> str:
        """Check an array against the model's first input before it travels; return who is asked what, for messages."""
        spec = model.inputs[0]
        shape = (-1, *spec.shape) if model.max_batch_size else spec.shape
        expected = TensorSpec(name=spec.name, datatype=spec.datatype, shape=shape)
        if not expected.matches(array.shape) or array.dtype != expected.numpy_dtype:
            raise InferenceError(
                f"{model.name} on {self._url} expects {spec.name} {shape} {expected.numpy_dtype}, got {array.shape} "
                f"{array.dtype}"
            )
        return f"{model.name} on {self._url}, sent {spec.name} {array.shape} {array.dtype}"


def _in_task_order(labels: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Order the tasks as the project does; parameters travel in any order, tasks unknown here come last."""
    order = [*TASKS, *sorted(labels.keys() - TASKS.keys())]
    return {task: labels[task] for task in order if task in labels}


def _check_finite(features: NDArray[np.float32], asked: str) -> None:
    """Refuse what Triton would pass on: one NaN in a window makes every answer of that window NaN."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InferenceError(
            f"{asked}: {len(bad)} of {len(features)} frames have features that are not numbers (NaN or infinity), the "
            f"first of them frame {bad[0]}; they would spoil the answers of the whole window: encode these frames again"
        )


def _output(result: triton.InferResult, asked: str, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return output `name` as a writable float32 array of this shape that owns its memory."""
    array = result.as_numpy(name)
    if array is None or array.shape != shape or array.dtype != np.float32:
        found = "no such output" if array is None else f"{array.dtype} {array.shape}"
        raise InferenceError(
            f"{asked}: expected {name} {shape} float32 in the answer, got {found}: the server does not serve what "
            "`affserve export` wrote; export the repository again and restart the server"
        )
    return np.array(array, dtype=np.float32)


def no_features() -> NDArray[np.float32]:
    """Return the features of no frames: (0, 512)."""
    return np.empty((0, FEATURE_WIDTH), dtype=np.float32)
