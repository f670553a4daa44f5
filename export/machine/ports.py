"""Ports for a server that opens them itself a moment later."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from affserve.train.errors import ServerError


class PortTakenError(ServerError):
    """Something else listens on a port that the server was to use."""


def choose_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each name in `wanted`: the given one, or for 0 a free one; PortTakenError when one is in use.

    Nothing reserves the ports afterwards: who starts a server on them must be ready to find one taken.
    """
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as open_until_all_are_chosen:
        for name, port in wanted.items():
            listener = open_until_all_are_chosen.enter_context(socket.socket())
            # As Triton does: connections of a server that has just ended do not block its port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                raise PortTakenError(
                    f"cannot listen on {host}:{port}: {error.strerror}; stop what listens there or choose another "
                    f"{name} port with --{name}-port (0: any free one)"
                ) from error
            chosen[name] = listener.getsockname()[1]
    return chosen


def listening(host: str, port: int) -> bool:
    """Say whether anybody accepts connections there; a host that begins with `unix:` is a socket file."""
    kind, _, path = host.partition("unix:")
    with socket.socket(socket.AF_INET if kind else socket.AF_UNIX) as caller:
        caller.settimeout(1)
        return caller.connect_ex((host, port) if kind else f"{path}:{port}") == 0
