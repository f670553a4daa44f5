"""Serves the page on a loopback port until Ctrl-C, and opens it in a browser.

Its routes, behind the guard, are those of the modules in ROUTES, each of which has `routes(page) -> list[BaseRoute]`.
"""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import typer
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from affserve.client.connection import Connection, SharedClient
from affserve.client.faces.cropper import Croppers
from affserve.client.page import analyse, export, live, result_routes
from affserve.client.page.library import Library
from affserve.client.page.page import Page
from affserve.client.page.security import Guard
from affserve.train.errors import AffserveError, UsageError
from affserve.train.signals import handled

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
ROUTES = (result_routes, analyse, export, live)
LAST_WORDS_S = 1  # that open requests, a video being sent, get when the page ends
LAST_RECORD_S = 10  # that a live record gets to be put in place


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What the command line asks for."""

    paths: tuple[Path, ...]
    port: int = 0  # 0: a free one
    browser: bool = True
    connection: Connection | None = None  # of the model that videos are analysed with from the page; None: not at all
    croppers: Croppers = field(default_factory=Croppers)


def run_view(options: ViewOptions) -> None:
    """Serve until Ctrl-C or SIGTERM; the address goes to stdout."""
    library = Library(options.paths)
    with ExitStack() as stack:
        # The server of the page hands a signal on when it has ended: the rest ends then, too.
        stack.enter_context(handled(signal.SIGTERM, by=lambda *_: sys.exit(128 + signal.SIGTERM)))
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="affserve-view-"))
        listening = stack.enter_context(_bound(options.port))
        page = _page(options, library, Path(temporary), stack)
        threading.Thread(target=library.read_summaries, daemon=True).start()
        address = f"http://{HOST}:{listening.getsockname()[1]}/?token={page.token}"
        typer.echo(address)
        if options.browser:
            webbrowser.open(address)
        config = uvicorn.Config(_app(page), log_level="warning", lifespan="off", timeout_graceful_shutdown=LAST_WORDS_S)
        uvicorn.Server(config).run(sockets=[listening])


def _page(options: ViewOptions, library: Library, temporary: Path, stack: ExitStack) -> Page:
    """Return the page with what it may do; the stack ends what it has begun."""
    out = next((path for path in options.paths if path.is_dir()), Path())
    page = Page(library=library, temporary=temporary, croppers=options.croppers, out=out)
    page.features["export"] = True
    if options.connection is not None:
        page.model = SharedClient(options.connection)
        stack.callback(page.model.close)
        page.features |= {"analyse": True, "live": True}
    stack.callback(page.queue.close)
    stack.callback(page.watching.acquire, timeout=LAST_RECORD_S)
    return page


def _app(page: Page) -> ASGIApp:
    """Return the application, guarded."""
    app = Starlette(
        routes=[
            Route("/", _index),
            *(route for module in ROUTES for route in module.routes(page)),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={AffserveError: _told},
    )
    return Guard(app, page.token)


def _index(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _told(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # before the address is told: who comes at once waits a moment
    except (OSError, OverflowError) as error:
        listening.close()
        raise UsageError(f"port {port} of {HOST} cannot be used: {error}; choose another --port") from error
    return listening
