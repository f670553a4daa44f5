"""One tritonserver over a model repository, from checking the repository to removing the last shared memory file.

In comes a ServerConfig, out comes a server that has answered a true request on every model. It does not watch over
itself: supervisor.py does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tritonclient.utils import InferenceServerException

from affserve.export import engine_sets
from affserve.export.contract import ModelSpec
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.machine.ports import PortTakenError, listening
from affserve.export.machine.processes import dead_child
from affserve.export.repository.check import manifest_text, served_models, verify_repository
from affserve.export.repository.instances import lay_out_models
from affserve.export.repository.manifest import Manifest
from affserve.export.repository.self_test import self_test
from affserve.export.server import triton_log
from affserve.export.server.config import ServerConfig, arguments, serving_options, wheel_arguments
from affserve.export.server.engine_choice import machine_obstacle, notice
from affserve.export.server.guardian import KILL, Guarded, close_shared_memory, remove_shared_memory, start_guardian
from affserve.export.server.installation import (
    Installation,
    find_installation,
    lay_out_backends,
    server_environment,
    stand_ins,
)
from affserve.export.server.own_folder import OwnFolder, remove_orphans
from affserve.export.server.probe import Prober, identify
from affserve.export.server.security import CallerTls, check_host, is_private, supervisor_tls
from affserve.export.sharing import signing
from affserve.train.errors import RepositoryError, ServerError, remedy

POLL_S = 0.02
*FASTER, LAST_RESORT = ENGINE_SETS  # every machine has a CPU
LOOK_PERIOD_S = 0.3
LAST_WORDS_S = 2.0
PORTS_TAKEN = 5  # starts that may find a port taken meanwhile
CRASHES = 2  # those that may end in a crash: Triton's own at its start, seen on a busy machine, do not come twice
CRASH_CODES = {128 + signal.SIGABRT, 128 + signal.SIGSEGV, 128 + signal.SIGBUS}
OTHER_SERVER_TIMEOUT_S = 1.0  # to say who it is
LOG_LIMIT_BYTES = 8 << 20  # then it starts over, and one file of that size before it is kept


class CrashedError(ServerError):
    """A server crashed while it started."""


class UnpreparedError(ServerError):
    """The machine refused what a server needs before it starts, such as room for its files: it may have it later."""


def verified(config: ServerConfig) -> Manifest | None:
    """Return the manifest of a repository that may be served; RepositoryError for another, or one not signed."""
    if config.verify_key is not None:
        signing.verify(config.repository, config.verify_key)
    return verify_repository(config.repository, config.engine, trust=config.trust)


@contextlib.contextmanager
def preparing(repository: Path) -> Iterator[None]:
    """Turn what the machine refuses inside the block into an UnpreparedError."""
    try:
        yield
    except OSError as error:
        raise UnpreparedError(
            f"tritonserver for {repository} cannot be prepared: {error}; "
            f"{remedy(error) or 'look after the folder for temporary files, or choose another with TMPDIR'}"
        ) from error


class TritonServer:
    """A running tritonserver; a context manager that starts and stops it.

    cancelled: set from another thread to give up starting. proven: the manifest of a repository whose answers a server
    with this configuration has proven on this machine; it need not again.
    """

    def __init__(
        self, config: ServerConfig, *, cancelled: threading.Event | None = None, proven: Manifest | None = None
    ) -> None:
        self.config = config  # once it has been started, with its ports and its engine set
        self.proven = proven
        self.passed_over: dict[str, str] = {}  # faster engine sets, and why they are not served
        self.pid = 0  # of tritonserver
        self.engine = ""  # such as "Triton 2.51.0, set cpu, ONNX Runtime 1.31.1 CPU"
        self.notice = ""  # what whoever serves should know
        self.models: tuple[ModelSpec, ...] = ()  # once it has been started
        self.manifest = b""  # of the repository, as it was then
        self._cancelled = cancelled or threading.Event()
        self._identity = f"affserve-{secrets.token_hex(8)}"  # its name, and the prefix of its shared memory
        self._guardian: subprocess.Popen[bytes] | None = None
        self._own: OwnFolder | None = None
        self._tls: CallerTls | None = None
        self._manifest: Manifest | None = None
        self._log_start = 0  # bytes of the log that earlier servers have written
        self._next_look_s = 0.0  # at the processes behind the models while it starts
        self._dead_since_s: float | None = None  # one of them
        self._log_read = 0  # bytes of it that new_log has returned

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

    def addresses(self) -> list[str]:
        """Return where the server listens, such as ["grpc://127.0.0.1:8001", "http://127.0.0.1:8000"]."""
        config = self.config
        plain = config.tls is None
        metrics = f"http://{config.metrics_host}:{config.metrics_port}/metrics"
        return [
            self.grpc_url if is_private(config.host) else f"{'grpc' if plain else 'grpcs'}://{self.grpc_url}",
            *([f"http://{self.http_url}"] if config.serves_http else []),
            *([metrics] if config.metrics_port is not None else []),
        ]

    @property
    def version(self) -> int | None:
        """The version of the repository that is served, where that says so."""
        return self._manifest.served if self._manifest is not None else None

    @property
    def exit_code(self) -> int | None:
        """None while tritonserver runs; 128 + n when signal n ended it."""
        return self._guardian.poll() if self._guardian is not None else None

    def start(self) -> None:
        """Return when every model has answered a request; RepositoryError or ServerError when that cannot be."""
        with preparing(self.config.repository):
            self._start()

    def _start(self) -> None:
        self.manifest = manifest_text(self.config.repository)
        installation = find_installation()
        remove_orphans()
        check_host(installation.version, self.config.host, accepted=self.config.accept_known_holes)
        asked = self.config
        if asked.engine != engine_sets.AUTO:
            return self._start_set(asked, installation)
        self.passed_over = {}
        for name in FASTER:
            if (trouble := machine_obstacle(name, installation)) is not None:
                self.passed_over[name] = trouble.text
                continue
            try:
                return self._start_set(dataclasses.replace(asked, engine=name), installation)
            except (ServerError, RepositoryError) as error:
                if self._cancelled.is_set():
                    raise
                self.passed_over[name] = str(error).partition("\n")[0]
        return self._start_set(dataclasses.replace(asked, engine=LAST_RESORT), installation)

    def _start_set(self, requested: ServerConfig, installation: Installation) -> None:
        """Start the server with an engine set that is named."""
        if (trouble := machine_obstacle(requested.engine, installation)) is not None:
            raise ServerError(f"--engine {requested.engine} cannot be served: {trouble.text}; {trouble.remedy}")
        self._manifest = verified(requested)
        self.notice = notice(requested.engine, self._manifest, installation)
        self.models = served_models(requested.repository)
        taken = crashes = 0
        while True:
            self.config = self._with_ports(requested)
            try:
                return self._start_on_ports(installation)
            except PortTakenError:
                taken += 1
                if self.config == requested or taken == PORTS_TAKEN:
                    raise
            except CrashedError:
                crashes += 1
                if crashes == CRASHES:
                    raise

    @staticmethod
    def _with_ports(requested: ServerConfig) -> ServerConfig:
        try:
            return requested.with_ports()
        except PortTakenError as error:
            found = identify(f"{requested.host}:{requested.grpc_port}", OTHER_SERVER_TIMEOUT_S)
            if found is None:
                raise
            raise PortTakenError(f"{error}. What listens there is {found}: affserve status shows it") from error

    def _start_on_ports(self, installation: Installation) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self.kill)
            self._own, self._dead_since_s = OwnFolder(self._identity), None
            folder = self._own.path
            environment = server_environment(installation, folder)
            environment["AFFSERVE_THREADS"] = str(self.config.parallelism.threads)
            guarded = Guarded(
                command=self._command(installation, folder),
                log=str(self._log.absolute()),
                log_limit_bytes=LOG_LIMIT_BYTES,
                folder=str(folder),
                shm_prefix=self._identity,
                models=len(self.models),
                drain_timeout_s=self.config.drain_timeout_s,
            )
            self._log_start = self._log.stat().st_size if self._log.exists() else 0
            self._guardian, self.pid = start_guardian(guarded, environment=environment, lock=self._own.lock)
            self._wait_until_ready()
            undo.pop_all()

    def _command(self, installation: Installation, folder: Path) -> list[str]:
        config = self.config
        others = {**stand_ins(installation), **dict.fromkeys(config.without, engine_sets.ONNX_RUNTIME)}
        models = lay_out_models(config.repository, config.engine, config.parallelism.instances, folder, others)
        callers = config.tls.trusted_callers(folder) if config.tls is not None else None
        options = serving_options(config, models, callers)
        command = [str(installation.binary), f"--id={self._identity}", *arguments(options)]
        backends = lay_out_backends(installation, folder)
        return command if backends is None else command + wheel_arguments(backends, self._identity)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_s
        self._wait_for_port(self.config.host, self.config.grpc_port, deadline)
        tls = self.config.tls
        self._tls = None if tls is None else supervisor_tls(tls, self.config.host, self.config.grpc_port)
        with self.prober() as prober:
            while True:
                self._check_start(deadline)
                try:
                    version = self._first_answers(prober, deadline - time.monotonic())
                    close_shared_memory(self._identity)
                    self._prove(prober, deadline - time.monotonic())
                    break
                except InferenceServerException as error:
                    if "StatusCode.UNAVAILABLE" not in str(error.status()):
                        raise ServerError(
                            self._failure(f"answered its first request with: {error.message()}")
                        ) from error
                time.sleep(POLL_S)
        # Triton opens the other ports a moment after that of gRPC.
        if self.config.http_port is not None:
            self._wait_for_port(self.config.host, self.config.http_port, deadline)
        if self.config.metrics_port is not None:
            self._wait_for_port(self.config.metrics_host, self.config.metrics_port, deadline)
        self.engine = f"Triton {version}, set {self.config.engine}, {_words(triton_log.engines(self.log()))}"
        self.new_log()  # what it told while it started is no news

    def _wait_for_port(self, host: str, port: int, deadline: float) -> None:
        while not listening(host, port):
            self._check_start(deadline)
            time.sleep(POLL_S)

    def prober(self) -> Prober:
        """Return a caller of this server; it is to be used as a context manager."""
        return Prober(self.grpc_url, tls=self._tls)

    def _first_answers(self, prober: Prober, timeout_s: float) -> str:
        name, version = prober.identity(timeout_s)
        if name != self._identity:
            raise PortTakenError(
                f"port {self.config.grpc_port} was taken by another server ({name}) while ours started"
            )
        for model in self.models:
            prober.infer(model, timeout_s)
        return version

    def _prove(self, prober: Prober, timeout_s: float) -> None:
        """Compare answers with PyTorch's; a repository that was put together by hand has none to compare with."""
        if self._manifest is not None and self._manifest != self.proven:
            self_test(
                lambda model, inputs: prober.ask(model, inputs, timeout_s),
                self.config.repository,
                self._manifest,
                self.config.engine,
            )
        self.proven = self._manifest

    def _check_start(self, deadline: float) -> None:
        if self._cancelled.is_set():
            raise ServerError("the server was stopped while it was starting")
        log = self.log()
        # A server that cannot load its models takes seconds to unload the others; there is nothing to wait for.
        if self.exit_code is not None or triton_log.gave_up(log):
            if triton_log.port_was_taken(log):
                raise PortTakenError(self._failure("could not listen"))
            ended = f" (it ended with exit code {self.exit_code})" if self.exit_code is not None else ""
            kind = CrashedError if self.exit_code in CRASH_CODES else ServerError
            raise kind(self._failure(f"could not be started{ended}"))
        if self._has_dead_child():
            raise ServerError(self._failure("could not be started: the process behind a model has ended"))
        if time.monotonic() > deadline:
            waited = f"{self.config.startup_timeout_s:g} s"
            raise ServerError(self._failure(f"was not ready within {waited}; allow it longer or see its log"))

    def _has_dead_child(self) -> bool:
        """Say whether a process behind a model has been dead for longer than Triton needs to tell why, if it knows.

        It waits a whole minute for one that could not even begin.
        """
        now_s = time.monotonic()
        if now_s > self._next_look_s:
            self._next_look_s = now_s + LOOK_PERIOD_S
            self._dead_since_s = (self._dead_since_s or now_s) if dead_child(self.pid) is not None else None
        return self._dead_since_s is not None and now_s > self._dead_since_s + LAST_WORDS_S

    def _failure(self, what: str) -> str:
        advice = f": {known}" if (known := triton_log.advice(self.log(), self.exit_code)) else ""
        return f"tritonserver for {self.config.repository} {what}{advice}. Its log says:\n{self.log_tail()}"

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
        if self._own is not None:
            self._own.remove()
        self._guardian, self._own, self.pid = None, None, 0

    @property
    def _log(self) -> Path:
        return self.config.log or (self._own.path if self._own is not None else Path()) / "triton.log"

    def log(self) -> str:
        """Return what the server has written since its start, or since its log started over; empty when stopped."""
        return self._log_from(self._log_start)[0]

    def new_log(self) -> str:
        """Return what the server has written since this was asked last, or since it was ready."""
        text, self._log_read = self._log_from(self._log_read)
        return text

    def _log_from(self, offset: int) -> tuple[str, int]:
        if self._own is None or not self._log.exists():
            return "", 0
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(offset if size >= offset else 0)
            return file.read().decode(errors="replace"), file.tell()

    def log_tail(self) -> str:
        """Return the lines of the log that tell what went wrong."""
        return triton_log.tail(self.log())


def _words(engines: Mapping[str, str]) -> str:
    """Say what computes: one engine for all, or each model with its own."""
    if len(set(engines.values())) <= 1:
        return next(iter(engines.values()), "its own engines")
    return ", ".join(f"{model} {engine}" for model, engine in sorted(engines.items()))
