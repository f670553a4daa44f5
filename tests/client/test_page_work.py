"""What is done from the page, in a real Chromium, with the real server: analysing, exporting, watching."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import moving_square, write_video
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from affserve.client.connection import Connection
from affserve.client.faces.cropper import Croppers
from affserve.client.faces.settings import FaceSettings
from affserve.client.infer.run import InferOptions, infer_sources
from affserve.client.infer.work import WorkSettings
from affserve.client.page.static_page import write_html
from affserve.client.results.reading import read
from affserve.client.video.source import open_source
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import UsageError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
FRAMES = 60
DROP = """async (files) => {
  const dropped = new DataTransfer();
  for (const [name, type, bytes] of files)
    dropped.items.add(new File([Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0))], name, { type }));
  document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true }));
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: make test-page installs it")


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    """The address of a server whose models are a few operators."""
    with TritonServer(ServerConfig(repository=tiny)) as server:
        yield server.grpc_url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, url: str) -> Path:
    """A video with the result that `infer` makes of it, every picture a face."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "square.mp4", moving_square(FRAMES))
    croppers = Croppers(crops=True, faces=FaceSettings(faces="all"))
    connection = Connection(url=url, quiet=True)
    (folder / "results").mkdir()
    work = WorkSettings(croppers=croppers)
    options = InferOptions(sources=(folder / "square.mp4",), connection=connection, work=work, plot=False)
    assert infer_sources(InferOptions(**{**vars(options), "out": folder / "results", "quiet": True}))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(folder: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with a model; its temporary files are gone in the end."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "affserve.client", "view", str(folder), "--url", url, "--crops"]
    with subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
    assert list(temporary.glob("affserve-view-*")) == []


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """A page at the list; no test may leave an error in its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(address)
    tab.locator(".drop").wait_for()
    yield tab
    context.close()
    assert errors == []


def dropped(*paths: Path) -> list[list[str]]:
    return [[path.name, "", base64.b64encode(path.read_bytes()).decode()] for path in paths]


def test_videos_that_are_dropped_become_results_and_a_bad_one_says_why(tab: Any, folder: Path, tmp_path: Path) -> None:
    """The curve is that of infer; the copy is the page's own, the result stays in the folder."""
    (tmp_path / "notes.txt").write_text("no video\n")
    shutil.copy(folder / "square.mp4", tmp_path / "dropped.mp4")
    tab.evaluate(DROP, dropped(tmp_path / "notes.txt", tmp_path / "dropped.mp4"))
    tasks = tab.get_by_role("list", name="Queue").get_by_role("listitem")
    tasks.filter(has_text="dropped.mp4").get_by_role("link", name="Show").wait_for()
    assert "notes.txt cannot be read as a video" in (said := tasks.filter(has_text="notes.txt").inner_text())
    assert "/" not in said.replace("(.bmp", "")  # no path of ours
    tasks.filter(has_text="dropped.mp4").get_by_role("link", name="Show").click()
    tab.wait_for_function("() => globalThis.affserve?.state.entry.name === 'dropped.mp4'")
    assert tab.evaluate("() => affserve.curves.people[0].panels[0].canvas.clientHeight") > 50
    assert (folder / "dropped.affect.csv").read_bytes() == (folder / "results" / "square.affect.csv").read_bytes()
    assert not (folder / "dropped.mp4").exists()


def test_a_task_that_is_cancelled_leaves_nothing_and_the_next_is_done(tab: Any, folder: Path, tmp_path: Path) -> None:
    for name in ("unwanted.mp4", "wanted.mp4"):
        shutil.copy(folder / "square.mp4", tmp_path / name)
    tab.evaluate("() => fetch('/api/queue/paused', {method: 'PUT', body: 'true'})")
    tab.evaluate(DROP, dropped(tmp_path / "unwanted.mp4", tmp_path / "wanted.mp4"))
    tab.get_by_role("button", name="Cancel unwanted.mp4").click()
    tasks = tab.get_by_role("list", name="Queue").get_by_role("listitem")
    tasks.filter(has_text="unwanted.mp4").get_by_text("cancelled").wait_for()
    assert not (folder / "wanted.affect.csv").exists()
    tab.get_by_role("button", name="Go on").click()
    tasks.filter(has_text="wanted.mp4").get_by_role("link", name="Show").wait_for()
    assert (folder / "wanted.affect.csv").exists()
    assert not list(folder.glob("*unwanted*"))


def test_an_upload_is_bounded_and_its_name_is_a_name(tab: Any) -> None:
    """What the page would not send: another page's request, a path for a name, an unknown choice of faces."""
    base = tab.url.partition("/#")[0].rstrip("/")

    def status(path: str, origin: str = base) -> int:
        return int(tab.request.put(f"{base}/api/uploads/{path}", data="x", headers={"Origin": origin}).status)

    assert status("..%2F..%2Fescaped.mp4") == 404
    assert status(".hidden.mp4") == 400
    assert status("a.mp4?faces=nobody") == 400
    assert status("a.mp4", "http://elsewhere.example") == 403


