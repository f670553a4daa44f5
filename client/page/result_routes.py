"""The routes of looking: the list, one result, its rows, its video."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from affserve.client.drawing.palette import PALETTE, TRACK_COLOURS
from affserve.client.page.media import playing
from affserve.client.page.page import Page
from affserve.client.results.rows import ACTION_UNIT_MEANINGS


def routes(page: Page) -> list[BaseRoute]:
    """Return the routes; every one answers JSON but `rows` and `media`."""

    def entries(_: Request) -> Response:
        return JSONResponse(
            {"features": page.features, "entries": [entry.as_json() for entry in page.library.entries.values()]}
        )

    def one(request: Request) -> Response:
        entry = page.entry(request)
        video = playing(entry.video).as_json() if entry.video is not None else None
        facts: dict[str, Any] = {**entry.as_json(), "playing": video, "colours": COLOURS}
        if entry.result is not None:
            data = page.library.data(entry)
            facts |= {
                "summary": data.summary(),
                "labels": data.labels,
                "meanings": ACTION_UNIT_MEANINGS,
                "columns": data.described(),
                "provenance": data.provenance,
            }
        return JSONResponse(facts)

    def rows(request: Request) -> Response:
        data = page.library.data(page.entry(request))
        return Response(data.payload(), media_type="application/octet-stream")

    def media(request: Request) -> Response:
        video = page.entry(request).video
        if video is None:
            raise HTTPException(404, "no video")
        return FileResponse(video)

    return [
        Route("/api/entries", entries),
        Route("/api/entries/{id}", one),
        Route("/api/entries/{id}/rows", rows),
        Route("/media/{id}", media),
    ]


COLOURS = {"classes": PALETTE, "tracks": TRACK_COLOURS}
