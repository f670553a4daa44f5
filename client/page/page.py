"""What all routes share: the library, the token, what may be done, and a folder that goes with the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from affserve.client.page.library import Entry, Library
from affserve.client.page.security import new_token


@dataclass(kw_only=True)
class Page:
    """One running page."""

    library: Library
    temporary: Path  # a folder for files of this page only, removed when it ends
    token: str = field(default_factory=new_token)
    features: dict[str, bool] = field(default_factory=dict)  # what the browser offers beyond looking, by name

    def entry(self, request: Request) -> Entry:
        """Return the entry that a request names by its id; 404 where there is none."""
        entry = self.library.entries.get(request.path_params["id"])
        if entry is None:
            raise HTTPException(404, "no such entry")
        return entry
