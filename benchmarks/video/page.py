"""The page in a real Chromium: how soon curves and seeks are on the screen, and whether the frame shown is the row's.

Films say in their pictures which frame they show: eight fields, white for 1.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.measuring.samples import summary_ms
from affserve.client.results.formats import CSV
from affserve.client.results.metadata import ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.rows import FaceRow, rows_of_faces
from affserve.client.video.source import open_source
from affserve.export.contract import default_head_description
from affserve.train.errors import AffserveError

PEOPLE, SEEKS, SHORT, BITS, TICKS = 3, 50, 90, 8, 30
LABELS = default_head_description().labels
UNEVEN = tuple(k + k // 3 + (k % 7 == 0) for k in range(0, 3 * SHORT, 3))  # ticks of a phone's film
FILMS = {"constant rate": "steady.mp4", "variable rate": "uneven.mp4", "GIF": "moving.gif"}
OPENED = """id => new Promise((done) => {
  const begun = performance.now();
  location.hash = `#/r/${id}`;
  const look = () => globalThis.affserve?.state.entry.id === id && affserve.curves.people[0]?.stale === false
    ? requestAnimationFrame(() => done(performance.now() - begun)) : requestAnimationFrame(look);
  look();
})"""
READ = "() => document.querySelector('.entries') && !document.body.innerText.includes('reading')"
SOUGHT = """frames => (async () => {
  const { state } = affserve, took = [];
  let got = () => {};
  state.on("show", (k) => got(k));
  for (const wanted of frames) {
    const begun = performance.now();
    if (state.k !== wanted) await new Promise((done) => { got = (k) => k === wanted && done(); state.seek(wanted); });
    await new Promise((done) => requestAnimationFrame(done));
    took.push(performance.now() - begun);
  }
  return took;
})()"""
PICTURE = f"""() => {{
  const canvas = new OffscreenCanvas(160, 96), pen = canvas.getContext("2d");
  pen.drawImage(document.querySelector("video"), 0, 0, 160, 96);
  return Array.from({{ length: {BITS} }}, (_, bit) => pen.getImageData(20 * bit + 10, 72, 1, 1).data[0] > 128);
}}"""
REDRAWN = """() => Array.from({ length: 20 }, (_, k) => {
  const begun = performance.now();
  affserve.state.view = { from: k, to: affserve.state.end - k };
  affserve.curves.draw();
  return performance.now() - begun;
})"""


def measure_page(frames: int) -> dict[str, Any]:
    """Measure with a result of so many frames and three people."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="affserve-page-") as folder, _browser() as browser:
        _film(Path(folder) / "long.mp4", range(frames))
        _film(Path(folder) / "steady.mp4", range(SHORT))
        _film(Path(folder) / "uneven.mp4", UNEVEN)
        _film(Path(folder) / "moving.gif", UNEVEN)
        shutil.copy(Path(folder) / "long.mp4", Path(folder) / "again.mp4")
        for film in list(Path(folder).iterdir()):
            _write_result(film, PEOPLE if film.stem in ("long", "again") else 1)
        with _page(Path(folder)) as address:
            tab = browser.new_page(viewport={"width": 1280, "height": 720})
            tab.goto(address)
            listed = tab.evaluate("() => fetch('/api/entries').then((answer) => answer.json())")["entries"]
            ids = {one["name"]: one["id"] for one in listed}
            unread_ms = tab.evaluate(OPENED, ids["again.mp4"])
            tab.evaluate("() => { location.hash = '#/'; }")
            tab.wait_for_function(READ)
            first_ms = tab.evaluate(OPENED, ids["long.mp4"])
            _wait_for_video(tab)
            seeks = tab.evaluate(SOUGHT, rng.integers(0, frames, SEEKS).tolist())
            told = {
                "frames": frames,
                "people": PEOPLE,
                "first_curve_ms": round(first_ms),
                "first_curve_of_a_file_not_read_yet_ms": round(unread_ms),
                "seek_to_redraw": summary_ms([one / 1000 for one in seeks], 1),
                "all_curves_redrawn_ms": round(statistics.median(tab.evaluate(REDRAWN)), 1),
                "page_memory_mb": round(_memory_bytes(browser) / 1e6),
                "browser": browser.version,
            }
            errors = {
                kind: _errors(tab, ids[name], rng.integers(0, SHORT, SEEKS).tolist()) for kind, name in FILMS.items()
            }
    return {**told, "seeks": SEEKS, "wrong_frames": errors}


def _errors(tab: Any, entry: str, frames: Sequence[int]) -> int:
    """Return how many seeks end at another frame than the row's."""
    tab.evaluate(OPENED, entry)
    _wait_for_video(tab)
    wrong = 0
    for k in frames:
        tab.evaluate(SOUGHT, [k])
        wrong += sum(bit << place for place, bit in enumerate(tab.evaluate(PICTURE))) != k
    return wrong


def _wait_for_video(tab: Any) -> None:
    tab.wait_for_function("() => document.querySelector('video')?.readyState >= 2", timeout=120_000)


def _memory_bytes(browser: Any) -> int:
    """Return what the page's process has, by Chromium's own account: its heap, and the rows outside it."""
    session = browser.contexts[0].new_cdp_session(browser.contexts[0].pages[0])
    session.send("Performance.enable")
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    rows = browser.contexts[0].pages[0].evaluate("() => affserve.state.data.times.buffer.byteLength")
    return int(found["JSHeapUsedSize"] + rows)


@contextmanager
def _page(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "affserve.client", "view", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout is not None else ""
        finally:
            process.terminate()


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise AffserveError("no Chromium on this machine; expected the command chromium: make test-page installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def _picture(k: int) -> NDArray[np.uint8]:
    image = np.full((96, 160, 3), 90, dtype=np.uint8)
    for bit in range(BITS):
        image[48:, 20 * bit : 20 * bit + 20] = 235 if k >> bit & 1 else 20
    return image


def _film(path: Path, ticks: Sequence[int]) -> Path:
    codec, pixels = ("gif", "rgb8") if path.suffix == ".gif" else ("libx264", "yuv420p")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=TICKS)
        stream.width, stream.height, stream.pix_fmt = 160, 96, pixels
        stream.codec_context.time_base = Fraction(1, TICKS)
        for k, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(_picture(k), "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _write_result(film: Path, people: int) -> None:
    rng = np.random.default_rng(0)
    times = [frame.timestamp_s for frame in open_source(film)]
    answers = {task: rng.uniform(0, 1, (len(times), len(names))).astype(np.float32) for task, names in LABELS.items()}
    faces = [
        FaceRow(
            frame=k,
            timestamp_s=time_s,
            track_id=track,
            box_px=(10.0, 8.0, 30.0, 30.0),
            face_score=0.9,
            quality=(5.0, -2.0, 0.3, 1.0),
            answer=(answers, k),
        )
        for k, time_s in enumerate(times)
        for track in range(people)
    ]
    path = film.with_suffix(".affect.csv")
    table = ResultTable(name=path.name, source=film.name, labels=LABELS, provenance={})
    with OutputFile(path) as file:
        writer = CSV.open(file, table)
        writer.write(rows_of_faces(faces, LABELS))
        writer.finish({})
    write_whole(metadata_path(path), metadata_text(table).encode())
