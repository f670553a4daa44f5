"""What a run did to the server and to the machine: Triton's own clocks, CPU time of processes, and GPUs.

Everything is read before and after; the difference belongs to the run. Triton's statistics count every client of the
server, so a server under test should have no other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from affserve.benchmarks.measuring.gpus import gpu_library
from affserve.benchmarks.measuring.processes import family, find_psutil
from affserve.client.wire.endpoint import parse_endpoint
from affserve.train.errors import ServerError

STEPS = ("queue", "compute_input", "compute_infer", "compute_output")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")
GPU_PERIOD_S = 0.2
ASK_TIMEOUT_S = 10.0
SETTLED_AFTER_S = 0.15  # without a change; less was not enough on a machine with three busy processes a core
SETTLING_S = 2.0  # at most: other callers may never stop

Counters = dict[str, dict[str, int]]


def read_statistics(url: str) -> Counters:
    """Return the counters of every model that `url` serves: {"clip_encoder": {"queue_ns": ..., "requests": ...}}.

    url: several addresses are added up. ServerError when one does not answer.
    """
    total: Counters = {}
    for address in url.split(","):
        for model, counters in _counters(address).items():
            mine = total.setdefault(model, dict.fromkeys(counters, 0))
            for name, value in counters.items():
                mine[name] += value
    return total


def settled_statistics(url: str) -> Counters:
    """Return the counters once they stand still: Triton answers a request a moment before it counts it."""
    deadline_s = time.monotonic() + SETTLING_S
    before: Counters = {}
    now = read_statistics(url)
    while now != before and time.monotonic() < deadline_s:
        time.sleep(SETTLED_AFTER_S)
        before, now = now, read_statistics(url)
    return now


def _counters(address: str) -> Counters:
    with triton.InferenceServerClient(**parse_endpoint(address).addresses[0].client_options()) as client:
        try:
            answer = client.get_inference_statistics(client_timeout=ASK_TIMEOUT_S)
        except InferenceServerException as error:
            raise ServerError(
                f"{address} does not tell its statistics: {error.message()}; expected a Triton server with "
                "--allow-grpc and statistics on: start one with: affserve serve REPOSITORY"
            ) from error
    return {model.name: _model_counters(model) for model in answer.model_stats}


def _model_counters(model: Any) -> dict[str, int]:
    stats = model.inference_stats
    steps = {f"{step}_ns": int(getattr(stats, step).ns) for step in STEPS}
    return {
        "requests": int(stats.success.count),
        "failed": int(stats.fail.count),
        "request_ns": int(stats.success.ns),
        "executions": int(model.execution_count),
        "inferences": int(model.inference_count),
        **steps,
    }


def server_split(before: Counters, after: Counters) -> dict[str, dict[str, float]]:
    """Return, for each model that was asked between the two readings, the mean milliseconds of a request by step.

    `batch` is the mean number of items (frames of clip_encoder) that one execution computed together.
    """
    split = {}
    for model, counters in after.items():
        earlier = before.get(model, {})
        change = {name: value - earlier.get(name, 0) for name, value in counters.items()}
        if change["requests"] + change["failed"] <= 0:
            continue
        requests = max(1, change["requests"])
        split[model] = {
            "requests": change["requests"],
            "failed": change["failed"],
            "executions": change["executions"],
            "batch": round(change["inferences"] / max(1, change["executions"]), 2),
            "request_ms": round(change["request_ns"] / requests / 1e6, 3),
            **{f"{step}_ms": round(change[f"{step}_ns"] / requests / 1e6, 3) for step in STEPS},
        }
    return split


def server_processes(url: str) -> list[int]:
    """Return the processes that listen at `url` and all below them; none where the server is on another machine."""
    addresses = url.split(",")
    files = {address.removeprefix("unix:") for address in addresses if address.startswith("unix:")}
    ports = {int(port) for host, _, port in (a.rpartition(":") for a in addresses) if host in LOCAL_HOSTS}
    open_now = find_psutil().net_connections(kind="all")
    listening = {one.pid for one in open_now if one.pid and (one.laddr in files or _port(one) in ports)}
    return [one for pid in sorted(listening) for one in family(pid)]


def _port(connection: Any) -> int | None:
    """Return where a socket listens; None where it does not, or is a file."""
    listens = connection.status == find_psutil().CONN_LISTEN
    return getattr(connection.laddr, "port", None) if listens else None


class CpuClock:
    """CPU seconds of a group of processes and of the whole machine since it was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self._began, self._busy_s, self._started_s = self._used(), _machine_busy_s(), time.monotonic()

    def cores(self) -> dict[str, float]:
        """Return how many cores the processes, and the whole machine, kept busy on average since then."""
        elapsed_s = max(1e-9, time.monotonic() - self._started_s)
        now = self._used()
        server_s = sum(used - self._began.get(pid, 0.0) for pid, used in now.items())
        busy_s = _machine_busy_s() - self._busy_s
        told = {"machine_cores": round(busy_s / elapsed_s, 2)}
        return {"server_cores": round(server_s / elapsed_s, 2), **told} if self.pids else told

    def _used(self) -> dict[int, float]:
        psutil = find_psutil()
        used = {}
        for pid in self.pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue  # killed and restarted in the middle of a run
            used[pid] = times.user + times.system
        return used


def _machine_busy_s() -> float:
    times = find_psutil().cpu_times()
    return float(sum(times) - times.idle - times.iowait - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0))


class GpuWatch:
    """Use, memory and power of every GPU, read again and again in a thread; nothing where there is no GPU."""

    def __init__(self) -> None:
        self._library = gpu_library()
        self._rows: list[list[dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuWatch:
        if self._library is not None:
            self._thread = threading.Thread(target=self._watch, name="gpu-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> list[dict[str, float]]:
        """Return, for each GPU, mean use (percent) and power (watts) and the most memory (MiB) seen."""
        return [_gpu_figures(rows) for rows in zip(*self._rows, strict=False)]

    def _watch(self) -> None:
        while not self._stop.wait(GPU_PERIOD_S):
            self._rows.append([_gpu_now(self._library, k) for k in range(self._library.nvmlDeviceGetCount())])


def _gpu_now(library: Any, index: int) -> dict[str, float]:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    now = {
        "percent": float(library.nvmlDeviceGetUtilizationRates(handle).gpu),
        "mib": library.nvmlDeviceGetMemoryInfo(handle).used / 2**20,
    }
    try:
        now["watts"] = library.nvmlDeviceGetPowerUsage(handle) / 1000
    except library.NVMLError:  # many GPUs of laptops and virtual machines do not tell
        return now
    return now


def _gpu_figures(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    seen = list(rows)
    told = {
        "mean_percent": round(sum(row["percent"] for row in seen) / len(seen), 1),
        "most_mib": round(max(row["mib"] for row in seen)),
    }
    watts = [row["watts"] for row in seen if "watts" in row]
    return {**told, "mean_watts": round(sum(watts) / len(watts), 1)} if watts else told
