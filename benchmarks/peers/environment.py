"""Where the peers live: their own packages beside affserve's PyTorch, their own processes, their own ports.

Packages go to a folder of their own by `pip install --target` and are seen by the peers' processes alone, never by
affserve. PyTorch is shared: a second copy would be the same one.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.random_models import Checkpoints, Progress
from affserve.export.machine.ports import choose_ports
from affserve.train.errors import ServerError

SITE = Path("build/peers/site")
PACKAGES = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0", "litserve==0.2.19")
SERVER_PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "litserve")
HOST = "127.0.0.1"
START_TIMEOUT_S = 180.0  # for PyTorch and the weights, in every worker
STOP_TIMEOUT_S = 5.0  # to end in peace; they have nothing to save
POLL_S = 0.1
LOG_TAIL_BYTES = 2000


def install_peers(site: Path = SITE, progress: Progress = lambda _: None) -> dict[str, str]:
    """Install the pinned peers into a folder unless they are there; return the versions of what serves."""
    wanted = "\n".join(PACKAGES)
    mark = site / "installed.txt"
    if not mark.exists() or mark.read_text() != wanted:
        progress(f"installing {', '.join(PACKAGES)} into {site}")
        shutil.rmtree(site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(
                f"the peers could not be installed into {site}: {done.stderr.strip()[-LOG_TAIL_BYTES:]}\n"
                "expected a package index that pip reaches; the other measurements need none"
            )
        mark.write_text(wanted)
    return {name: _version(site, name) for name in SERVER_PACKAGES}


def _version(site: Path, package: str) -> str:
    found = next(iter(importlib.metadata.distributions(name=package, path=[str(site)])), None)
    return found.version if found is not None else "missing"


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """What a peer's processes are told."""

    checkpoints: Checkpoints
    threads: int  # of PyTorch, in each worker
    device: str = "cpu"  # of PyTorch
    engine: str = ""  # in place of PyTorch: onnxruntime or openvino, on a stock export
    site: Path = SITE  # the peers' packages

    def environment(self) -> Mapping[str, str]:
        """Return the environment variables of a peer's processes."""
        from affserve.benchmarks.peers.model import SETTINGS_VARIABLE

        paths = [str(path.resolve()) for path in (self.checkpoints.encoder, self.checkpoints.head)]
        return {
            **os.environ,
            "PYTHONPATH": str(self.site.resolve()),
            "OMP_NUM_THREADS": str(self.threads),
            SETTINGS_VARIABLE: json.dumps([*paths, self.threads, self.device, self.engine]),
        }


@contextmanager
def peer_server(module: str, settings: PeerSettings, arguments: Sequence[object]) -> Iterator[int]:
    """Run a peer's server and yield its port once it answers; ServerError with the end of its log when it does not."""
    port = choose_ports(HOST, {"http": 0})["http"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "peer.log"
        with log.open("wb") as output:
            process = _start(folder, [module, port, *arguments], settings, stdout=output, stderr=output)
        try:
            _wait_until_healthy(process, port, log)
            yield port
        finally:
            _stop(process)


@contextmanager
def peer_script(module: str, settings: PeerSettings) -> Iterator[subprocess.Popen[str]]:
    """Run a peer that is commanded through its standard input; yield it once it says that it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start(folder, [module], settings, stdout=subprocess.PIPE)
        try:
            told(process)
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()  # it ends when there is nothing more to read
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            _stop(process)


def _start(folder: str, command: Sequence[object], settings: PeerSettings, **output: Any) -> subprocess.Popen[str]:
    """Start a peer outside the checkout, whose folders would otherwise be importable by bare names."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=dict(settings.environment()),
        cwd=folder,
        stdin=subprocess.PIPE,  # its end is ours: see end_with_parent
        text=True,
        start_new_session=True,
        **output,
    )


def told(process: subprocess.Popen[str]) -> str:
    """Return the next line that a commanded peer prints; ServerError when it has ended."""
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise ServerError(f"{' '.join(map(str, process.args))} ended with exit code {process.wait()}: see its output")  # type: ignore[arg-type]
    return line


def _wait_until_healthy(process: subprocess.Popen[str], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _healthy(port):
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-LOG_TAIL_BYTES:]
            why = f"ended with exit code {process.returncode}" if process.returncode is not None else "did not answer"
            raise ServerError(f"{' '.join(map(str, process.args))} {why}; its log ends:\n{text}")  # type: ignore[arg-type]
        time.sleep(POLL_S)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[str]) -> None:
    """End a peer, in peace where it listens, and everything that it started: the group is its own."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
