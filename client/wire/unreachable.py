"""Why a server cannot be reached, and what to do: gRPC itself only says that the other side hung up."""

from __future__ import annotations

import contextlib
import socket
import ssl

from affserve.client.wire.endpoint import Address, Endpoint

LISTEN_S = 2.0  # for the first bytes of who listens there
HTTP, TLS, GRPC, OTHER, NOBODY = "HTTP", "TLS", "gRPC", "something else", ""
START = "start one with: affserve serve REPOSITORY"


def way_out(endpoint: Endpoint) -> str:
    """Say what to do where the first server of an endpoint did not answer."""
    spoken = spoken_at(endpoint.addresses[0])
    if spoken == HTTP:
        return "HTTP is spoken there: give the gRPC port of the server (affserve serve prints it; 8001 by default)"
    if spoken == TLS and endpoint.tls is None:
        return (
            "TLS is spoken there: --tls, with --tls-ca FILE if the authority is your own (Python: tls=CallerTls(...))"
        )
    if spoken == TLS:
        return "TLS is spoken there: give another --tls-ca or --tls-name, or a certificate of yours (--tls-cert)"
    if spoken == GRPC and endpoint.tls is not None:
        return "gRPC is spoken there without TLS: leave the --tls options out"
    return f"what listens there is no gRPC server; {START}" if spoken == OTHER else START


def spoken_at(address: Address) -> str:
    """Return what a listener speaks; NOBODY where there is none."""
    try:
        with _connection(address) as caller:
            heard = b""
            with contextlib.suppress(OSError):  # it heard nothing that it understands, and hangs up or stays silent
                caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
                heard = caller.recv(16)
    except OSError:
        return NOBODY
    if heard.startswith(b"HTTP/"):
        return HTTP
    if heard[3:4] == b"\x04":  # the SETTINGS frame that HTTP/2 begins with
        return GRPC
    return TLS if _speaks_tls(address) else OTHER


def _speaks_tls(address: Address) -> bool:
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    anybody.set_alpn_protocols(["h2"])
    try:
        with _connection(address) as caller, anybody.wrap_socket(caller):
            return True
    except OSError:  # what is wrong with TLS is one, too
        return False


def _connection(address: Address) -> socket.socket:
    return socket.create_connection((address.host.strip("[]"), address.port), timeout=LISTEN_S)
