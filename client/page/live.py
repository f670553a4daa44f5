"""Watching from the page: a source goes through the code of `affserve live`, its pictures and rows to a websocket.

The browser asks in JSON: {"source", "faces", "record"}. It is told {"entry"}, what the page needs to draw; then
pictures as bytes (frame number, width and height as uint32, a JPEG) and {"rows"}; in the end {"ended", "record"}.
"""

from __future__ import annotations

import asyncio
import queue
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from affserve.client.faces.settings import FACE_CHOICES
from affserve.client.infer.run_record import ERROR, ModelRecord
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, LiveFrame, LiveSource, now_s
from affserve.client.live.run import LIVE_POLICY
from affserve.client.live.source import SourceSettings, open_file, open_live
from affserve.client.page.page import Page
from affserve.client.page.result_routes import COLOURS
from affserve.client.results.formats import CSV
from affserve.client.results.metadata import DIGEST, ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.rows import (
    ACTION_UNIT_MEANINGS,
    BOX_COLUMNS,
    PROBABILITY_DIGITS,
    Rows,
    columns_of,
    prediction_columns,
)
from affserve.train.errors import AffserveError, OutputError, VideoError, printable

Labels = Mapping[str, tuple[str, ...]]
SOURCES = re.compile(r"\d{1,3}|(rtsps?|https?|rtmps?|srt|udp|tcp|rtp)://\S+")  # that no path of this machine is among
BROWSER, FOUND = "browser", "entry:"
PICTURE_PX = 640  # longest side of what is shown
JPEG_QUALITY = 75
MOST_WAITING = 40  # messages; then pictures are left out
MOST_PICTURE_BYTES = 4_000_000  # of a browser's camera
BROWSER_FPS = 15.0
HEAD = struct.Struct("<Id")  # of its pictures: frame number, seconds


def routes(page: Page) -> list[BaseRoute]:
    """Return the route, where there is a model."""

    async def watch(socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect, ValueError, KeyError, TypeError):  # what is no question of ours
            await _watch(page, socket, await socket.receive_json())

    return [WebSocketRoute("/api/live", watch)] if page.model is not None else []


async def _watch(page: Page, socket: WebSocket, asked: dict[str, Any]) -> None:
    stop, camera, outbox = threading.Event(), BrowserFrames(), _Outbox()
    receiving = asyncio.create_task(_receive(socket, camera, stop))
    sending = asyncio.create_task(outbox.send_all(socket))
    try:
        await run_in_threadpool(_run, page, asked, camera, outbox.put, stop)
        outbox.put(None)
        await sending
    finally:
        stop.set()
        receiving.cancel()
        sending.cancel()


async def _receive(socket: WebSocket, camera: BrowserFrames, stop: threading.Event) -> None:
    """Take the pictures of a browser's camera; whatever else comes, or the end, stops the source."""
    while (message := await socket.receive()).get("bytes") is not None:
        camera.put(message["bytes"])
    stop.set()


