"""Watching from the page: a source goes through the code of `affserve live`, its pictures and rows to a websocket.

The browser asks in JSON: {"source", "faces", "record"}. It is told {"entry"}, what the page needs to draw; then, as
bytes, pictures (0, frame number, width and height as uint32, a JPEG) and the rows of the last seconds (the payload of
result_data.py), and {"answered", "dropped"}; in the end {"ended", "record"}.
"""

from __future__ import annotations

import asyncio
import queue
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
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

from affserve.client.client import AffectClient
from affserve.client.connection import SharedClient
from affserve.client.faces.settings import FACE_CHOICES
from affserve.client.infer.run_record import ERROR, ModelRecord
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, LiveFrame, LiveSource, now_s
from affserve.client.live.run import LIVE_POLICY
from affserve.client.live.source import SourceSettings, open_file, open_live
from affserve.client.page.library import Entry
from affserve.client.page.page import Page
from affserve.client.page.result_data import payload
from affserve.client.page.result_routes import drawn_with
from affserve.client.results.formats import CSV
from affserve.client.results.metadata import DIGEST, ResultTable, write_metadata
from affserve.client.results.output_file import OutputFile
from affserve.client.results.rows import columns_of
from affserve.client.results.table import Table, table_of
from affserve.train.errors import AffserveError, VideoError, printable

SOURCES = re.compile(r"\d{1,3}|(rtsps?|https?|rtmps?|srt|udp|tcp|rtp)://\S+")  # that no path of this machine is among
BROWSER, FOUND = "browser", "entry:"
SHOWN_S = 30.0  # of rows that the browser has at a time
PICTURE = struct.Struct("<IIII")
PICTURE_PX = 640  # longest side of what is shown
JPEG_QUALITY = 75
MOST_WAITING = 40  # messages; then pictures are left out
MOST_PICTURE_BYTES = 4_000_000  # of a browser's camera
BROWSER_FPS = 15.0
HEAD = struct.Struct("<Id")  # of its pictures: frame number, seconds


def routes(page: Page) -> list[BaseRoute]:
    """Return the route, where there is a model."""
    model = page.model
    if model is None:
        return []

    async def watch(socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect, ValueError, KeyError, TypeError):  # what is no question of ours
            await _Watch(page, model, socket, **await socket.receive_json()).run()

    return [WebSocketRoute("/api/live", watch)]


