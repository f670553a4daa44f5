"""The command `affserve live`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affserve.client.commands.options import (
    CropperOptions,
    FaceOptions,
    RawOption,
    ServerOptions,
    TlsOptions,
    TransportOption,
    spread,
)
from affserve.client.faces.settings import FaceSettings
from affserve.client.wire.transport import Transport


@spread
def live(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Camera (0, /dev/video0), stream (rtsp://, http://, tcp://, ...), or a file, played in real time.",
        ),
    ],
    server: ServerOptions,
    hop: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=300,
            help="Of heads that see whole segments: frames between predictions, 10 unless given; an answer waits hop / "
            "fps seconds at most. A head that streams answers every frame.",
        ),
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="File for the rows as JSON lines, each written at once; '-' for stdout.")
    ] = None,
    raw: RawOption = False,
    faces: FaceOptions,
    croppers: CropperOptions,
    camera_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT to ask of a camera.")] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Frames per second to ask of a camera; clock of a folder of images.")
    ] = None,
    reconnect_for: Annotated[
        float, typer.Option(min=0, help="Seconds without a frame after which a lost stream is given up.")
    ] = 60.0,
    loop: Annotated[bool, typer.Option("--loop", help="Play a file over and over.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of decoding a file and of a server that is started here.")
    ] = None,
    transport: TransportOption = Transport.AUTO,
    tls: TlsOptions,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print neither panel nor summary.")] = False,
) -> None:
    """Estimate affect while it happens, with a bounded delay.

    Shows a panel in a terminal, a line a second elsewhere. Frames that come while the machine is busy are dropped and
    counted; the delay does not grow. Ctrl-C ends it. Cameras and streams end only so: a lost stream is connected again.
    """
    from affserve.client.connection import Connection
    from affserve.client.faces.cropper import Croppers
    from affserve.client.live.analysis import LiveSettings
    from affserve.client.live.run import LiveOptions, run_live
    from affserve.client.live.source import SourceSettings

    options = LiveOptions(
        source=SourceSettings(
            source=source,
            camera_size=camera_size,
            fps=fps,
            reconnect_for_s=reconnect_for,
            loop=loop,
            threads=threads or 0,
        ),
        connection=Connection(**vars(server), **vars(tls), threads=threads, quiet=quiet, transport=transport),
        live=LiveSettings(hop=hop, raw=raw),
        croppers=Croppers(faces=FaceSettings(**vars(faces)), **vars(croppers)),
        jsonl=jsonl,
        json=json,
        quiet=quiet,
    )
    run_live(options)
