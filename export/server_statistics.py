"""What a running Triton counts: requests, batches, and where their time went.

From gRPC's statistics, which every caller may read, and from the metrics port where there is one: only the latter knows
how many requests are waiting right now.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from affserve.train.errors import ServerError

_PENDING = re.compile(r"^nv_inference_pending_request_count\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.MULTILINE)
_MODEL_LABEL = re.compile(r'model="([^"]*)"')


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
    compute_ms: float | None  # of it, input, inference and output; an ensemble has none of its own
    batches: Mapping[int, int] = field(default_factory=dict)  # frames in a batch -> number of such batches
    pending: int | None = None  # requests that wait now; None: unknown without metrics

    @property
    def mean_batch(self) -> float | None:
        """Frames per batch on average."""
        return self.frames / self.executions if self.executions else None


def parse_statistics(model_statistics: Any) -> ModelStatistics:
    """Read one entry of Triton's ModelStatisticsResponse."""
    times, count = model_statistics.inference_stats, model_statistics.inference_stats.success.count
    compute_ns = times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
    return ModelStatistics(
        name=model_statistics.name,
        version=model_statistics.version,
        succeeded=count,
        failed=times.fail.count,
        frames=model_statistics.inference_count,
        executions=model_statistics.execution_count,
        request_ms=_mean_ms(times.success.ns, count),
        queue_ms=_mean_ms(times.queue.ns, times.queue.count),
        compute_ms=_mean_ms(compute_ns, times.compute_infer.count),
        batches={batch.batch_size: batch.compute_infer.count for batch in model_statistics.batch_stats},
    )


def _mean_ms(total_ns: int, count: int) -> float | None:
    return total_ns / count / 1e6 if count else None


def pending_requests(address: str, timeout_s: float) -> dict[str, int]:
    """Return how many requests wait for each model, from the metrics at `address` (HOST:PORT)."""
    # Never through the proxy that the environment may name: metrics are read from the machine itself or its neighbour.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/metrics", timeout=timeout_s) as answer:
            text = answer.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(
            f"no metrics at http://{address}/metrics ({error}): start the server with affserve serve --metrics-port, "
            "and give that port"
        ) from error
    found: dict[str, int] = {}
    for match in _PENDING.finditer(text):
        if (name := _MODEL_LABEL.search(match["labels"])) is not None:
            found[name[1]] = found.get(name[1], 0) + int(float(match["count"]))
    return found
