"""One true inference: the only sign of readiness that Triton 2.51 does not give wrongly.

A server whose Python process died keeps saying that it is ready; an answer to a request cannot be said by mistake.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from affserve.export.contract import FRAMES, MODELS, ModelSpec, TensorSpec
from affserve.export.server_security import CallerTls
from affserve.export.server_statistics import ModelStatistics, parse_statistics

# tritonclient drops its message sizes when channel arguments are given, and probes of one process must not share the
# reconnect delays of its other connections.
# A server on this machine is never behind the proxy that the environment may name.
CHANNEL_ARGUMENTS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


class Prober:
    """Asks one server; a context manager that closes its connection."""

    def __init__(self, url: str, *, tls: CallerTls | None = None) -> None:
        encryption = tls.client_options() if tls is not None else {}
        names = tls.channel_arguments() if tls is not None else []
        self._client = triton.InferenceServerClient(url, channel_args=[*CHANNEL_ARGUMENTS, *names], **encryption)

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def identity(self, timeout_s: float) -> tuple[str, str]:
        """Return the server's name and version."""
        metadata = self._client.get_server_metadata(client_timeout=timeout_s)
        return metadata.name, metadata.version

    def says_ready(self, timeout_s: float) -> bool:
        """Return the server's own opinion."""
        return bool(self._client.is_server_ready(client_timeout=timeout_s))

    def infer(self, model: ModelSpec, timeout_s: float) -> None:
        """Have `model` answer one frame of zeros; InferenceServerException when it does not."""
        inputs = [_zeros(spec, batched=model.max_batch_size > 0) for spec in model.inputs]
        self._client.infer(model.name, inputs, client_timeout=timeout_s)

    def infer_all(self, timeout_s: float, models: Iterable[ModelSpec] = tuple(MODELS.values())) -> None:
        """Have each model answer one frame of zeros."""
        for model in models:
            self.infer(model, timeout_s)

    def config(self, model: ModelSpec, timeout_s: float) -> Any:
        """Return the model_config_pb2.ModelConfig by which the server serves a model."""
        return self._client.get_model_config(model.name, client_timeout=timeout_s).config

    def statistics(self, timeout_s: float) -> tuple[ModelStatistics, ...]:
        """Return what each model has done since it was loaded."""
        return tuple(
            parse_statistics(model)
            for model in self._client.get_inference_statistics(client_timeout=timeout_s).model_stats
        )


def identify(url: str, timeout_s: float) -> str | None:
    """Say which Triton answers at an address, such as "a server of affserve (Triton 2.51.0)"; None: none does."""
    with Prober(url) as prober:
        try:
            name, version = prober.identity(timeout_s)
        except InferenceServerException:
            return None
    return f"{'a server of affserve' if name.startswith('affserve-') else name} (Triton {version})"


def _zeros(spec: TensorSpec, *, batched: bool) -> triton.InferInput:
    shape = [1] * batched + [max(length, 1) for length in spec.shape]
    tensor = triton.InferInput(spec.name, shape, spec.datatype)
    values = (
        np.full(shape, _black_jpeg(), np.object_) if spec.datatype == "BYTES" else np.zeros(shape, spec.numpy_dtype)
    )
    tensor.set_data_from_numpy(values)
    return tensor


@functools.cache
def _black_jpeg() -> bytes:
    import cv2

    return cv2.imencode(".jpg", np.zeros(FRAMES.shape, np.uint8))[1].tobytes()
