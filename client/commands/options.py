"""Options that several commands share: which server is used, and what is asked about faces.

A command takes each group as one parameter; the names of a group's fields are those of what it becomes, so that it is
handed on whole: `Connection(**vars(server), **vars(wire))`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from affserve.client.faces.settings import LARGEST, FaceSettings
from affserve.client.wire.transport import Transport


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Of `Connection`: where the model is."""

    repository: Annotated[
        str | None,
        typer.Option(
            "--repository",
            metavar="PATH|URL",
            help="Model repository: a server for it is started here and stopped afterwards. Of s3://... a verified "
            "copy is kept.",
        ),
    ] = None
    trust: Annotated[
        bool, typer.Option("--trust", help="Of --repository: serve what no manifest vouches for, as affserve serve.")
    ] = False
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="HOST:PORT (gRPC) of a running server, or several with commas between, which then take turns.  "
            "[default: $AFFSERVE_URL]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """Of `Connection`: how the server is checked and who we are."""

    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; the server's certificate is checked.")] = False
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca", help="PEM: who vouches for the server; turns --tls on.  [default: public authorities]"
        ),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="PEM: our own certificate, for a server that asks for one.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM: the key of --tls-cert.")] = None
    tls_name: Annotated[
        str | None,
        typer.Option("--tls-name", help="Name in the server's certificate, when it is not the HOST of --url."),
    ] = None


TransportOption = Annotated[
    Transport,
    typer.Option(
        "--transport",
        help="How frames travel: as they are (raw), through shared memory with a server on this machine (shm), or as "
        "JPEG, a tenth of the bytes, answers change visibly (jpeg). auto: shm where it works, else raw.",
    ),
]


RawOption = Annotated[
    bool,
    typer.Option(
        "--raw", help="Leave answers as they are, whatever post-processing the head declares (export --inspect)."
    ),
]


EveryOption = Annotated[
    int,
    typer.Option(
        "--every",
        min=1,
        help="Encode every n-th frame of a person and interpolate features in between; `interpolated` marks them. "
        "2 and 3 take 0.6 and 0.5 of the processor time with ViT-B-32 on a CPU, and cost drawn faces 0.004 and "
        "0.014 of the expressions' F1 and next to nothing of the rest.",
    ),
]


JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Sources to work on at once, by processes that share the server.  [default: by the cores and by what "
        "computes; 1 for one source]",
    ),
]


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """Of `FaceSettings`: whose face, and how faces are followed."""

    faces: Annotated[
        str,
        typer.Option(
            "--faces", help="largest: one subject a frame; all: everybody; left, right: that one of two people."
        ),
    ] = LARGEST
    detect_every: Annotated[
        int,
        typer.Option(
            "--detect-every", min=1, help="Frames from one search for faces to the next; they are followed in between."
        ),
    ] = FaceSettings.detect_every
    min_size_px: Annotated[
        float, typer.Option("--min-face", min=0, help="Leave out faces smaller than this many pixels.")
    ] = FaceSettings.min_size_px


FaceDetectorOption = Annotated[str, typer.Option("--face-detector", help="auto, yunet or haar.")]
FaceModelOption = Annotated[
    Path | None,
    typer.Option("--face-model", help="YuNet's ONNX file.  [default: $AFFSERVE_FACE_MODEL, else fetched once]"),
]


@dataclass(frozen=True, kw_only=True)
class CropperOptions:
    """Of `Croppers`: by what faces are found, if they are to be found at all."""

    face_detector: FaceDetectorOption = "auto"
    face_model: FaceModelOption = None
    crops: Annotated[
        bool | None,
        typer.Option("--crops/--no-crops", help="Frames are face crops already.  [default: if images are 112x112]"),
    ] = None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make each field of a group that a command takes an option of its own, in the group's place.

    The command takes keywords only.
    """
    taken = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {one.name: one.annotation for one in taken if is_dataclass(one.annotation)}
    options: list[inspect.Parameter] = []
    for one in taken:
        if one.name not in groups:
            options.append(one)
            continue
        types = get_type_hints(one.annotation, include_extras=True)
        options += [
            inspect.Parameter(field.name, one.kind, default=field.default, annotation=types[field.name])
            for field in fields(one.annotation)
        ]

    @wraps(command)
    def with_groups(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    with_groups.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {one.name: one.annotation for one in options}
    return with_groups
