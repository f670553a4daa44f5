"""The command `affserve view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affserve.client.commands.options import CropperOptions, ServerOptions, TlsOptions, TransportOption, spread
from affserve.client.wire.transport import Transport
from affserve.train.errors import MissingExtraError


@spread
def view(
    *,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATHS]...",
            help="Results, videos, and folders of them.  [default: this folder]",
            show_default=False,
        ),
    ] = None,
    server: ServerOptions,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    html: Annotated[
        Path | None,
        typer.Option(help="Write one result as a page of one file, with its video, made small, inside; serve nothing."),
    ] = None,
    croppers: CropperOptions,
    transport: TransportOption = Transport.AUTO,
    tls: TlsOptions,
) -> None:
    """Look at results: video, faces and curves together, on a page in a browser.

    The page is served to this machine only, at the address printed, until Ctrl-C. With a model, as --repository or
    --url, it analyses videos, too: their results go to the first folder that is named, else to this one.
    """
    from affserve.client.connection import Connection, is_named
    from affserve.client.faces.cropper import Croppers

    try:
        from affserve.client.page.serving import ViewOptions, run_view
        from affserve.client.page.static_page import write_html
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingExtraError("starlette", "page") from error

    if html is not None:
        return write_html(paths or [Path()], html)

    model = {**vars(server), **vars(tls), "transport": transport}
    options = ViewOptions(
        paths=tuple(paths or [Path()]),
        port=port,
        browser=browser,
        connection=Connection(**model) if is_named(server.repository, server.url) else None,
        croppers=Croppers(**vars(croppers)),
    )
    return run_view(options)