class _Watch:
    """One source, from the question until it ends, is stopped, or nobody looks any more."""

    def __init__(
        self, page: Page, model: SharedClient, socket: WebSocket, *, source: str, faces: str, record: bool
    ) -> None:
        self._page, self._model, self._socket = page, model, socket
        self._source, self._faces, self._recorded = str(source), faces, record is True
        self._stop = threading.Event()
        self._camera = BrowserFrames()
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[bytes | dict[str, Any]] = asyncio.Queue()

    async def run(self) -> None:
        """Analyse in a thread, and talk to the browser meanwhile."""
        receiving, sending = asyncio.create_task(self._receive()), asyncio.create_task(self._send())
        try:
            self._put(await run_in_threadpool(self._watched))
            await sending
        finally:
            self._stop.set()
            receiving.cancel()
            sending.cancel()

    async def _receive(self) -> None:
        """Take the pictures of a browser's camera; whatever else comes, or the end, stops the source."""
        while (message := await self._socket.receive()).get("bytes") is not None:
            self._camera.put(message["bytes"])
        self._stop.set()

    async def _send(self) -> None:
        """Send what waits until the last message, or until nobody listens any more."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while isinstance(message := await self._waiting.get(), bytes) or "ended" not in message:
                await (
                    self._socket.send_bytes(message) if isinstance(message, bytes) else self._socket.send_json(message)
                )
            await self._socket.send_json(message)
            await self._socket.close()

    def _put(self, message: bytes | dict[str, Any]) -> None:
        """Send a message; bytes are left out where the browser is too slow for them."""
        if not isinstance(message, bytes) or self._waiting.qsize() < MOST_WAITING:
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, message)

    def _watched(self) -> dict[str, Any]:
        """Watch; return how it ended."""
        if not self._page.watching.acquire(blocking=False):
            return {"ended": "something is watched already; stop that first"}
        try:
            return self._opened()
        except AffserveError as error:
            return {"ended": str(error)}
        finally:
            self._page.watching.release()

    def _opened(self) -> dict[str, Any]:
        if self._faces not in FACE_CHOICES:
            raise VideoError(f"faces is {str(self._faces)[:40]!r}, expected one of {', '.join(FACE_CHOICES)}")
        video = self._found()
        settings = None if self._source == BROWSER else SourceSettings(source=str(video or self._source))
        file = open_file(settings) if settings is not None else None
        croppers = replace(self._page.croppers, faces=replace(self._page.croppers.faces, faces=self._faces))
        make = partial(croppers.cropper, file is not None and file.already_cropped)
        make()  # a detector that cannot be had is told before anything is connected
        with self._model.beside(LIVE_POLICY) as client:
            source = open_live(settings, file) if settings is not None else self._camera
            counters = LiveCounters()
            return self._answered(client, source, LiveAnalysis(client, make, LiveSettings(), counters), counters, video)

    def _found(self) -> Path | None:
        """Return the video that the source names by the id of its entry; VideoError where it may not be watched."""
        text = self._source
        entry = self._page.library.entries.get(text.removeprefix(FOUND)) if text.startswith(FOUND) else None
        if entry is not None and entry.video is not None:
            return entry.video
        if text != BROWSER and not SOURCES.fullmatch(text):
            raise VideoError(
                f"{text[:80]!r} is no source: expected the number of a camera, or an address as rtsp://HOST/PATH"
            )
        return None

    def _answered(
        self,
        client: AffectClient,
        source: LiveSource,
        analysis: LiveAnalysis,
        counters: LiveCounters,
        video: Path | None,
    ) -> dict[str, Any]:
        """Show, and record where that was asked for, until the source ends; a record without rows is none."""
        labels, columns = client.describe().labels, columns_of(client.describe().labels)
        self._put(
            {"entry": {**Entry(id="", name=source.name).as_json(), "playing": None, **drawn_with(labels, columns)}}
        )
        facts = {**ModelRecord.of(client).provenance(), "face_detector": analysis.detector, "watched": "live"}
        name = printable(video.name if video is not None else source.name)
        stem = video.stem if video is not None else "live"
        path = self._page.out / f"{stem} {datetime.now():%Y-%m-%d %H.%M.%S}.affect.csv"
        about = ResultTable(name=path.name, source=name, labels=dict(labels), provenance=facts)
        recent, error = Table({}, columns={}), ""
        with OutputFile(path) if self._recorded else nullcontext() as file:
            writer = CSV.open(file, about) if file is not None else None
            try:
                for answer in analysis.run(_Shown(source, self._put), self._stop.is_set):
                    recent = _latest(recent, table_of([answer.rows], labels))
                    self._put(payload(recent))
                    self._put({"answered": counters.analysed, "dropped": counters.dropped})
                    if writer is not None:
                        writer.write(answer.rows)
            except VideoError as broken:
                error = str(broken)
            if file is None:
                return {"ended": error}
            if not recent:
                raise VideoError(error or "nothing was answered: there is no record")
        write_metadata(path, about, {DIGEST: file.sha256, **({ERROR: error} if error else {})})
        return {"ended": error, "record": self._page.library.add_result(path, video)}


def _latest(former: Table, new: Table) -> Table:
    """Return the rows of the last seconds."""
    values = {name: np.concatenate([former[name], new[name]]) if former else new[name] for name in new}
    kept = values["timestamp_s"] > values["timestamp_s"][-1] - SHOWN_S
    return Table({name: column[kept] for name, column in values.items()}, columns=new.columns)


class _Shown:
    """A source whose pictures go to the browser, too, as they are analysed."""

    def __init__(self, source: LiveSource, put: Callable[[bytes], None]) -> None:
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
            self._put(PICTURE.pack(0, frame.index, width, height) + jpeg.tobytes())
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
