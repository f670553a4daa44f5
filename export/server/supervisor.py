"""Keeps a tritonserver answering: restarts it on the same ports when it, or a Python process behind a model, died.

Watched are the server process and its children (every 0.25 s, read from /proc), the repository, if that is asked for,
and a true inference whenever nobody else had an answer for a while: a dead or stuck model does not show anywhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from tritonclient.utils import InferenceServerException

from affserve.export.contract import CLIP_ENCODER, JPEG_DECODER, TEMPORAL_HEAD, ModelSpec
from affserve.export.machine.processes import children_of, is_running
from affserve.export.repository.check import manifest_text
from affserve.export.server import triton_log
from affserve.export.server.config import ServerConfig
from affserve.export.server.engine_choice import passed_over
from affserve.export.server.events import Event, print_event
from affserve.export.server.own_folder import OwnFolder, write_note
from affserve.export.server.probe import Prober
from affserve.export.server.security import PRIVATE
from affserve.export.server.server import TritonServer, UnpreparedError, preparing, verified
from affserve.train.errors import AffserveError, RepositoryError, ServerError

WATCH_PERIOD_S = 0.25
PROBE_PERIOD_S = 5.0
PROBE_TIMEOUT_S = 5.0
STUCK_AFTER_S = 120.0  # without one answer while asked; a full batch on two cores takes half a minute
PROBED = (CLIP_ENCODER, TEMPORAL_HEAD, JPEG_DECODER)  # where they are served; ensembles have no process of their own
MAX_REFUSALS = 3  # of a repository that cannot be served, in a row; then a restart is no cure
FAILURE_PERIOD_S = 900.0  # for which failures are counted
FIRST_DELAY_S = 0.5  # before the second restart in that time; doubles from there
LONGEST_DELAY_S = 60.0
LONGEST_SOCKET_PATH = 100  # bytes; the kernel takes 107, and Triton appends a colon and a port
ROOM_PERIOD_S = 1.0  # between restarts that a full disk, or the like, prevents
ROOM_TIMEOUT_S = 600.0  # then it is not worth waiting for any longer


class SupervisedServer:
    """A tritonserver that comes back; a context manager that starts and stops it.

    Its addresses stay the same for as long as it runs, restarts included.
    """

    def __init__(self, config: ServerConfig, *, on_event: Callable[[Event], None] = print_event) -> None:
        self._config = config
        self._on_event = on_event
        self._stopping = threading.Event()
        self._ended = threading.Event()  # stopped, or given up
        self._failure: ServerError | None = None
        self._refused = b""  # the latest manifest of a repository that may not be served
        self._failures: deque[float] = deque()  # times, s, of the last failures
        self._server = TritonServer(config, cancelled=self._stopping)
        self._own: OwnFolder | None = None  # lasts from start to stop, unlike those of the servers
        self._children: dict[int, str] = {}
        self._probed: tuple[ModelSpec, ...] = ()
        self._answered: dict[str, int] = {}  # requests, by model, at the last probe
        self._last_answer_s: dict[str, float] = {}  # when each model was last known to answer
        self._watcher = threading.Thread(target=self._watch, name="affserve-supervisor", daemon=True)

    def __enter__(self) -> SupervisedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        """Host and port of gRPC."""
        return self._server.grpc_url

    @property
    def pid(self) -> int:
        """Process id of the tritonserver that runs now; 0 while there is none."""
        return self._server.pid

    @property
    def engine(self) -> str:
        """What computes, such as "Triton 2.51.0, ONNX Runtime 1.31.1 CPU"."""
        return self._server.engine

    def describe(self) -> str:
        """Return one line that says what is served, where, and by what."""
        server = self._server
        version = f"version {server.version} of " if server.version is not None else ""
        return (
            f"serving {self._config.repository} on {' '.join(server.addresses())}: {server.engine}, "
            f"{server.config.parallelism}, {version}models {' '.join(sorted(model.name for model in server.models))}"
            + "".join(f"; {told}" for told in (passed_over(server.passed_over), server.notice) if told)
        )

    def start(self) -> None:
        """Return when every model has answered a request; RepositoryError or ServerError when that cannot be."""
        with preparing(self._config.repository):
            self._own = OwnFolder()
        try:
            self._server = TritonServer(self._addressed(self._own), cancelled=self._stopping)
            self._server.start()
        except BaseException:
            self._own.remove()
            self._own = None  # to be removed once: its file descriptor may be somebody else's by then
            raise
        self._config = self._server.config  # from here on with these ports and this engine set
        self._mark_ready()
        self._watcher.start()

    def _addressed(self, own: OwnFolder) -> ServerConfig:
        """Return the configuration with a socket file of ours where it asks for one without saying where."""
        if self._config.host != PRIVATE:
            return self._config
        host = f"{PRIVATE}{own.path}/grpc"
        return dataclasses.replace(self._config, host=host if len(host) < LONGEST_SOCKET_PATH else "127.0.0.1")

    def wait(self) -> None:
        """Block until the server is stopped; ServerError when it could not be kept alive."""
        while not self._ended.wait(WATCH_PERIOD_S):
            # The kernel may give a signal to another thread; Python handles it when this one wakes, which nothing else
            # sees to: on a busy machine one SIGTERM in some 50 was never answered.
            continue
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let requests in flight finish, then end the server and remove all it has made."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._server.stop()
        if self._own is not None:
            self._own.remove()
            self._own = None
        self._ended.set()

    def _mark_ready(self) -> None:
        self._children = children_of(self._server.pid)
        self._probed = tuple(model for model in PROBED if model in self._server.models)
        self._answered = {}
        self._last_answer_s = {model.name: time.monotonic() for model in self._probed}

    def _watch(self) -> None:
        """Watch until stopped. However watching ends, somebody learns of it: nobody else would see a dead server."""
        try:
            self._watch_until_stopped()
        except Exception as error:  # noqa: BLE001 - see above
            self._give_up(f"watching tritonserver failed: {error!r}")

    def _watch_until_stopped(self) -> None:
        next_probe_s = time.monotonic() + PROBE_PERIOD_S
        while not self._stopping.wait(WATCH_PERIOD_S):
            reason = None
            with contextlib.suppress(OSError):  # no file left to look with: it looks again
                reason = self._dead_process()
                if reason is None and time.monotonic() >= next_probe_s:
                    next_probe_s = time.monotonic() + PROBE_PERIOD_S
                    reason = self._probe()
                    self._tell_errors()
                    reason = reason or self._another_version()
            if reason is not None and not self._restart(reason):
                return

    def _another_version(self) -> str | None:
        """Say so where the repository now has something else to serve, once requests in flight have been answered.

        What may not be served is told, and the server stays as it is.
        """
        found = manifest_text(self._config.repository) if self._config.watch else b""
        if found in (b"", self._server.manifest, self._refused):
            return None
        try:
            verified(self._config)
        except RepositoryError as error:
            self._refused = found
            self._tell({"event": "not changed over", "reason": str(error), "url": self.grpc_url})
            return None
        self._server.stop()
        return "the repository has another version to serve"

    def _dead_process(self) -> str | None:
        if (code := self._server.exit_code) is not None:
            return f"tritonserver ended with exit code {code}"
        dead = [pid for pid, started in self._children.items() if not is_running(pid, started)]
        return f"the process behind a model died (pid {dead[0]})" if dead else None

    def _probe(self) -> str | None:
        """Return what is wrong with the answers; being slow is not, as long as some come."""
        try:
            with self._server.prober() as prober:
                before, now = self._answered, _answered(prober)
                for model in self._probed:
                    # One that has answered others is well: a probe would only wait in the same queue.
                    if now.get(model.name, 0) == before.get(model.name, 0):
                        prober.infer(model, PROBE_TIMEOUT_S)
                    self._last_answer_s[model.name] = time.monotonic()
                self._answered = _answered(prober)
        except InferenceServerException as error:
            if "DEADLINE_EXCEEDED" not in str(error.status()):
                return f"a request failed: {error.message()}"
            return silence(self._last_answer_s.values(), time.monotonic())
        return None

    def _tell_errors(self) -> None:
        """Tell of what the server has logged as errors since the last time, such as requests it had to refuse.

        Its statistics will not do: to 2.51 a request that a python model refused is one that was answered.
        """
        if errors := triton_log.errors(self._server.new_log()):
            self._tell({"event": "errors", "count": len(errors), "last": errors[-1], "url": self.grpc_url})

    def _tell(self, event: Event) -> None:
        """Report an event; what reporting raises must not end watching."""
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001 - the owner's function may raise anything
            print_event({"event": "report failed", "reason": repr(error), "of": event["event"]})

    def _restart(self, reason: str) -> bool:
        """Start a new server on the old ports, trying again after growing pauses; False when stopped or given up."""
        began_s, refusals = time.monotonic(), 0
        while not self._stopping.is_set():
            if refusals == MAX_REFUSALS:
                self._give_up(f"tritonserver was not started again after {refusals} attempts: {reason}")
                return False
            tail = self._log_tail()
            self._server.kill()
            failures = count_failure(self._failures, time.monotonic())
            self._tell_restart(reason, failures, tail)
            if self._stopping.wait(pause_s(failures)):
                return False
            self._server = TritonServer(self._config, cancelled=self._stopping, proven=self._server.proven)
            try:
                self._start_when_there_is_room()
            except UnpreparedError as error:
                self._give_up(str(error))
                return False
            except AffserveError as error:
                reason = str(error)
                refusals = refusals + 1 if isinstance(error, RepositoryError) else 0
                continue
            self._mark_ready()
            self._note(None)
            recovery_s = round(time.monotonic() - began_s, 2)
            version = self._server.version
            self._tell({"event": "ready", "recovery_s": recovery_s, "version": version, "url": self.grpc_url})
            return True
        return False

    def _tell_restart(self, reason: str, failures: int, tail: str) -> None:
        """Report a restart, from the third on with what Triton logged last; also to `affserve status`."""
        told = {"reason": reason, "failures": failures, "pause_s": pause_s(failures), "url": self.grpc_url}
        self._tell({"event": "restarting", **told, **({"log": tail} if tail and failures > 2 else {})})
        self._note({**told, "within_s": FAILURE_PERIOD_S, "next_start": time.time() + pause_s(failures)})

    def _note(self, facts: Event | None) -> None:
        """Leave a note for `affserve status`, which nobody answers now; None: the server answers for itself again."""
        if self._own is not None:
            write_note(self._own.path, facts)

    def _log_tail(self) -> str:
        try:
            return self._server.log_tail()
        except OSError:  # it is only for the message
            return ""

    def _start_when_there_is_room(self) -> None:
        """Start the server; while the machine refuses what it needs first, such as room in a full folder, try again.

        That is no failure of the server, and is not counted as one. UnpreparedError when it lasts too long.
        """
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        told = False
        while True:
            try:
                return self._server.start()
            except UnpreparedError as error:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    self._tell({"event": "waiting", "reason": str(error), "url": self.grpc_url})
                    told = True
            if self._stopping.wait(ROOM_PERIOD_S):
                raise ServerError("the server was stopped while it waited for room")

    def _give_up(self, reason: str) -> None:
        self._failure = ServerError(reason)
        self._tell({"event": "gave up", "reason": reason, "url": self.grpc_url})
        self._ended.set()


def _answered(prober: Prober) -> dict[str, int]:
    return {one.name: one.succeeded for one in prober.statistics(PROBE_TIMEOUT_S)}


def silence(last_answers_s: Iterable[float], now_s: float) -> str | None:
    """Say so when the model that has answered longest ago has been silent for too long."""
    silent_s = now_s - min(last_answers_s)
    return f"a model has answered nothing for {silent_s:.0f} s" if silent_s > STUCK_AFTER_S else None


def count_failure(failures: deque[float], now_s: float) -> int:
    """Add a failure to those of the last FAILURE_PERIOD_S, forget older ones, and return how many there are."""
    failures.append(now_s)
    while now_s - failures[0] > FAILURE_PERIOD_S:
        failures.popleft()
    return len(failures)


def pause_s(failures: int) -> float:
    """Return how long to wait before a restart: not at all the first time, then twice as long, up to a minute."""
    return min(FIRST_DELAY_S * 2 ** min(failures - 2, 30), LONGEST_DELAY_S) if failures > 1 else 0.0
