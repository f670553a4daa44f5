"""What to serve, where, to whom and with how much of the machine; and the command line of tritonserver that says so.

One place for the server that affserve starts and for the containers that it only describes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from affserve.export import engine_sets
from affserve.export.engine_sets import ENGINE_SETS
from affserve.export.machine.cores import Parallelism, choose_parallelism, usable_cores
from affserve.export.machine.ports import PortTakenError, choose_ports, listening
from affserve.export.server.security import PRIVATE, ServerTls, is_loopback, is_private, restriction
from affserve.train.errors import ServerError

PORT_FIELDS = ("grpc_port", "http_port", "metrics_port")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What to serve and where."""

    repository: Path  # the folder that `affserve export` wrote
    host: str = "127.0.0.1"  # address to listen on; unix:PATH: a socket file that only this user can open
    grpc_port: int = 0  # 0: any free one
    http_port: int | None = None  # HTTP; None: off, 0: any free one
    metrics_port: int | None = None  # Prometheus metrics; None: off, 0: any free one
    engine: str = engine_sets.AUTO  # an engine set, or AUTO: the fastest that runs here and answers as PyTorch did
    without: tuple[str, ...] = ()  # backends of the set cpu that ONNX Runtime is to stand in for
    threads: int | None = None  # per instance of a model on a CPU; None: the physical cores, shared out
    instances: int | None = None  # of the encoder; None: as many as the cores, or the set on a GPU, are worth
    tls: ServerTls | None = None  # None: plain text
    shared_memory: bool | None = None  # may callers register regions; None: when only this machine can call
    watch: bool = False  # change over when another version of the repository is to be served
    trust: bool = False  # serve a repository that nothing vouches for: its files may run programs
    verify_key: Path | None = None  # PEM, public: serve only what its owner signed
    accept_known_holes: bool = False  # listen beyond this machine with a server that should not
    log: Path | None = None  # Triton's own log; None: a file that ends with the server
    # From start to the first true answer, s: an RTX card compiles its kernels at the first start.
    startup_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0  # for requests in flight when stopping, s; 0: end at once (draining takes 1.5 s)

    def __post_init__(self) -> None:
        if self.engine != engine_sets.AUTO and self.engine not in ENGINE_SETS:
            raise ServerError(f"engine is {self.engine}; expected {engine_sets.AUTO}, {', '.join(ENGINE_SETS)}")
        given = [(field, port) for field in PORT_FIELDS if (port := getattr(self, field))]
        for (one, port), (other, same) in itertools.combinations(given, 2):
            if port == same:
                raise ServerError(f"{one} and {other} are both {port}; each needs a port of its own")
        if self.serves_http and self.tls is not None:
            raise ServerError("Triton can encrypt gRPC only: give --http-port or --tls-cert, not both")
        if is_private(self.host) and self.host != PRIVATE and not self.host.startswith(f"{PRIVATE}/"):
            raise ServerError(f"host is {self.host!r}; expected unix:/PATH, from the root on")
        if is_private(self.host) and (self.tls is not None or self.serves_http):
            raise ServerError(f"{self.host} is for this user alone: it takes neither --tls-cert nor --http-port")

    @property
    def shares_memory(self) -> bool:
        """Whether callers may register shared memory."""
        return is_loopback(self.host) if self.shared_memory is None else self.shared_memory

    @property
    def serves_http(self) -> bool:
        """Whether there is HTTP: it is off unless asked for, since one request of many small chunks ends 2.51."""
        return self.http_port is not None

    @property
    def metrics_host(self) -> str:
        """Where metrics are served: they cannot be encrypted, so beside TLS only to this machine."""
        return self.host if self.tls is None and not is_private(self.host) else "127.0.0.1"

    @property
    def parallelism(self) -> Parallelism:
        """Instances of the encoder and threads of each, of the set that `engine` names; until it does, of the CPU's."""
        engine = ENGINE_SETS.get(self.engine)
        if engine is None or not engine.on_gpu:
            return choose_parallelism(self.instances, self.threads)
        instances, threads = self.instances or engine.instances, self.threads or usable_cores()
        return Parallelism(instances=instances, threads=threads, on_gpu=True)

    def with_ports(self) -> ServerConfig:
        """Return the same with free ports in place of the open ones; PortTakenError when a given one is in use."""
        wanted = {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}
        taken: dict[str, int] = {}
        if is_private(self.host):  # there the port is only the end of the file's name
            taken["grpc"] = wanted.pop("grpc") or 1
            if listening(self.host, taken["grpc"]):
                raise PortTakenError(f"another server listens on {self.host}:{taken['grpc']}; choose another --host")
        host = self.metrics_host if taken else self.host
        ports = taken | choose_ports(host, {name: port for name, port in wanted.items() if port is not None})
        return dataclasses.replace(
            self, grpc_port=ports["grpc"], http_port=ports.get("http"), metrics_port=ports.get("metrics")
        )