def test_a_part_leaves_as_csv_and_png_and_the_overlay_as_a_video(tab: Any, folder: Path, tmp_path: Path) -> None:
    tab.get_by_role("link", name="square.mp4").first.click()
    tab.wait_for_function("() => globalThis.affserve")
    tab.evaluate("() => affserve.state.select({from: 0.5, to: 1})")

    def saved(role: str, name: str) -> Path:
        with tab.expect_download() as download:
            tab.get_by_role(role, name=name, exact=True).click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
        return tmp_path / str(download.value.suggested_filename)

    header, *lines = (folder / "results" / "square.affect.csv").read_text().splitlines()
    inside = [line for line in lines if 0.5 <= float(line.split(",")[1]) <= 1]
    assert saved("link", "CSV").read_text().splitlines() == [header, *inside]
    assert len(inside) == 16
    assert open_source(saved("link", "PNG")).frames_hint == 1
    assert len(list(open_source(saved("button", "Overlay video")))) == FRAMES


def test_a_page_in_a_file_shows_the_values_of_the_result_without_a_server(
    browser: Any, folder: Path, tmp_path: Path
) -> None:
    result = folder / "results" / "square.affect.csv"
    write_html([result, folder / "square.mp4"], tmp_path / "page.html")
    asked: list[str] = []
    with browser.new_context(offline=True) as context:
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        tab.goto((tmp_path / "page.html").as_uri())
        tab.wait_for_function("() => globalThis.affserve?.player.video?.readyState >= 2")
        tab.evaluate("() => affserve.state.seek(41)")
        tab.wait_for_function("() => affserve.state.k === 41")
        told = tab.locator(".values.valence_arousal output").first.inner_text().replace("−", "-")
    assert float(told) == pytest.approx(read(result)["valence"][41], abs=0.005)
    assert set(asked) <= {"file", "data", "blob"}


def test_a_page_is_of_one_result(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--html takes one result, and 0 were found"):
        write_html([folder / "square.mp4"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_file_that_is_watched_shows_its_curves_and_its_record_has_the_rows_of_infer(tab: Any, folder: Path) -> None:
    """Frames may be dropped on a slow machine; those that are answered are answered as by `infer`."""
    tab.get_by_label("What to watch").select_option(label="square.mp4, in real time")
    tab.get_by_role("checkbox", name="record").check()
    tab.get_by_role("button", name="Watch").click()
    tab.wait_for_function("() => globalThis.affserve?.film?.drawn > 0")
    tab.get_by_role("link", name="Show the record").wait_for()
    shown = tab.evaluate("() => [...affserve.state.data.people[0].columns.valence]")
    (record,) = folder.glob("square 2*.affect.csv")
    watched, whole = read(record), read(folder / "results" / "square.affect.csv")
    same = np.isin(whole["frame"], watched["frame"])
    assert len(watched["frame"]) == same.sum() >= 10
    for name in ("timestamp_s", "box_w_px", "valence", "p_Fear", "AU12"):
        assert watched[name].tolist() == pytest.approx(whole[name][same].tolist(), abs=1.5e-4), name
    assert shown == pytest.approx(watched["valence"].tolist(), abs=1.5e-4)
    tab.get_by_role("link", name="Show the record").click()
    tab.wait_for_function("() => document.querySelector('video')?.readyState >= 2")


def test_the_camera_of_the_browser_is_watched_until_it_is_stopped(tab: Any, folder: Path) -> None:
    tab.get_by_label("What to watch").select_option("browser")
    tab.get_by_role("button", name="Watch").click()
    tab.wait_for_function("() => globalThis.affserve?.film?.drawn > 0")
    assert tab.evaluate("() => affserve.film.picture.width") == 640
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("It has ended").wait_for()


@pytest.mark.parametrize("source", ["file:///etc/passwd", "/etc/passwd", "entry:../x", "concat:a|b"])
def test_no_other_file_is_watched(tab: Any, source: str) -> None:
    tab.get_by_label("What to watch").select_option("")
    tab.get_by_label("Address").fill(source)
    tab.get_by_role("button", name="Watch").click()
    tab.get_by_text("is no source").wait_for()


def test_a_page_elsewhere_cannot_watch(tab: Any) -> None:
    """Its browser would send the cookie, and say where the page is from."""
    (cookie,) = tab.context.cookies()
    base = tab.url.partition("/#")[0].rstrip("/")
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}"}

    def watch(origin: str, headers: dict[str, str]) -> None:
        connect(f"{base.replace('http', 'ws')}/api/live", origin=Origin(origin), additional_headers=headers).close()

    watch(base, headers)
    for origin, sent in (("http://elsewhere.example", headers), (base, {})):
        with pytest.raises(InvalidStatus):
            watch(origin, sent)
