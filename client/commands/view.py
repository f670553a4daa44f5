"""The command `affserve view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATHS]...",
            help="Results, videos, and folders of them.  [default: this folder]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Look at results: video, faces and curves together, on a page in a browser.

    The page is served to this machine only, at the address printed, until Ctrl-C.
    """
    from affserve.client.page.serving import ViewOptions, run_view

    run_view(ViewOptions(paths=tuple(paths or [Path()]), port=port, browser=browser))
