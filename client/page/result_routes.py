"""The routes of looking: the list, one result, its rows and its video; and of the edits, which are kept beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from affserve.client.drawing.palette import HEAT, PALETTE, TRACK_COLOURS
from affserve.client.drawing.plots import LINE_COLOURS, SYNTHETIC_NOTICE
from affserve.client.page.library import Entry
from affserve.client.page.media import Playable
from affserve.client.page.page import Page, json_body
from affserve.client.page.result_data import payload, summary_of
from affserve.client.results.edits import Edits, parse_edits, read_edits, write_edits
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, Column
from affserve.client.results.table import labels_in
from affserve.train.provenance import SYNTHETIC

COLOURS = {"classes": PALETTE, "tracks": TRACK_COLOURS, "lines": LINE_COLOURS, "heat": HEAT}
MOST_UNDONE = 100  # edits of one result


def routes(page: Page) -> list[BaseRoute]:
    """Return the routes; every one answers JSON but `rows` and `media`."""

    def entries(_: Request) -> Response:
        listed = [entry.as_json() for entry in list(page.library.entries.values())]
        return JSONResponse({"features": page.features, "entries": listed})

    def one(request: Request) -> Response:
        entry = page.entry(request)
        return JSONResponse(facts_of(page, entry, page.media.playable(entry)))

    def playing(request: Request) -> Response:
        """Say how far the file to play is; `copied` asks for a copy in place of a file that the browser refused."""
        playable = page.media.playable(page.entry(request), copied="copied" in request.query_params)
        return JSONResponse(playable.as_json() if playable is not None else None)

    def media(request: Request) -> Response:
        playable = page.media.playable(page.entry(request), copied="copied" in request.query_params)
        if playable is None or playable.path is None:
            raise HTTPException(404, "no video, or not ready yet")
        return FileResponse(playable.path)

    def rows(request: Request) -> Response:
        page.result(request)  # or 404
        return Response(payload(page.library.edited(page.entry(request))), media_type="application/octet-stream")

    async def edit(request: Request) -> Response:
        """Put the edits of a result in the place of those that were."""
        try:
            edits = parse_edits(await json_body(request))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return await run_in_threadpool(_put, page, request, edits)

    def undo(request: Request) -> Response:
        entry, result = page.entry(request), page.result(request)
        if before := page.before.get(entry.id):
            write_edits(result, before[-1])
            before.pop()
        return JSONResponse(_told(page, entry.id, read_edits(result)))

    return [
        Route("/api/entries", entries),
        Route("/api/entries/{id}", one),
        Route("/api/entries/{id}/playing", playing),
        Route("/api/entries/{id}/rows", rows),
        Route("/api/entries/{id}/edits", edit, methods=["PUT"]),
        Route("/api/entries/{id}/undo", undo, methods=["POST"]),
        Route("/media/{id}", media),
    ]


def drawn_with(labels: Mapping[str, Sequence[str]], columns: Iterable[Column]) -> dict[str, Any]:
    """Return what the page needs to draw rows: colours, labels, and what each column means."""
    told = [{"name": one.name, "description": one.description, "unit": one.unit, "range": one.range} for one in columns]
    return {"colours": COLOURS, "labels": labels, "meanings": ACTION_UNIT_MEANINGS, "columns": told}


def facts_of(page: Page, entry: Entry, playable: Playable | None) -> dict[str, Any]:
    """Return what the page must know of an entry beside its rows; playable: the file that it plays."""
    facts: dict[str, Any] = {**entry.as_json(), "features": page.features}
    facts["playing"] = playable.as_json() if playable is not None else None
    if entry.result is not None:
        table = page.library.table(entry)
        facts |= {
            "summary": summary_of(table),
            **drawn_with(labels_in(table), table.columns.values()),
            "provenance": table.provenance,
            "notice": SYNTHETIC_NOTICE if table.provenance.get("trained_on") == SYNTHETIC else "",
            **_told(page, entry.id, read_edits(entry.result)),
        }
    return facts


def _put(page: Page, request: Request, edits: Edits) -> Response:
    entry, result = page.entry(request), page.result(request)
    before = read_edits(result)
    write_edits(result, edits)
    page.before[entry.id] = [*page.before.get(entry.id, []), before][-MOST_UNDONE:]
    return JSONResponse(_told(page, entry.id, edits))


def _told(page: Page, entry_id: str, edits: Edits) -> dict[str, Any]:
    return {"edits": edits.document(), "undo": len(page.before.get(entry_id, []))}
