"""The routes of the page, composed from the modules that have some, behind the guard.

A module with routes has `routes(page) -> list[BaseRoute]`, and is named in ROUTES.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from affserve.client.page import analyse, export, live, result_routes
from affserve.client.page.page import Page
from affserve.client.page.security import Guard
from affserve.train.errors import AffserveError

STATIC = Path(__file__).parent / "static"
ROUTES: tuple[Callable[[Page], list[BaseRoute]], ...] = tuple(
    one.routes for one in (result_routes, analyse, export, live)
)


def create_app(page: Page) -> ASGIApp:
    """Return the application, guarded."""
    app = Starlette(
        routes=[
            Route("/", _index),
            *(route for routes in ROUTES for route in routes(page)),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={AffserveError: _told},
    )
    return Guard(app, page.token)


def _index(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _told(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=400)
