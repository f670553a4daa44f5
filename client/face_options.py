"""The command-line options about faces, shared by every command that looks for them.

A command declares them as its own parameters; their defaults are those of `FaceSettings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
