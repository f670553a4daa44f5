"""Exports from the page: the part that is selected as CSV or as a plot, and the overlay video; all of it as edited."""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from affserve.client.drawing.overlay import draw_overlay
from affserve.client.drawing.plots import draw_result
from affserve.client.page.page import Page
from affserve.client.page.task_queue import Task
from affserve.client.results.edits import read_edits
from affserve.client.results.reading import row_format_of
from affserve.client.results.rows import Tally, rows_of
from affserve.client.results.table import Table, labels_in
from affserve.client.results.text import lines_of, printed
from affserve.client.video.source import IMAGE_SUFFIXES, Progress, open_source
from affserve.export.contract import HeadDescription

DRAWING = threading.Lock()  # Matplotlib's fonts are for one thread at a time


def routes(page: Page) -> list[BaseRoute]:
    """Return the routes."""

    def csv(request: Request) -> Response:
        table, rows = _part(page, request)
        text = lines_of([name, *printed(table, name, rows)] for name in table)
        return Response(text, media_type="text/csv")

    def png(request: Request) -> Response:
        (table, places), tally = _part(page, request), Tally()
        if not len(places):
            raise HTTPException(404, "no frame lies in this part")
        rows = rows_of({name: values[places] for name, values in table.items()}, labels_in(table))
        tally.add(rows)
        with DRAWING:
            name = read_edits(page.result(request)).name
            image = draw_result([rows], tally, _description(table), title=page.entry(request).name, name=name)
        return Response(image, media_type="image/png")

    def draw(request: Request) -> Response:
        entry, result = page.entry(request), page.result(request)
        if entry.video is None:
            raise HTTPException(404, "no video")
        description = _description(page.library.table(entry))
        work = partial(_drawn, entry.video, result, description, target(request), request.url.path)
        return JSONResponse(page.queue.add(Task(name=f"overlay of {entry.name}", work=work)).as_json())

    def target(request: Request) -> Path:
        entry = page.entry(request)
        still = entry.video is not None and entry.video.suffix.lower() in IMAGE_SUFFIXES
        return page.temporary / f"overlay-{entry.id}{'.png' if still else '.mp4'}"

    def overlay(request: Request) -> Response:
        path = target(request)
        if not path.is_file():
            raise HTTPException(404, "the overlay is not drawn yet")
        return FileResponse(path, filename=f"{Path(page.entry(request).name).stem}.affect{path.suffix}")

    return [
        Route("/api/entries/{id}/part.csv", csv),
        Route("/api/entries/{id}/part.png", png),
        Route("/api/entries/{id}/overlay", draw, methods=["POST"]),
        Route("/api/entries/{id}/overlay", overlay),
    ]


def _part(page: Page, request: Request) -> tuple[Table, NDArray[np.int64]]:
    """Return a result as edited, and which of its rows lie between the times that are asked for; 404 for none."""
    page.result(request)
    table = page.library.edited(page.entry(request))
    low, high = _seconds(request, "from", -math.inf), _seconds(request, "to", math.inf)
    return table, np.flatnonzero((table["timestamp_s"] >= low) & (table["timestamp_s"] <= high))


def _seconds(request: Request, name: str, otherwise: float) -> float:
    try:
        return float(request.query_params.get(name, otherwise))
    except ValueError as error:
        raise HTTPException(400, f"{name} is no number of seconds") from error


def _description(table: Table) -> HeadDescription:
    return HeadDescription(labels=labels_in(table), trained_on=table.provenance.get("trained_on", "unknown"))


def _drawn(video: Path, result: Path, description: HeadDescription, target: Path, address: str, go: Progress) -> str:
    """Draw an overlay; return the address that gives it."""
    edits = read_edits(result)
    rows = row_format_of(result).read(result, description.labels, edits)
    draw_overlay(open_source(video), rows, description, target, names=edits.names, progress=go)
    return address
