"""The page as a person sees it: in a real Chromium, on videos whose pictures say which frame they are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import write_video
from numpy.typing import NDArray
from result_rows import LABELS, people

from affserve.client.results.formats import FORMATS
from affserve.client.results.metadata import ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.reading import read
from affserve.client.results.rows import Rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FRAMES = 90
BITS = 8
HOSTILE = "<img src=x onerror=document.title='owned'>.mp4"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: make test-page installs it")


def numbered(frames: int) -> list[NDArray[np.uint8]]:
    """Pictures of 160 x 96 whose lower half says their number: eight fields, white for 1."""
    images = []
    for k in range(frames):
        image = np.full((96, 160, 3), 90, dtype=np.uint8)
        for bit in range(BITS):
            image[48:, 20 * bit : 20 * bit + 20] = 235 if k >> bit & 1 else 20
        images.append(image)
    return images


def write_result(path: Path, rows: Rows, source: str) -> None:
    table = ResultTable(name=path.name, source=source, labels=LABELS, provenance={"trained_on": "synthetic"})
    with OutputFile(path) as file:
        writer = FORMATS["csv"].open(file, table)
        writer.write(rows)
        writer.finish({})
    write_whole(metadata_path(path), metadata_text(table).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with its result, and one whose name is markup."""
    folder = tmp_path_factory.mktemp("results")
    write_video(folder / "steady.mp4", numbered(FRAMES))
    (folder / HOSTILE).write_bytes((folder / "steady.mp4").read_bytes())
    rows = people(FRAMES, {0: range(5, 60), 1: range(30, FRAMES)})
    write_result(folder / "steady.affect.csv", rows, "steady.mp4")
    write_result(folder / "hostile.affect.csv", rows, HOSTILE)
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


def seek(tab: Any, k: int) -> None:
    """Ask for a frame and wait until it is shown."""
    tab.evaluate("k => affserve.state.seek(k)", k)
    tab.wait_for_function("k => affserve.state.k === k", arg=k)


def test_the_frame_shown_at_a_seek_is_the_rows(tab: Any) -> None:
    tab.get_by_role("link", name="steady.mp4").click()
    tab.wait_for_function("() => document.querySelector('video')?.readyState >= 2")
    for k in np.random.default_rng(0).integers(0, FRAMES, 20).tolist():
        seek(tab, k)
        assert tab.evaluate(FRAME_IN_PICTURE) == k


def test_the_rows_in_the_browser_are_those_of_the_file(tab: Any, folder: Path) -> None:
    tab.get_by_role("link", name="steady.mp4").click()
    tab.wait_for_function("() => globalThis.affserve")
    table = read(folder / "steady.affect.csv")
    mine = table["track_id"] == 1
    shown = tab.evaluate("() => Array.from(affserve.state.data.people[1].columns.arousal)")
    assert np.array(shown, dtype=np.float32).tolist() == table["arousal"][mine].astype(np.float32).tolist()


def test_a_file_name_is_text(tab: Any) -> None:
    tab.get_by_role("link", name=HOSTILE).click()
    tab.get_by_role("heading", name=HOSTILE).wait_for()
    assert tab.title() != "owned"
    assert tab.locator("img[src=x]").count() == 0
