"""One tritonserver over a model repository, from checking the repository to removing the last shared memory file.

In comes a ServerConfig, out comes a server that has answered a true request on every model. It does not watch over
itself: supervisor.py does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tritonclient.utils import InferenceServerException

from affserve.export import triton_log
from affserve.export.contract import MODELS, ONNX_CONFIG_NAME
from affserve.export.cores import usable_cores
from affserve.export.guardian import KILL, remove_shared_memory, start_guardian
from affserve.export.ports import PortTakenError, choose_ports, listening
from affserve.export.probe import Prober
from affserve.export.repository_check import verify_repository
from affserve.export.triton_installation import (
    Installation,
    find_installation,
    lay_out_backends,
    server_environment,
)
from affserve.train.errors import ServerError

POLL_S = 0.02
PORT_ATTEMPTS = 5
# A chunk of 32 frames fits at once, and a whole window of 300 (45 MB) after growing, within the 64 MB of /dev/shm that
# containers have by default. It never shrinks.
SHM_DEFAULT_BYTES = 8 << 20
SHM_GROWTH_BYTES = 8 << 20
STUB_TIMEOUT_S = 60  # for a stub to import ONNX Runtime and read its model


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What to serve and where."""

    repository: Path  # the folder that `affserve export` wrote
    host: str = "127.0.0.1"  # address to listen on
    grpc_port: int = 0  # 0: any free one
    http_port: int = 0  # 0: any free one
    metrics_port: int | None = None  # Prometheus metrics; None: off, 0: any free one
    config_name: str = ONNX_CONFIG_NAME  # which configs/<name>.pbtxt, else config.pbtxt
    threads: int | None = None  # per model on a CPU; None: the physical cores this process may use
    startup_timeout_s: float = 120.0  # from start to the first true answer, s
    drain_timeout_s: float = 30.0  # for requests in flight when stopping, s; 0: end at once (draining takes 1.5 s)

    def __post_init__(self) -> None:
        for field in ("grpc_port", "http_port", "metrics_port"):
            port = getattr(self, field)
            if port is not None and not 0 <= port <= 65535:
                raise ServerError(f"{field} is {port}; expected 0 (any free one) to 65535")
        if self.threads is not None and self.threads < 1:
            raise ServerError(f"threads is {self.threads}; expected at least 1")
        if self.startup_timeout_s <= 0 or self.drain_timeout_s < 0:
            raise ServerError(
                f"startup_timeout_s is {self.startup_timeout_s:g}, drain_timeout_s is {self.drain_timeout_s:g}; "
                "expected more than 0 s and at least 0 s"
            )

    def with_ports(self) -> ServerConfig:
        """Return the same with free ports in place of the open ones; PortTakenError when a given one is in use."""
        wanted = {"grpc": self.grpc_port, "http": self.http_port}
        if self.metrics_port is not None:
            wanted["metrics"] = self.metrics_port
        ports = choose_ports(self.host, wanted)
        return dataclasses.replace(
            self, grpc_port=ports["grpc"], http_port=ports["http"], metrics_port=ports.get("metrics")
        )