# A chunk of 32 frames fits at once, and a whole window of 300 (45 MB) after growing, within the 64 MB of /dev/shm that
# containers have by default. It never shrinks.
SHM_DEFAULT_BYTES = 8 << 20
SHM_GROWTH_BYTES = 8 << 20
STUB_TIMEOUT_S = 60  # for a stub to import ONNX Runtime and read its model

Options = dict[str, object]  # name without the dashes -> value; None: an option without a value


def serving_options(config: ServerConfig, models: Path, callers: Path | None) -> Options:
    """Return the options that hold for every kind of installation.

    models: the repository as the server sees it; it holds our models and nothing else. callers: PEM that callers'
    certificates must lead to, when they need one.
    """
    return {
        "model-repository": models,
        "model-config-name": config.engine,
        # All models once, and nobody can load another: who may load one may bring a model.py that runs as we do.
        "model-control-mode": "none",
        # The configurations are complete; completing them would start each stub twice.
        "disable-auto-complete-config": None,
        "exit-timeout-secs": max(1, round(config.drain_timeout_s)),
        **_interfaces(config),
        **_encryption(config, callers),
    }


def _interfaces(config: ServerConfig) -> Options:
    closed = restriction(shared_memory=config.shares_memory)
    options: Options = {
        "grpc-address": config.host,
        "grpc-port": config.grpc_port,
        "grpc-restricted-protocol": closed,
        "allow-http": _word(config.serves_http),
        "allow-metrics": _word(config.metrics_port is not None),
    }
    if config.serves_http:
        options |= {"http-address": config.host, "http-port": config.http_port, "http-restricted-api": closed}
    if config.metrics_port is not None:
        options |= {"metrics-address": config.metrics_host, "metrics-port": config.metrics_port}
    return options


def _encryption(config: ServerConfig, callers: Path | None) -> Options:
    if config.tls is None:
        return {}
    options: Options = {
        "grpc-use-ssl": _word(True),
        "grpc-server-cert": config.tls.certificate,
        "grpc-server-key": config.tls.key,
    }
    return options if callers is None else {**options, "grpc-use-ssl-mutual": _word(True), "grpc-root-cert": callers}


def _word(value: bool) -> str:
    return str(value).lower()


def arguments(options: Mapping[str, object]) -> list[str]:
    """Return options as the words of a command line."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]


def wheel_arguments(backends: Path, shm_prefix: str) -> list[str]:
    """Return what only the wheel's server needs: our backends, and names for its shared memory."""
    settings = {
        "shm-region-prefix-name": shm_prefix,
        "shm-default-byte-size": SHM_DEFAULT_BYTES,
        "shm-growth-byte-size": SHM_GROWTH_BYTES,
        "stub-timeout-seconds": STUB_TIMEOUT_S,
    }
    return [
        "--allow-gpu-metrics=false",
        f"--backend-directory={backends}",
        *(f"--backend-config=python,{name}={value}" for name, value in settings.items()),
    ]
