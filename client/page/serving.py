"""Serves the page on a loopback port until Ctrl-C, and opens it in a browser."""

from __future__ import annotations

import socket
import tempfile
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path

import typer
import uvicorn

from affserve.client.page.app import create_app
from affserve.client.page.library import Library
from affserve.client.page.page import Page
from affserve.train.errors import UsageError

HOST = "127.0.0.1"
LAST_WORDS_S = 1  # that open requests, a video being sent, get when the page ends


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What the command line asks for."""

    paths: tuple[Path, ...]
    port: int = 0  # 0: a free one
    browser: bool = True


def run_view(options: ViewOptions) -> None:
    """Serve until Ctrl-C; the address goes to stdout."""
    library = Library(options.paths)
    with tempfile.TemporaryDirectory(prefix="affserve-view-") as temporary, _bound(options.port) as listening:
        page = Page(library=library, temporary=Path(temporary))
        threading.Thread(target=library.read_summaries, daemon=True).start()
        address = f"http://{HOST}:{listening.getsockname()[1]}/?token={page.token}"
        typer.echo(address)
        if options.browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            create_app(page), log_level="warning", lifespan="off", timeout_graceful_shutdown=LAST_WORDS_S
        )
        uvicorn.Server(config).run(sockets=[listening])


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UsageError(f"port {port} of {HOST} cannot be used: {error}; choose another --port") from error
    return listening