class _Outbox:
    """Messages from the thread that analyses to the socket."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[bytes | dict[str, Any] | None] = asyncio.Queue()

    def put(self, message: bytes | dict[str, Any] | None) -> None:
        """Send a message; pictures are left out where the browser is too slow for them. None: it was the last."""
        if not isinstance(message, bytes) or self._waiting.qsize() < MOST_WAITING:
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, message)

    async def send_all(self, socket: WebSocket) -> None:
        """Send until the last message, or until nobody listens any more."""
        try:
            while (message := await self._waiting.get()) is not None:
                await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_json(message))
            await socket.close()
        except (WebSocketDisconnect, RuntimeError):
            return


Put = Callable[["bytes | dict[str, Any]"], None]


def _run(page: Page, asked: dict[str, Any], camera: BrowserFrames, put: Put, stop: threading.Event) -> None:
    """Watch until the source ends or is stopped; tell how it ended."""
    ended: dict[str, Any] = {"ended": ""}
    if not page.watching.acquire(blocking=False):
        return put({"ended": "something is watched already; stop that first"})
    try:
        with ExitStack() as stack:
            _analyse(page, asked, camera, put, stop, stack, ended)
    except AffserveError as error:
        ended["ended"] = str(error)
    finally:
        page.watching.release()
    return put(ended)


def _analyse(
    page: Page,
    asked: dict[str, Any],
    camera: BrowserFrames,
    put: Put,
    stop: threading.Event,
    stack: ExitStack,
    ended: dict[str, Any],
) -> None:
    if page.model is None or asked["faces"] not in FACE_CHOICES:
        raise VideoError("there is no model to watch with, or the choice of faces is unknown")
    video = _found(page, asked["source"])
    settings = None if asked["source"] == BROWSER else SourceSettings(source=str(video or asked["source"]))
    file = open_file(settings) if settings is not None else None
    croppers = replace(page.croppers, faces=replace(page.croppers.faces, faces=asked["faces"]))
    make = partial(croppers.cropper, file is not None and file.already_cropped)
    make()
    client = stack.enter_context(page.model.beside(LIVE_POLICY))
    source = open_live(settings, file) if settings is not None else camera
    labels, counters = client.describe().labels, LiveCounters()
    analysis = LiveAnalysis(client, make, LiveSettings(), counters)
    put({"entry": _entry(source.name, labels)})
    record = _Record(page, video, source.name, ModelRecord.of(client), labels, analysis.detector)
    keep = asked["record"] is True
    try:
        for answer in analysis.run(_Shown(source, put), stop.is_set):
            put({"rows": _columns(answer.rows, labels), "decoded": counters.decoded, "dropped": counters.dropped})
            if keep:
                record.write(answer.rows)
    except VideoError as error:
        record.error = str(error)
    ended |= {"ended": record.error, "record": record.finish()}


def _found(page: Page, source: object) -> Path | None:
    """Return the video that a source names by the id of its entry; VideoError where it may not be watched at all."""
    text = str(source)
    entry = page.library.entries.get(text.removeprefix(FOUND)) if text.startswith(FOUND) else None
    if entry is not None and entry.video is not None:
        return entry.video
    if text != BROWSER and not SOURCES.fullmatch(text):
        raise VideoError(
            f"{text[:80]!r} is no source: expected the number of a camera, or an address as rtsp://HOST/PATH"
        )
    return None


def _entry(name: str, labels: Labels) -> dict[str, Any]:
    columns = [
        {"name": one.name, "description": one.description, "unit": one.unit, "range": one.range}
        for one in columns_of(labels)
    ]
    facts: dict[str, Any] = {"id": "", "name": name, "notes": [], "playing": None, "features": {}, "colours": COLOURS}
    return {**facts, "labels": labels, "meanings": ACTION_UNIT_MEANINGS, "columns": columns}


def _columns(rows: Rows, labels: Labels) -> dict[str, Any]:
    """Return the columns of a block of rows; null where a number is none."""
    numbers = dict(zip(BOX_COLUMNS, rows.box_px.T, strict=True))
    for task, names in labels.items():
        numbers |= zip(prediction_columns(task, names), rows.predictions[task].T, strict=True)
    told = {name: np.round(values.astype(float), PROBABILITY_DIGITS).tolist() for name, values in numbers.items()}
    columns = {name: [None if value != value else value for value in values] for name, values in told.items()}
    whole = {"frame": rows.frame.tolist(), "time": rows.timestamp_s.tolist(), "track": rows.track_id.tolist()}
    return {**whole, "columns": columns}


class _Shown:
    """A source whose pictures go to the browser, too, as they are analysed."""

    def __init__(self, source: LiveSource, put: Put) -> None:
        self._source, self._put = source, put
        self.name, self.fps = source.name, source.fps

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterator[LiveFrame]:
        """Yield the frames of the source."""
        for frame in self._source.frames(stop, counters):
            yield replace(frame, rgb=partial(self._shown, frame))

    def _shown(self, frame: LiveFrame) -> NDArray[np.uint8]:
        image = frame.rgb()
        height, width = image.shape[:2]
        scale = min(1.0, PICTURE_PX / max(width, height))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        good, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if good:
            self._put(struct.pack("<III", frame.index, width, height) + jpeg.tobytes())
        return image


class BrowserFrames:
    """The camera of the browser as a source."""

    name, fps = "camera of the browser", BROWSER_FPS

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[bytes, float]] = queue.Queue(maxsize=MOST_WAITING)

    def put(self, message: bytes) -> None:
        """Take a picture; it is left out where too many wait, or where it is none."""
        if HEAD.size < len(message) <= MOST_PICTURE_BYTES and not self._waiting.full():
            self._waiting.put_nowait((message, now_s()))

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterator[LiveFrame]:
        """Yield the frames until `stop` is set."""
        while not stop.is_set():
            try:
                message, arrived_s = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            index, timestamp_s = HEAD.unpack_from(message)
            image = cv2.imdecode(np.frombuffer(message, np.uint8, offset=HEAD.size), cv2.IMREAD_COLOR)
            if image is not None:
                rgb = np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)
                yield LiveFrame(index=index, timestamp_s=timestamp_s, arrived_s=arrived_s, rgb=partial(np.asarray, rgb))


class _Record:
    """The rows of what is watched as a result, begun with the first of them."""

    def __init__(
        self, page: Page, video: Path | None, name: str, model: ModelRecord, labels: Labels, detector: str
    ) -> None:
        self.error = ""
        self._page, self._video = page, video
        stem = video.stem if video is not None else "live"
        self._rows = page.out / f"{stem} {datetime.now():%Y-%m-%d %H.%M.%S}.affect.csv"
        facts = {**model.provenance(), "face_detector": detector, "watched": "live"}
        source = printable(video.name if video is not None else name)
        self._table = ResultTable(name=self._rows.name, source=source, labels=dict(labels), provenance=facts)
        self._file: OutputFile | None = None

    def write(self, rows: Rows) -> None:
        """Append rows."""
        if self._file is None:
            self._file = OutputFile(self._rows)
            self._writer = CSV.open(self._file, self._table)
        try:
            self._writer.write(rows)
        except OutputError:
            self._file.discard()
            raise

    def finish(self) -> str:
        """Put the result in place; return its address on the page, "" where nothing was recorded."""
        if self._file is None:
            return ""
        with self._file:
            self._writer.finish({})
        facts = {**self._table.provenance, DIGEST: self._file.sha256, **({ERROR: self.error} if self.error else {})}
        write_whole(metadata_path(self._rows), metadata_text(replace(self._table, provenance=facts)).encode())
        added = self._page.library.add([*([self._video] if self._video is not None else []), self._rows])
        self._page.library.read_summaries()
        return next(f"#/r/{one.id}" for one in added if one.result is not None and one.result.samefile(self._rows))
