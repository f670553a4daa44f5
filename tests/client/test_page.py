"""The page as a person sees it: in a real Chromium, on videos whose pictures say which frame they are."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from clips import write_video
from numpy.typing import NDArray
from result_rows import LABELS, people

from affserve.client.results.edits import edits_path
from affserve.client.results.formats import FORMATS
from affserve.client.results.metadata import ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.reading import read
from affserve.client.video.source import open_source

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FRAMES = 90
BITS = 8
HOSTILE = "<img src=x onerror=document.title='owned'>.mp4"
UNEVEN = [k + k // 3 + (k % 7 == 0) for k in range(0, 3 * FRAMES, 3)]  # of a phone: in thirtieths of a second
CLIPS = ("steady.mp4", "uneven.mp4", "moving.gif", "edited.mp4", HOSTILE)

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: make test-page installs it")


def numbered(frames: int) -> list[NDArray[np.uint8]]:
    """Pictures of 160 x 96 whose lower half says their number: eight fields, white for 1."""
    images = []
    for k in range(frames):
        image = np.full((96, 160, 3), 90, dtype=np.uint8)
        for bit in range(BITS):
            image[48:, 20 * bit : 20 * bit + 20] = 235 if k >> bit & 1 else 20
        images.append(image)
    return images


def write_result(video: Path) -> None:
    """Write a result of a clip with two people, and frames with both and with nobody."""
    times = np.array([frame.timestamp_s for frame in open_source(video)])
    rows = people(len(times), {0: range(5, 60), 1: range(30, len(times))})
    path = video.with_name(f"{video.stem[:6]}.affect.csv")
    table = ResultTable(name=path.name, source=video.name, labels=LABELS, provenance={"trained_on": "synthetic"})
    with OutputFile(path) as file:
        writer = FORMATS["csv"].open(file, table)
        writer.write(replace(rows, timestamp_s=times[rows.frame]))
        writer.finish({})
    write_whole(metadata_path(path), metadata_text(table).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with their results, and a link that leads elsewhere."""
    folder = tmp_path_factory.mktemp("page") / "results"
    folder.mkdir()
    write_video(folder / "steady.mp4", numbered(FRAMES))
    write_video(folder / "uneven.mp4", numbered(FRAMES), pts=UNEVEN)
    write_video(folder / "moving.gif", numbered(FRAMES), codec="gif", pixels="rgb8", pts=UNEVEN)
    for copy in ("edited.mp4", HOSTILE, "../secret.mp4"):
        shutil.copy(folder / "steady.mp4", folder / copy)
    for clip in CLIPS:
        write_result(folder / clip)
    (folder / "way_out.mp4").symlink_to(folder / "../secret.mp4")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The address that `affserve view` prints."""
    command = [sys.executable, "-m", "affserve.client", "view", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Any]:
    """A page at the list; no test may leave an error in its console."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(address)
    yield tab
    context.close()
    assert errors == []


FRAME_IN_PICTURE = f"""() => {{
  const video = document.querySelector("video"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [160, 96];
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 160, 96);
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit++) number += (pen.getImageData(20 * bit + 10, 72, 1, 1).data[0] > 128) << bit;
  return number;
}}"""


def opened(tab: Any, clip: str) -> None:
    """Open a clip's result and wait for its video."""
    tab.get_by_role("link", name=clip).click()
    tab.wait_for_function("() => document.querySelector('video')?.readyState >= 2")


def shown(tab: Any, k: int) -> None:
    """Wait until a frame is on the screen."""
    tab.wait_for_function("k => affserve.state.k === k", arg=k)


def value(tab: Any, person: int, name: str) -> str:
    """Return the number beside a person's curve."""
    group = tab.get_by_role("region", name=f"Curves of person {person}")
    return str(group.locator("li", has_text=name).locator("output").inner_text())


@in_chromium
@pytest.mark.parametrize("clip", ["steady.mp4", "uneven.mp4", "moving.gif"])
def test_the_frame_shown_at_a_seek_is_the_rows(tab: Any, clip: str) -> None:
    opened(tab, clip)
    for k in [0, FRAMES - 1, *np.random.default_rng(0).integers(0, FRAMES, 15).tolist()]:
        tab.evaluate("k => affserve.state.seek(k)", k)
        shown(tab, k)
        assert tab.evaluate(FRAME_IN_PICTURE) == k


@in_chromium
def test_the_numbers_at_the_cursor_are_those_of_the_file(tab: Any, folder: Path) -> None:
    opened(tab, "steady.mp4")
    plot = tab.get_by_role("img", name="Valence from").first
    width = plot.bounding_box()["width"]
    plot.click(position={"x": width * 40.5 / FRAMES, "y": 30})
    shown(tab, 40)
    tab.keyboard.press("ArrowRight")
    shown(tab, 41)
    table = read(folder / "steady.affect.csv")
    for person in (0, 1):
        (row,) = np.flatnonzero((table["frame"] == 41) & (table["track_id"] == person))
        assert value(tab, person, "arousal") == f"{table['arousal'][row]:+.2f}".replace("-", "−")
        assert value(tab, person, "Fear") == f"{100 * table['p_Fear'][row]:.0f}\u202f%"
    tab.keyboard.press("]")
    shown(tab, 71)
    assert value(tab, 0, "arousal") == "–"


