"""One call from a path to rows: opens the source, finds a detector, analyses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from affserve.client.analyze import analyze
from affserve.client.client import AffectClient
from affserve.client.crops import WholeImageCropper
from affserve.client.face_model import find_detector
from affserve.client.face_settings import FaceSettings, make_cropper
from affserve.client.faces import Cropper
from affserve.client.results import Rows
from affserve.client.video import FrameSource, open_source


def analyze_source(source: str | Path | FrameSource, client: AffectClient, cropper: Cropper | None) -> Iterator[Rows]:
    """Yield the rows of a video, an image or a folder of images.

    cropper: unless given, the largest face of each frame, found by the default detector; or the frames themselves where
    they are crops already. VideoError where the source cannot be read, at its end where it breaks off.
    """
    opened = open_source(source) if isinstance(source, (str, Path)) else source
    if cropper is None:
        whole = opened.already_cropped
        cropper = WholeImageCropper() if whole else make_cropper(FaceSettings(), find_detector())
    return analyze(opened, client, cropper)
