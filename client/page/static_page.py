"""A result as one page in a file, to send to a colleague: it opens from a disk, without a server and a network.

In it are the rows as edited, a small copy of the video with the same times, and the same JavaScript, module by module.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from affserve.client.page.library import Entry, Library
from affserve.client.page.media import Media, Playable
from affserve.client.page.page import Page
from affserve.client.page.result_data import payload
from affserve.client.page.result_routes import facts_of
from affserve.client.results.output_file import check_writable, write_whole
from affserve.train.errors import OutputError, UsageError

STATIC = Path(__file__).parent / "static"
FIRST = 'import "carried.js";'
LONGEST_SIDE_PX = 480  # of the pictures inside
POLL_S = 0.05
IMPORT = re.compile(r'(from |import\()"\./')  # of a module by another: modules that lie in the page have bare names


def write_html(paths: Sequence[Path], out: Path) -> None:
    """Write the page of the one result that paths stand for; UsageError where it is not one."""
    library = Library(paths)
    results = [entry for entry in library.entries.values() if entry.result is not None]
    if len(results) != 1:
        found = ", ".join(str(entry.result) for entry in results[:3])
        raise UsageError(f"--html takes one result, and {len(results)} were found{': ' if found else ''}{found}")
    check_writable(out)
    with tempfile.TemporaryDirectory(prefix="affserve-view-") as temporary:
        page = Page(library=library, temporary=Path(temporary))
        page.media = Media(library=library, temporary=Path(temporary), longest_side_px=LONGEST_SIDE_PX)
        write_whole(out, _document(page, results[0]).encode())
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def _document(page: Page, entry: Entry) -> str:
    playable = _copied(page.media, entry)
    facts = facts_of(page, entry, playable)
    rows = payload(page.library.edited(entry))
    video = playable.path.read_bytes() if playable is not None and playable.path is not None else b""
    modules = {f.name: _data_url(IMPORT.sub(r'\1"', f.read_text(encoding="utf-8"))) for f in STATIC.glob("*.js")}
    imports = json.dumps({"imports": modules})
    allowed = " ".join(f"'sha256-{_base64(hashlib.sha256(one.encode()).digest())}'" for one in (imports, FIRST))
    policy = (
        f"default-src 'none'; script-src data: {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )
    body = (STATIC / "index.html").read_text(encoding="utf-8")
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>\n{style}</style>\n'
        f'<script type="importmap">{imports}</script>\n'
    )
    carried = {"entry": json.dumps(facts).replace("<", "\\u003c"), "rows": _base64(rows), "video": _base64(video)}
    blocks = "".join(f'<script type="text/plain" id="{name}">{text}</script>\n' for name, text in carried.items())
    body = body.replace("<title>affserve</title>", f"<title>{html.escape(entry.name)} – affserve</title>")
    body = body.replace('<link rel="stylesheet" href="/static/page.css">\n', head)
    body = body.replace('<script type="module" src="/static/main.js"></script>\n', "")
    return body.replace("</body>", f'{blocks}<script type="module">{FIRST}</script>\n</body>')


def _copied(media: Media, entry: Entry) -> Playable | None:
    """Make the small copy of the video; OutputError where that fails."""
    playable = media.playable(entry, copied=True)
    while playable is not None and playable.state == "preparing":
        time.sleep(POLL_S)
    if playable is not None and playable.state == "failed":
        raise OutputError(f"the video cannot be put into the page: {playable.error}")
    return playable


def _data_url(script: str) -> str:
    return f"data:text/javascript;base64,{_base64(script.encode())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
