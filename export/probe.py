"""One true inference: the only sign of readiness that Triton 2.51 does not give wrongly.

A server whose Python process died keeps saying that it is ready; an answer to a request cannot be said by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tritonclient.grpc as triton

from affserve.export.contract import MODELS, ModelSpec, TensorSpec

# tritonclient drops its message sizes when channel arguments are given, and probes of one process must not share the
# reconnect delays of its other connections.
# A server on this machine is never behind the proxy that the environment may name.
CHANNEL_ARGUMENTS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


class Prober:
    """Asks one server; a context manager that closes its connection."""

    def __init__(self, url: str) -> None:
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)

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

    def answered(self, timeout_s: float) -> dict[str, int]:
        """Return how many requests each model has answered since it was loaded."""
        statistics = self._client.get_inference_statistics(client_timeout=timeout_s)
        return {model.name: int(model.inference_stats.success.count) for model in statistics.model_stats}


def _zeros(spec: TensorSpec, *, batched: bool) -> triton.InferInput:
    shape = [1] * batched + [max(length, 1) for length in spec.shape]
    tensor = triton.InferInput(spec.name, shape, spec.datatype)
    tensor.set_data_from_numpy(np.zeros(shape, spec.numpy_dtype))
    return tensor
