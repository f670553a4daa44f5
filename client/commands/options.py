"""Options that several commands share: which server is used, and what is asked about faces.

A command declares them as its own parameters and hands them to `Connection` and `FaceSettings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affserve.client.wire.transport import Transport

RepositoryOption = Annotated[
    Path | None,
    typer.Option("--repository", help="Model repository: a server for it is started here and stopped afterwards."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="HOST:PORT (gRPC) of a running server, or several with commas between, which then take turns.  "
        "[default: $AFFSERVE_URL]",
    ),
]
TransportOption = Annotated[
    Transport,
    typer.Option(
        "--transport",
        help="How frames travel: as they are (raw), through shared memory with a server on this machine (shm), or as "
        "JPEG, a tenth of the bytes, answers change visibly (jpeg). auto: shm where it works, else raw.",
    ),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Encrypt; the server's certificate is checked.")]
TlsCaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM: who vouches for the server; turns --tls on.  [default: public authorities]"),
]
TlsCertOption = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM: our own certificate, for a server that asks for one.")
]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", help="PEM: the key of --tls-cert.")]
TlsNameOption = Annotated[
    str | None,
    typer.Option("--tls-name", help="Name in the server's certificate, when it is not the HOST of --url."),
]


FacesOption = Annotated[
    str,
    typer.Option("--faces", help="largest: one subject a frame; all: everybody; left, right: that one of two people."),
]
DetectEveryOption = Annotated[
    int,
    typer.Option(
        "--detect-every", min=1, help="Frames from one search for faces to the next; they are followed in between."
    ),
]
MinFaceOption = Annotated[
    float, typer.Option("--min-face", min=0, help="Leave out faces smaller than this many pixels.")
]
FaceDetectorOption = Annotated[str, typer.Option("--face-detector", help="auto, yunet or haar.")]
FaceModelOption = Annotated[
    Path | None,
    typer.Option("--face-model", help="YuNet's ONNX file.  [default: $AFFSERVE_FACE_MODEL, else fetched once]"),
]
CropsOption = Annotated[
    bool | None,
    typer.Option("--crops/--no-crops", help="Frames are face crops already.  [default: if images are 112x112]"),
]