@in_chromium
def test_merging_two_people_shows_one_and_undo_brings_both_back(tab: Any, folder: Path) -> None:
    opened(tab, "edited.mp4")
    groups = tab.get_by_role("region", name="Curves of")
    assert groups.count() == 2
    tab.get_by_label("Name of person 0").fill("<b>Anna</b>")
    tab.get_by_label("Name of person 0").press("Enter")
    tab.get_by_role("heading", name="<b>Anna</b>").wait_for()
    tab.get_by_label("More for person 1").click()
    tab.get_by_role("button", name="Merge into <b>Anna</b>").click()
    groups.nth(1).wait_for(state="detached")
    assert groups.count() == 1
    result = folder / "edited.affect.csv"
    assert set(read(result)["track_id"].tolist()) == {-1, 0}
    assert json.loads(edits_path(result).read_text())["people"]["1"] == {"merged_into": 0}
    tab.get_by_role("button", name="Undo").click()
    groups.nth(1).wait_for()
    tab.evaluate("() => affserve.state.seek(45)")
    shown(tab, 45)
    tab.get_by_label("More for <b>Anna</b>").click()
    tab.get_by_role("button", name="Split at frame 45").click()
    groups.nth(2).wait_for()
    assert {int(one) for one in read(result)["track_id"]} == {-1, 0, 1, 2}


@in_chromium
def test_a_part_that_was_dragged_over_is_named(tab: Any, folder: Path) -> None:
    opened(tab, HOSTILE)
    box = tab.get_by_role("img", name="Expressions").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40, steps=4)
    tab.mouse.up()
    tab.get_by_role("button", name="Name this part").click()
    tab.get_by_label("Name of the part").wait_for()
    (part,) = json.loads(edits_path(folder / f"{HOSTILE[:6]}.affect.csv").read_text())["parts"]
    assert part["name"] == "part 1"
    assert (part["from_s"], part["to_s"]) == pytest.approx((0.75, 1.5), abs=0.02)
    assert tab.title().startswith(HOSTILE)
    assert tab.locator("img[src=x]").count() == 0


@pytest.fixture(scope="module")
def cookie(address: str) -> str:
    """What the address with its token is answered with."""
    answer, _ = asked(address, f"/?{urlsplit(address).query}")
    assert answer.status == 303
    given = answer.getheader("Set-Cookie", "")
    assert "HttpOnly" in given
    assert "SameSite=strict" in given
    return given.partition(";")[0]


def asked(address: str, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, str]:
    """Ask as a program would, with any headers."""
    here = urlsplit(address)
    with closing(http.client.HTTPConnection(str(here.hostname), here.port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode(errors="replace")


def test_who_has_the_cookie_is_answered_with_a_strict_policy(address: str, cookie: str, folder: Path) -> None:
    answer, text = asked(address, "/api/entries", Cookie=cookie)
    assert answer.status == 200
    listed = json.loads(text)["entries"]
    assert {entry["name"] for entry in listed} == set(CLIPS)
    assert "secret" not in text
    policy = answer.getheader("Content-Security-Policy", "")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        pytest.param("/api/entries", "GET", {}, id="no cookie"),
        pytest.param("/static/main.js", "GET", {}, id="no cookie, a file"),
        pytest.param("/?token=wrong", "GET", {}, id="wrong token"),
        pytest.param("/api/entries", "GET", {"Cookie": "COOKIE", "Host": "evil.example"}, id="name bound elsewhere"),
        pytest.param("/api/entries", "GET", {"Cookie": "COOKIE", "Origin": "http://evil.example"}, id="other page"),
        pytest.param("/api/entries", "GET", {"Cookie": "COOKIE", "Sec-Fetch-Site": "cross-site"}, id="other site"),
        pytest.param("/api/entries", "GET", {"Cookie": "COOKIE", "Origin": "null"}, id="page without an origin"),
        pytest.param("/api/entries/x/undo", "POST", {"Cookie": "COOKIE"}, id="change without an origin"),
        pytest.param("/any", "GET", {"Cookie": "COOKIE", "Upgrade": "websocket", "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Origin": "http://evil.example"}, id="websocket from another page"),
    ],
)  # fmt: skip
def test_nobody_else_is_let_in(address: str, cookie: str, path: str, method: str, headers: dict[str, str]) -> None:
    answer, text = asked(
        address, path, method, **{name: one.replace("COOKIE", cookie) for name, one in headers.items()}
    )
    assert answer.status == 403, text


@pytest.mark.parametrize("path", ["/static/../security.py", "/static/%2e%2e/app.py", "/media/..%2f..", "/media/x"])
def test_only_what_was_named_can_be_read(address: str, cookie: str, path: str) -> None:
    answer, _ = asked(address, path, Cookie=cookie)
    assert answer.status == 404
