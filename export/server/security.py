"""Who may ask a server for what: its certificate, the addresses it may listen on, the interfaces that stay closed.

Triton has no users and no passwords. What it has are TLS on gRPC, restricted interfaces that want a key in a header,
and the address it listens on.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.train.errors import ServerError

# 25.08; older ones let anybody who reaches them run code. That later releases are still without known holes nobody
# can promise: bulletin 5828 of May 2026 (CVE-2026-24206, -24207) tells of a bypass of the restricted interfaces.
OLDEST_PUBLIC_VERSION = (2, 60)
KNOWN_HOLES = (
    "NVIDIA's security bulletins of August 2025 (CVE-2025-23310, -23311, -23316, -23319, -23320, -23334: remote code "
    "execution) and of May 2026 (CVE-2026-24206, -24207: restricted interfaces can be bypassed)"
)
HANDSHAKE_TIMEOUT_S = 5.0
# Whoever may use these can load other models, write files anywhere, or record what others send.
ALWAYS_RESTRICTED = ("model-repository", "logging", "trace")
# The header that opens a restricted interface. Every user of the machine can read it in the server's command line, so
# what keeps them out is its name, which no header has: in HTTP/1 a colon ends a name and a newline the header, and
# HTTP/2 has neither in names. A value is no such place: gRPC's server takes one with a newline from who writes his own
# HTTP/2.
UNSENDABLE_HEADER = "nobody:\n"
# Whoever may register regions can have the server read and write any file of this machine's /dev/shm.
SHARED_MEMORY_INTERFACE = "shared-memory"


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """How a server proves who it is and, if it asks for that, its callers prove who they are."""

    certificate: Path  # PEM: the server's certificate, then those between it and the root
    key: Path  # PEM: the certificate's private key, not encrypted
    client_ca: Path | None = None  # PEM: callers need a certificate signed by one of these; None: anybody may call

    def __post_init__(self) -> None:
        for option, path in (("--tls-cert", self.certificate), ("--tls-key", self.key), ("--tls-ca", self.client_ca)):
            if path is not None and not path.is_file():
                raise ServerError(f"{option} {path} is not a file; expected a PEM file")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise ServerError(
                f"{self.certificate} and {self.key} are not a PEM certificate and its unencrypted private key: {error}"
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise ServerError(f"--tls-ca {self.client_ca} holds no PEM certificate: {error}") from error

    def trusted_callers(self, folder: Path) -> Path | None:
        """Write the certificates that callers are checked against to `folder`; None when anybody may call.

        The server's own certificate is among them: the supervisor, who holds its key, asks as a caller does.
        """
        if self.client_ca is None:
            return None
        bundle = folder / "callers.pem"
        bundle.write_bytes(self.client_ca.read_bytes() + b"\n" + self.certificate.read_bytes())
        return bundle


def _no_password() -> str:
    raise ValueError("the key is encrypted; Triton reads only unencrypted keys (openssl pkey -in KEY -out PLAIN)")


@dataclass(frozen=True, kw_only=True)
class CallerTls:
    """How a caller checks a server and proves who it is itself."""

    root: Path | None = None  # PEM that the server's certificate must lead to; None: the system's authorities
    certificate: Path | None = None  # PEM, the caller's own
    key: Path | None = None  # PEM
    server_name: str | None = None  # that the certificate must be for, when it is not the host that is called

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of tritonclient's InferenceServerClient."""
        paths = {"root_certificates": self.root, "private_key": self.key, "certificate_chain": self.certificate}
        return {"ssl": True, **{name: str(path) for name, path in paths.items() if path is not None}}

    def channel_arguments(self) -> list[tuple[str, str]]:
        """Return gRPC's channel arguments."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


def supervisor_tls(tls: ServerTls, host: str, port: int) -> CallerTls:
    """Return how the owner of a server calls it: by the name its certificate is for, trusting that certificate alone.

    The address that is called, such as 127.0.0.1, rarely stands in the certificate.
    """
    context = ssl.create_default_context(cafile=str(tls.certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if tls.client_ca is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    try:
        with (
            socket.create_connection((host, port), timeout=HANDSHAKE_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            told: Any = encrypted.getpeercert() or {}
            names = [str(name) for _, name in told.get("subjectAltName", ())]
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"the server does not speak TLS with the certificate {tls.certificate}: {error}; renew or replace it"
        ) from error
    if not names:
        raise ServerError(f"{tls.certificate} names no host (subjectAltName): gRPC accepts no such certificate")
    own = {"certificate": tls.certificate, "key": tls.key} if tls.client_ca is not None else {}
    return CallerTls(root=tls.certificate, server_name=names[0].replace("*", "any", 1), **own)


PRIVATE = "unix:"  # how an address begins that is a socket file: only the user who made it can connect


def is_private(host: str) -> bool:
    """Say whether only this user of this machine can reach an address."""
    return host.startswith(PRIVATE)


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    if host == "localhost" or is_private(host):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def check_host(version: tuple[int, ...] | None, host: str, *, accepted: bool) -> None:
    """Refuse to listen beyond this machine with a server that has known holes, unless they are accepted."""
    if accepted or is_loopback(host) or (version or (0,)) >= OLDEST_PUBLIC_VERSION:
        return
    found = ".".join(map(str, version)) if version else "of unknown version"
    raise ServerError(
        f"tritonserver {found} will not listen on {host}: it predates {KNOWN_HOLES}. Listen on 127.0.0.1 (behind a "
        "proxy or an SSH tunnel where others must reach it), serve the same repository from a current Triton container "
        "(affserve serve REPOSITORY --print compose), or, where everybody on the network is trusted, say --i-know"
    )


def restriction(*, shared_memory: bool) -> str:
    """Return the value of Triton's --grpc-restricted-protocol and --http-restricted-api: a key that nobody can send.

    shared_memory: whether callers may register regions.
    """
    closed = ALWAYS_RESTRICTED if shared_memory else (*ALWAYS_RESTRICTED, SHARED_MEMORY_INTERFACE)
    return f"{','.join(closed)}:{UNSENDABLE_HEADER}=closed"
