"""From `HOST:PORT[,HOST:PORT...]` to the arguments of gRPC channels: addresses, encryption, keepalive."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.export.server.security import CallerTls, is_loopback, is_private
from affserve.train.errors import ServerError, UsageError

UNLIMITED_BYTES = 2**31 - 1
LONGEST_RECONNECT_PAUSE_MS = 2000
# Triton counts pings that come more often than every 5 minutes without data between them and hangs up on the third
# (--grpc-http2-min-recv-ping-interval-without-data, -max-ping-strikes). Rarer ones are always welcome.
KEEPALIVE_MS = 310_000
# Also how long sent data may stay unacknowledged (TCP_USER_TIMEOUT): a host that vanished is noticed after this.
KEEPALIVE_TIMEOUT_MS = 20_000

ChannelArguments = list[tuple[str, int | str]]
Resolver = Callable[[str], Sequence[str]]  # host name -> the addresses behind it now; an OSError where there are none
CHANNEL_ARGUMENTS: ChannelArguments = [
    # tritonclient sets the two sizes itself only when it is given no channel arguments at all.
    ("grpc.max_send_message_length", UNLIMITED_BYTES),
    ("grpc.max_receive_message_length", UNLIMITED_BYTES),
    # gRPC would wait up to two minutes between attempts; a restarted server is back within seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_PAUSE_MS),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
]


@dataclass(frozen=True, kw_only=True)
class Address:
    """One server."""

    host: str  # name, IPv4 address, IPv6 address in brackets, or unix:PATH of a socket file
    port: int
    found_as: str | None = None  # the name whose address this is

    @property
    def is_name(self) -> bool:
        """Whether it may stand for several servers, and for others tomorrow."""
        bare = self.host.strip("[]")
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            return not is_loopback(bare) and not is_private(self.host)
        return False

    def client_options(self, tls: CallerTls | None = None) -> dict[str, Any]:
        """Return the arguments of tritonclient's client."""
        arguments = list(CHANNEL_ARGUMENTS)
        if is_loopback(self.host.strip("[]")):
            # Unlike browsers, gRPC asks the environment's proxy for this machine, too.
            arguments.append(("grpc.enable_http_proxy", 0))
        by_name: ChannelArguments = []  # the name that certificates are checked for
        if self.found_as is not None:  # a gateway in front of the server goes by the name
            arguments.append(("grpc.default_authority", f"{self.found_as}:{self.port}"))
            by_name.append(("grpc.ssl_target_name_override", self.found_as))
        if tls is not None:
            arguments += tls.channel_arguments() or by_name
        scheme = "" if self.found_as is None else "ipv6:" if self.host.startswith("[") else "ipv4:"
        encryption = tls.client_options() if tls is not None else {}
        return {"url": f"{scheme}{self.host}:{self.port}", "channel_args": arguments, **encryption}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server, or several that serve the same repository and take turns."""

    addresses: tuple[Address, ...]
    tls: CallerTls | None = None  # None: plain text

    def __post_init__(self) -> None:
        for path in (self.tls.root, self.tls.certificate, self.tls.key) if self.tls is not None else ():
            if path is not None and not Path(path).is_file():
                raise ServerError(f"{path} is not a file; expected certificates or a key in PEM form")
        if self.tls is not None and (self.tls.certificate is None) != (self.tls.key is None):
            raise UsageError("a certificate of ours (--tls-cert) and its key (--tls-key) are given together")

    @property
    def is_one_server(self) -> bool:
        """Whether all calls reach the same process."""
        return len(self.addresses) == 1 and not self.has_names

    @property
    def has_names(self) -> bool:
        """Whether the servers may become others."""
        return any(address.is_name for address in self.addresses)

    def each(self, resolve: Resolver) -> tuple[Address, ...]:
        """Return the servers one by one, all that stand behind each name now.

        A name without an address stays what it is: a proxy may know it, and gRPC tells what is wrong with it.
        """
        found: dict[Address, None] = {}
        for address in self.addresses:
            try:
                hosts = resolve(address.host) if address.is_name else ()
            except OSError:
                hosts = ()
            behind = [Address(host=host, port=address.port, found_as=address.host) for host in hosts]
            found.update(dict.fromkeys(behind or [address]))
        return tuple(found)


def parse_endpoint(url: str, tls: CallerTls | None = None) -> Endpoint:
    """Read `HOST:PORT` or several of them with commas between; ServerError for anything else."""
    return Endpoint(addresses=tuple(_address(part.strip(), url) for part in url.split(",")), tls=tls)


def _address(text: str, url: str) -> Address:
    host, _, port = text.rpartition(":")
    if ("/" in text and not is_private(text)) or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ServerError(
            f"server address is {url!r}, expected HOST:PORT of its gRPC endpoint, as 127.0.0.1:8001, several with "
            "commas between, or unix:PATH:PORT, as affserve serve printed it"
        )
    return Address(host=host, port=int(port))


def addresses_of(host: str) -> list[str]:
    """Return all addresses of a host, IPv6 ones, in brackets, only where it has no other; OSError for none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    by_kind = {kind: [str(place[0]) for one, *_, place in found if one == kind] for kind, *_ in found}
    return by_kind.get(socket.AF_INET) or [f"[{host}]" for host in by_kind.get(socket.AF_INET6, [])]
