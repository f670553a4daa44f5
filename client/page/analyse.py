"""Analysing from the page: videos that were found, or that the browser sends, go through a queue to results.

By the code of `affserve infer`. A video that is sent is a copy, kept for as long as the page runs; its result stays.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from affserve.client.faces.settings import FACE_CHOICES
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths, OutputWishes, plan_outputs
from affserve.client.infer.run_record import options_of
from affserve.client.page.page import Page, json_body
from affserve.client.page.task_queue import Task
from affserve.client.results.formats import CSV
from affserve.client.video.source import FOLDER_FPS, Progress, open_source
from affserve.train.errors import OutputError

MOST_UPLOAD_BYTES = 16 * 10**9  # of one video
SPARE_BYTES = 10**9  # of the disk, which stay free
GONE = 499  # nobody waits for this answer any more


def routes(page: Page) -> list[BaseRoute]:
    """Return the routes; those of the queue are for all kinds of tasks."""

    folders = re.compile(re.escape(str(page.temporary)) + r"/(upload-\w+/)?")
    shown = partial(folders.sub, "")  # of a copy, its name is what people know

    def queue(_: Request) -> Response:
        tasks = [{**task.as_json(), "error": shown(task.error)} for task in list(page.queue.tasks.values())]
        return JSONResponse({"paused": page.queue.paused, "tasks": tasks, "out": str(page.out.resolve())})

    async def pause(request: Request) -> Response:
        page.queue.pause(await json_body(request) is True)
        return queue(request)

    def cancel(request: Request) -> Response:
        task = page.queue.tasks.get(request.path_params["id"])
        if task is None:
            raise HTTPException(404, "no such task")
        page.queue.cancel(task)
        return queue(request)

    def analyse(request: Request) -> Response:
        entry = page.entry(request)
        if entry.video is None:
            raise HTTPException(404, "no video")
        return JSONResponse(page.queue.add(_task(page, entry.video, _faces(request))).as_json())

    async def upload(request: Request) -> Response:
        """Take a video as the body of the request."""
        faces, name = _faces(request), Path(request.path_params["name"]).name
        if not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > 200:
            raise HTTPException(400, f"{name[:40]!r} is no name of a video")
        folder = page.temporary / f"upload-{secrets.token_hex(8)}"
        folder.mkdir()
        task = _task(
            page, folder / name, faces, undo=partial(shutil.rmtree, folder, ignore_errors=True), state="copying"
        )
        page.queue.tasks[task.id] = task
        try:
            await _received(request, folder / name, _room(page), task)
        except BaseException as error:
            task.state, task.error = "failed", getattr(error, "detail", "the copy broke off")
            task.undo()
            if isinstance(error, ClientDisconnect):
                return Response(status_code=GONE)
            raise
        task.state, task.done, task.total = "waiting" if task.state == "copying" else task.state, 0, None
        return JSONResponse(page.queue.add(task).as_json())

    return [
        Route("/api/queue", queue),
        Route("/api/queue/paused", pause, methods=["PUT"]),
        Route("/api/queue/{id}", cancel, methods=["DELETE"]),
        *(
            [
                Route("/api/entries/{id}/analysis", analyse, methods=["POST"]),
                Route("/api/uploads/{name}", upload, methods=["PUT"]),
            ]
            if page.model is not None
            else []
        ),
    ]


def _faces(request: Request) -> str:
    faces = request.query_params.get("faces", "all")
    if faces not in FACE_CHOICES:
        raise HTTPException(400, f"faces is {faces[:40]!r}, expected one of {', '.join(FACE_CHOICES)}")
    return faces


def _room(page: Page) -> int:
    """Return how many bytes a video that is sent may have."""
    return max(0, min(MOST_UPLOAD_BYTES, shutil.disk_usage(page.temporary).free - SPARE_BYTES))


async def _received(request: Request, path: Path, room: int, task: Task) -> None:
    """Write the body of a request to a file; 413 where it is more than may be, or than the disk has room for."""
    task.total = int(request.headers.get("content-length", 0))
    with open(path, "wb") as file:
        if task.total <= room:
            async for piece in request.stream():
                task.done += len(piece)
                if task.done > room or task.state == "cancelled":
                    break
                await run_in_threadpool(file.write, piece)
    if max(task.total, task.done) > room:
        raise HTTPException(413, f"{path.name} has {max(task.total, task.done)} bytes, and {room} are taken")


def _task(page: Page, video: Path, faces: str, **more: Any) -> Task:
    return Task(name=video.name, work=partial(_analysed, page, video, faces), **more)


def _analysed(page: Page, video: Path, faces: str, progress: Progress) -> str:
    """Analyse a video; return where the page shows its result."""
    if page.model is None:
        raise OutputError("there is no model to analyse with")
    source = open_source(video)
    croppers = replace(page.croppers, faces=replace(page.croppers.faces, faces=faces))
    cropper = croppers.cropper(source.already_cropped)
    outputs = _free(plan_outputs([video], OutputWishes(row_format=CSV, out=page.out, plot=False))[video])
    outputs.check_writable()
    job = Job(source=source, cropper=cropper, outputs=outputs, options=options_of(cropper, croppers.faces, FOLDER_FPS))
    analyze_to_files(job, page.model.get(), progress=progress)
    return page.library.add_result(outputs.rows, video)


def _free(outputs: OutputPaths) -> OutputPaths:
    """Return outputs that overwrite nothing: another video may have had the name."""
    rows, number = outputs.rows, 2
    while rows.exists():
        stem, _, suffix = outputs.rows.name.partition(".affect")
        rows, number = outputs.rows.with_name(f"{stem}-{number}.affect{suffix}"), number + 1
    return replace(outputs, rows=rows)
