"""What all routes share: the library, the token, what may be done, and a folder that goes with the page."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from affserve.client.connection import SharedClient
from affserve.client.faces.cropper import Croppers
from affserve.client.page.library import Entry, Library
from affserve.client.page.media import Media
from affserve.client.page.security import new_token
from affserve.client.page.task_queue import Queue
from affserve.client.results.edits import Edits

MOST_JSON_BYTES = 1_000_000


@dataclass(kw_only=True)
class Page:
    """One running page."""

    library: Library
    temporary: Path  # a folder for files of this page only, removed when it ends
    token: str = field(default_factory=new_token)
    features: dict[str, bool] = field(default_factory=dict)  # what the browser offers beyond looking, by name
    model: SharedClient | None = None  # to analyse with
    croppers: Croppers = field(default_factory=Croppers)  # by what faces are found then
    out: Path = Path()  # the folder for new results
    queue: Queue = field(default_factory=Queue)
    watching: threading.Lock = field(default_factory=threading.Lock)  # held while something is
    before: dict[str, list[Edits]] = field(default_factory=dict)  # of each entry the edits that undo goes back to

    def __post_init__(self) -> None:
        self.media = Media(library=self.library, temporary=self.temporary)

    def entry(self, request: Request) -> Entry:
        """Return the entry that a request names by its id; 404 where there is none."""
        entry = self.library.entries.get(request.path_params["id"])
        if entry is None:
            raise HTTPException(404, "no such entry")
        return entry

    def result(self, request: Request) -> Path:
        """Return the file of rows of the entry that a request names; 404 where there is none."""
        result = self.entry(request).result
        if result is None:
            raise HTTPException(404, "not analysed yet")
        return result


async def json_body(request: Request) -> object:
    """Return the JSON that a request carries; 413 where it is too long, 400 where it is none."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_JSON_BYTES:
            raise HTTPException(413, f"more than {MOST_JSON_BYTES} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "not JSON") from error
