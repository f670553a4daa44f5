"""Every system that is compared, behind one face: the crops of a window in, its predictions out.

A window travels in chunks of CHUNK_FRAMES, some of them in flight at the same time, then its features at once; the
same job for all, whatever the system makes of it.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.peers.environment import HOST, PeerSettings, peer_script, peer_server, told
from affserve.client.client import AffectClient
from affserve.export.contract import CHUNK_FRAMES, FEATURE_WIDTH
from affserve.export.engine_sets import ONNX_RUNTIME, OPENVINO
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import ServerError
from affserve.train.windows import Outputs

Frames = NDArray[np.uint8]
REQUEST_TIMEOUT_S = 300.0
OURS, NAIVE, LITSERVE, SCRIPT = "affserve", "naive service", "LitServe", "plain script"
INFORMED = {ONNX_RUNTIME: "FastAPI with ONNX Runtime", OPENVINO: "FastAPI with OpenVINO"}


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to get predictions, running and ready."""

    name: str
    settings: str  # what was chosen for it, for the reader
    answer: Callable[[Frames, int], Outputs]  # crops (T, 224, 224, 3) and chunks in flight -> (T, K) by task
    in_flight: tuple[int, ...] = (1, 2, 4)  # chunks in flight worth trying


@contextmanager
def naive_service(settings: PeerSettings, workers: int) -> Iterator[System]:
    """FastAPI, uvicorn and PyTorch, or the engine of the settings."""
    with peer_server("affserve.benchmarks.peers.naive", settings, [workers]) as port, HttpClient(port) as client:
        yield System(
            name=INFORMED.get(settings.engine, NAIVE),
            settings=_workers(workers, settings.threads),
            answer=client.answer,
        )


@contextmanager
def litserve(settings: PeerSettings, workers: int, per_batch: int) -> Iterator[System]:
    """LitServe and PyTorch; per_batch: requests that LitServe may join to one batch."""
    arguments = [workers, per_batch]
    with peer_server("affserve.benchmarks.peers.litserve", settings, arguments) as port, HttpClient(port) as client:
        told_settings = f"{_workers(workers, settings.threads)}, max_batch_size {per_batch}"
        yield System(name=LITSERVE, settings=told_settings, answer=client.answer)


@contextmanager
def plain_script(settings: PeerSettings) -> Iterator[System]:
    """PyTorch in one process."""
    with peer_script("affserve.benchmarks.peers.script", settings) as process, tempfile.TemporaryDirectory() as folder:
        script = _Script(process, Path(folder) / "frames.npy")
        yield System(
            name=SCRIPT, settings=_workers(1, settings.threads, "process"), answer=script.answer, in_flight=(1,)
        )


@contextmanager
def affserve_served(name: str, config: ServerConfig, transport: str) -> Iterator[System]:
    """Ours: Triton on an exported repository, and the client library."""
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(config))
        clients: dict[int, AffectClient] = {}

        def answer(frames: Frames, in_flight: int) -> Outputs:
            if in_flight not in clients:
                clients[in_flight] = stack.enter_context(
                    AffectClient(server.grpc_url, chunks_in_flight=in_flight, transport=transport)
                )
            client = clients[in_flight]
            return client.predict(client.encode(frames))

        split = config.parallelism
        settings = f"{server.engine}, {_workers(split.instances, split.threads, 'instance')}, {transport}"
        yield System(name=name, settings=settings, answer=answer)


class HttpClient:
    """Asks a peer over HTTP, with one kept-alive connection for each chunk in flight."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._local = threading.local()
        self._opened: list[http.client.HTTPConnection] = []
        self._senders: dict[int, ThreadPoolExecutor] = {}

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._senders.values():
            pool.shutdown()
        for connection in self._opened:
            connection.close()

    def answer(self, frames: Frames, in_flight: int) -> Outputs:
        """Return the predictions (T, K) by task of crops (T, 224, 224, 3)."""
        pool = self._senders.setdefault(in_flight, ThreadPoolExecutor(max_workers=in_flight))
        chunks = [frames[start : start + CHUNK_FRAMES] for start in range(0, len(frames), CHUNK_FRAMES)]
        features = np.concatenate(list(pool.map(self._encode, chunks)))
        answer = json.loads(self._post("/predict", features.tobytes()))
        return {task: np.array(values, np.float32) for task, values in answer.items()}

    def _encode(self, frames: Frames) -> NDArray[np.float32]:
        return np.frombuffer(self._post("/encode", frames.tobytes()), np.float32).reshape(-1, FEATURE_WIDTH)

    def _post(self, path: str, body: bytes) -> bytes:
        connection = self._connection()
        connection.request("POST", path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ServerError(f"{HOST}:{self._port}{path} answered {response.status}: {content[:200]!r}, expected 200")
        return content

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(HOST, self._port, timeout=REQUEST_TIMEOUT_S)
            self._opened.append(self._local.connection)
        connection: http.client.HTTPConnection = self._local.connection
        return connection


class _Script:
    """Commands the plain script; its frames are in its memory before the clock runs."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self._process = process
        self._path = path
        self._loaded: Frames | None = None

    def answer(self, frames: Frames, _in_flight: int) -> Outputs:
        if self._loaded is not frames:
            np.save(self._path, frames)
            self._say(str(self._path))
            self._loaded = frames
        return {task: np.array(values, np.float32) for task, values in json.loads(self._say("go")).items()}

    def _say(self, line: str) -> str:
        if self._process.stdin is None:
            raise ServerError("the plain script has no standard input; it was not started by peer_script")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return told(self._process)


def _workers(workers: int, threads: int, called: str = "worker") -> str:
    several = ("es" if called.endswith("s") else "s") if workers > 1 else ""
    return f"{workers} {called}{several} of {threads} thread{'s' * (threads > 1)}"
