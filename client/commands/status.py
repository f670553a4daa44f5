"""The command `affserve status`: whether servers answer, and what they have done."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from affserve.client.commands.options import TlsOptions, spread

PIPE_WIDTH = 200  # characters: no row of the table is broken where nobody looks at a screen
URL_HELP = "HOST:PORT of a gRPC endpoint, or several with commas between."


@spread
def status(
    *,
    url: Annotated[str, typer.Argument(envvar="AFFSERVE_URL", help=URL_HELP)] = "127.0.0.1:8001",
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for each answer.")] = 10.0,
    tls: TlsOptions,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object for each server.")] = False,
) -> None:
    """Ask every model of a server for one true answer, and show versions, counts and times.

    Times are means in the server since it started: queue and compute are parts of request. Exit code 1 when something
    does not answer.
    """
    from json import dumps

    from rich.console import Console

    from affserve.client.commands.server_status import server_status, show
    from affserve.client.connection import Connection

    caller_tls = Connection(url=url, **vars(tls)).caller_tls
    servers = server_status(url, tls=caller_tls, timeout_s=timeout_s)
    if json:
        typer.echo(dumps([server.as_dict() for server in servers]))
    else:
        show(servers, Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH))
    if any(server.problems or not server.ready for server in servers):
        raise typer.Exit(1)
