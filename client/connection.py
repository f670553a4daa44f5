"""Which server a command talks to: one that runs already, or one that is started for a repository and stopped after.

In comes what the command line says, out comes a connected client.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from affserve.client.client import AffectClient
from affserve.client.wire.calls import RetryPolicy
from affserve.client.wire.transport import Transport
from affserve.export.server.security import PRIVATE, CallerTls
from affserve.train.errors import UsageError, printable

URL_ENVIRONMENT = "AFFSERVE_URL"
DEFAULT_POLICY = RetryPolicy()


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the model is: a repository or a running server; UsageError where that is not clear."""

    repository: Path | str | None = None  # path or address: start a server for this model repository
    url: str | None = None  # HOST:PORT of a running server, or several with commas between
    trust: bool = False  # start it also where nothing vouches for the repository
    threads: int | None = None  # of a server that is started here; None: it decides
    quiet: bool = False
    transport: Transport = Transport.AUTO  # how frames travel
    tls: bool = False  # encrypt; any of the following turns it on
    tls_ca: Path | None = None  # PEM: who vouches for the server; None: the public authorities
    tls_cert: Path | None = None  # PEM: our own certificate
    tls_key: Path | None = None  # PEM: its key
    tls_name: str | None = None  # in the server's certificate, when it is not the host of the url
    policy: RetryPolicy = DEFAULT_POLICY  # deadlines, and for how long a call is repeated

    def __post_init__(self) -> None:
        if self.repository is not None and self.url is not None:
            raise UsageError("give --repository or --url, not both")
        if self.repository is None and self.server_url is None:
            raise UsageError(
                f"give --repository DIR (starts a server) or --url HOST:PORT (uses one; also ${URL_ENVIRONMENT})"
            )
        if self.repository is not None and self.caller_tls is not None:
            raise UsageError("--tls... is for --url: a server that is started here talks to this machine only")

    @property
    def server_url(self) -> str | None:
        """The address to use; --repository wins over the environment."""
        return self.url or (os.environ.get(URL_ENVIRONMENT) if self.repository is None else None)

    @property
    def caller_tls(self) -> CallerTls | None:
        """How the server is checked and who we are; None: plain text."""
        if not (self.tls or self.tls_ca or self.tls_cert or self.tls_key or self.tls_name):
            return None
        return CallerTls(root=self.tls_ca, certificate=self.tls_cert, key=self.tls_key, server_name=self.tls_name)


def is_named(repository: Path | str | None, url: str | None) -> bool:
    """Say whether a model was named at all, for commands that do with and without one."""
    return repository is not None or url is not None or URL_ENVIRONMENT in os.environ


@contextmanager
def connected(connection: Connection) -> Iterator[AffectClient]:
    """Yield a connected client; a server that was started here is stopped at the end."""
    with (
        _server(connection) as url,
        AffectClient(
            url,
            transport=connection.transport,
            tls=connection.caller_tls,
            timeout_s=connection.policy.timeout_s,
            retry_for_s=connection.policy.retry_for_s,
        ) as client,
    ):
        yield client


class SharedClient:
    """A client for several threads, connected when one of them asks for it first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: AffectClient | None = None
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def get(self) -> AffectClient:
        """Return it connected; AffserveError where that fails, and the next one who asks tries again."""
        with self._lock:
            if self._client is None:
                self._client = self._stack.enter_context(connected(self._connection))
            return self._client

    @contextmanager
    def beside(self, policy: RetryPolicy) -> Iterator[AffectClient]:
        """Yield another client of the same server, which repeats calls by a policy of its own."""
        url = self.get().url
        with connected(replace(self._connection, repository=None, trust=False, url=url, policy=policy)) as client:
            yield client

    def close(self) -> None:
        """Disconnect, and stop a server that was started."""
        self._stack.close()


@contextmanager
def _server(connection: Connection) -> Iterator[str]:
    url = connection.server_url
    if url is not None or connection.repository is None:
        yield url or ""
        return
    from affserve.export.server.config import ServerConfig
    from affserve.export.server.supervisor import SupervisedServer
    from affserve.export.sharing.cache import local_repository

    # A socket file: no other user of this machine can ask the server, crash it, or touch the frames.
    config = ServerConfig(
        repository=local_repository(connection.repository, _note),
        trust=connection.trust,
        threads=connection.threads,
        host=PRIVATE,
    )
    server = SupervisedServer(config, on_event=_tell_server_event)
    with Console(stderr=True, quiet=connection.quiet).status("starting a server"):  # shows only in a terminal
        server.start()
    try:
        yield server.grpc_url
    finally:
        server.stop()


def _tell_server_event(event: Mapping[str, object]) -> None:
    reason = f" ({event['reason']})" if "reason" in event else ""
    _note(f"the local server: {event['event']}{reason}")


def _note(text: str) -> None:
    print(printable(f"note: {text}"), file=sys.stderr)
