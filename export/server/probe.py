"""What a running Triton says of itself: one true inference, and its counts of requests, batches and time.

An inference is the only sign of readiness that Triton 2.51 does not give wrongly: a server whose Python process died
keeps saying that it is ready. Counts come from gRPC's statistics, which every caller may read, and from the metrics
port where there is one: only the latter knows how many requests are waiting right now.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.export.contract import FRAMES, ModelSpec, TensorSpec
from affserve.export.server.security import CallerTls

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

    def infer(self, model: ModelSpec, timeout_s: float) -> None:
        """Have `model` answer one frame of zeros; InferenceServerException when it does not."""
        batch = [1] * (model.max_batch_size > 0)
        self.ask(model, {spec.name: _zeros(spec, batch) for spec in model.inputs}, timeout_s)

    def ask(self, model: ModelSpec, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """Return what `model` answers, by name; InferenceServerException when it does not."""
        tensors = []
        for spec in model.inputs:
            tensors.append(triton.InferInput(spec.name, list(inputs[spec.name].shape), spec.datatype))
            tensors[-1].set_data_from_numpy(inputs[spec.name])
        answer = self._client.infer(model.name, tensors, client_timeout=timeout_s, **_whole_stream(model))
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

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


def _whole_stream(model: ModelSpec) -> dict[str, Any]:
    """Return the arguments that make a request of a model that remembers a stream of its own, from start to end."""
    if not model.remembers:
        return {}
    return {"sequence_id": secrets.randbits(62) + 1, "sequence_start": True, "sequence_end": True}


def _zeros(spec: TensorSpec, batch: list[int]) -> NDArray[Any]:
    shape = batch + [max(length, 1) for length in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(shape, _black_jpeg(), np.object_)
    return np.zeros(shape, spec.numpy_dtype)


@functools.cache
def _black_jpeg() -> bytes:
    import cv2

    return cv2.imencode(".jpg", np.zeros(FRAMES.shape, np.uint8))[1].tobytes()


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """What one version of one model has done since it was loaded."""

    name: str
    version: str
    succeeded: int  # requests; 2.51 counts those that a python model answered with an error, too
    failed: int  # requests that reached the model; those refused for their type or shape do not
    frames: int  # or, for a model that does not batch, requests
    executions: int  # batches
    request_ms: float | None  # mean time of a request in the server; None: there was none
    queue_ms: float | None  # of it, waiting
    compute_ms: float | None  # of it, input, inference and output; of an ensemble, those of its steps
    batches: Mapping[int, int] = field(default_factory=dict)  # frames in a batch -> number of such batches

    @property
    def mean_batch(self) -> float | None:
        """Frames per batch on average."""
        return self.frames / self.executions if self.executions else None


def parse_statistics(model_statistics: Any) -> ModelStatistics:
    """Read one entry of Triton's ModelStatisticsResponse."""
    times, count = model_statistics.inference_stats, model_statistics.inference_stats.success.count
    compute_ns = times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
    request_ms, queue_ms = _mean_ms(times.success.ns, count), _mean_ms(times.queue.ns, times.queue.count)
    compute_ms = _mean_ms(compute_ns, times.compute_infer.count)
    if request_ms is not None and compute_ms is not None:
        # Triton goes on counting until the batch is cleared away, after the answer has left.
        queue_ms = min(queue_ms or 0.0, request_ms)
        compute_ms = min(compute_ms, request_ms - queue_ms)
    return ModelStatistics(
        name=model_statistics.name,
        version=model_statistics.version,
        succeeded=count,
        failed=times.fail.count,
        frames=model_statistics.inference_count,
        executions=model_statistics.execution_count,
        request_ms=request_ms,
        queue_ms=queue_ms,
        compute_ms=compute_ms,
        batches={batch.batch_size: batch.compute_infer.count for batch in model_statistics.batch_stats},
    )


def _mean_ms(total_ns: int, count: int) -> float | None:
    return total_ns / count / 1e6 if count else None