class TritonServer:
    """A running tritonserver; a context manager that starts and stops it.

    cancelled: set from another thread to give up starting.
    """

    def __init__(self, config: ServerConfig, *, cancelled: threading.Event | None = None) -> None:
        self.config = config
        self.threads = config.threads or usable_cores()
        self.pid = 0  # of tritonserver
        self.engine = ""  # such as "Triton 2.51.0, ONNX Runtime 1.31.1 CPU"
        self._cancelled = cancelled or threading.Event()
        self._identity = f"affserve-{secrets.token_hex(8)}"  # its name, and the prefix of its shared memory
        self._guardian: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        """Host and port of gRPC."""
        return f"{self.config.host}:{self.config.grpc_port}"

    @property
    def http_url(self) -> str:
        """Host and port of HTTP."""
        return f"{self.config.host}:{self.config.http_port}"

    @property
    def exit_code(self) -> int | None:
        """None while tritonserver runs; 128 + n when signal n ended it."""
        return self._guardian.poll() if self._guardian is not None else None

    def start(self) -> None:
        """Return when every model has answered a request; RepositoryError or ServerError when that cannot be."""
        verify_repository(self.config.repository, self.config.config_name)
        installation = find_installation()
        installation.check_host(self.config.host)
        requested = self.config
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            self.config = requested.with_ports()
            try:
                return self._start_on_ports(installation)
            except PortTakenError:
                if self.config == requested or not attempts_left:
                    raise
        return None

    def _start_on_ports(self, installation: Installation) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self.kill)
            self._folder = folder = Path(tempfile.mkdtemp(prefix=f"{self._identity}-"))
            environment = server_environment(installation, folder)
            environment["AFFSERVE_THREADS"] = str(self.threads)
            command = self._command(installation, lay_out_backends(installation, folder))
            self._guardian, self.pid = start_guardian(
                command,
                environment=environment,
                log=self._log,
                folder=folder,
                shm_prefix=self._identity,
                models=len(MODELS),
                drain_timeout_s=self.config.drain_timeout_s,
            )
            self._wait_until_ready()
            undo.pop_all()

    def _command(self, installation: Installation, backends: Path | None) -> list[str]:
        config = self.config
        options = {
            "id": self._identity,
            "model-repository": config.repository.resolve(),
            "model-config-name": config.config_name,
            # Exactly our models; the interfaces that could change them or write files need a key that nobody has.
            "model-control-mode": "explicit",
            "grpc-restricted-protocol": f"model-repository,logging,trace:affserve={secrets.token_hex(16)}",
            "http-restricted-api": f"model-repository,logging,trace:affserve={secrets.token_hex(16)}",
            # The configurations are complete; completing them would start each stub twice.
            "disable-auto-complete-config": None,
            "http-address": config.host,
            "http-port": config.http_port,
            "grpc-address": config.host,
            "grpc-port": config.grpc_port,
            "allow-metrics": str(config.metrics_port is not None).lower(),
            "exit-timeout-secs": max(1, round(config.drain_timeout_s)),
        }
        if config.metrics_port is not None:
            options |= {"metrics-address": config.host, "metrics-port": config.metrics_port}
        command = [str(installation.binary), *(f"--{k}" if v is None else f"--{k}={v}" for k, v in options.items())]
        command += [f"--load-model={name}" for name in MODELS]
        if backends is not None:
            command += ["--allow-gpu-metrics=false", f"--backend-directory={backends}", *self._python_backend_options()]
        return command

    def _python_backend_options(self) -> list[str]:
        settings = {
            "shm-region-prefix-name": self._identity,
            "shm-default-byte-size": SHM_DEFAULT_BYTES,
            "shm-growth-byte-size": SHM_GROWTH_BYTES,
            "stub-timeout-seconds": STUB_TIMEOUT_S,
        }
        return [f"--backend-config=python,{name}={value}" for name, value in settings.items()]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_s
        while not listening(self.config.host, self.config.grpc_port):
            self._check_start(deadline)
            time.sleep(POLL_S)
        with Prober(self.grpc_url) as prober:
            while True:
                self._check_start(deadline)
                try:
                    version = self._first_answers(prober, deadline - time.monotonic())
                    break
                except InferenceServerException as error:
                    if "StatusCode.UNAVAILABLE" not in str(error.status()):
                        raise ServerError(
                            self._failure(f"answered its first request with: {error.message()}")
                        ) from error
                time.sleep(POLL_S)
        self.engine = ", ".join([f"Triton {version}", *triton_log.engines(self.log())])

    def _first_answers(self, prober: Prober, timeout_s: float) -> str:
        name, version = prober.identity(timeout_s)
        if name != self._identity:
            raise PortTakenError(
                f"port {self.config.grpc_port} was taken by another server ({name}) while ours started"
            )
        prober.infer_all(timeout_s)
        return version

    def _check_start(self, deadline: float) -> None:
        if self._cancelled.is_set():
            raise ServerError("the server was stopped while it was starting")
        log = self.log()
        # A server that cannot load its models takes seconds to unload the others; there is nothing to wait for.
        if self.exit_code is not None or triton_log.gave_up(log):
            if triton_log.port_was_taken(log):
                raise PortTakenError(self._failure("could not listen"))
            raise ServerError(self._failure("could not be started"))
        if time.monotonic() > deadline:
            waited = f"{self.config.startup_timeout_s:g} s"
            raise ServerError(self._failure(f"was not ready within {waited}; allow it longer or see its log"))

    def _failure(self, what: str) -> str:
        advice = triton_log.advice(self.log())
        return f"tritonserver for {self.config.repository} {what}: {advice}. Its log says:\n{self.log_tail()}"

    def healthy(self, timeout_s: float = 10.0) -> bool:
        """Say whether every model answers a true request within the time."""
        with Prober(self.grpc_url) as prober:
            try:
                prober.infer_all(timeout_s)
                return prober.says_ready(timeout_s)
            except InferenceServerException:
                return False

    def stop(self) -> None:
        """Let requests in flight finish, end the server and remove all it made; harmless when not started."""
        self._end(b"" if self.config.drain_timeout_s else KILL)

    def kill(self) -> None:
        """Stop without waiting for requests in flight."""
        self._end(KILL)

    def _end(self, last_word: bytes) -> None:
        if (guardian := self._guardian) is not None and guardian.stdin is not None and guardian.stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                guardian.stdin.write(last_word)
                guardian.stdin.close()
            try:
                guardian.wait(self.config.drain_timeout_s + 10)
            except subprocess.TimeoutExpired:
                guardian.kill()  # the server dies with it
                guardian.wait()
            guardian.stdout.close()
            if guardian.returncode < 0 and self.pid:
                # It was killed: the server has died with it, but nobody has ended the server's Python processes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
        remove_shared_memory(self._identity)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._guardian, self._folder, self.pid = None, None, 0

    @property
    def _log(self) -> Path:
        return (self._folder or Path()) / "triton.log"

    def log(self) -> str:
        """Return what the server has written since its start; empty when it is stopped."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._folder and self._log.exists() else ""

    def log_tail(self) -> str:
        """Return the lines of the log that tell what went wrong."""
        return triton_log.tail(self.log())
