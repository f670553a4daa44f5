"""Which face detector to use, and where its model file comes from.

YuNet's file is looked for in an option, the environment and the cache, and fetched once from the OpenCV Zoo; where
there is none and no network, OpenCV's bundled Haar cascade stands in, said out loud. A file that is named but wrong is
an error, never a reason to fall back.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.request
from pathlib import Path

from affserve.client.faces.detectors import HaarDetector, YuNetDetector
from affserve.client.faces.face import FaceDetector
from affserve.train.errors import VideoError
from affserve.train.files import file_sha256, write_file

DETECTORS = ("auto", "yunet", "haar")
MODEL_ENVIRONMENT = "AFFSERVE_FACE_MODEL"
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = f"https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/face_detection_yunet/{YUNET_FILE}"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_BYTES = 232_589
FETCH_TIMEOUT_S = 3.0


def find_detector(kind: str = "auto", model: Path | None = None, *, url: str = YUNET_URL) -> FaceDetector:
    """Return a face detector of the kind asked for: "auto" (YuNet where it can be had, else Haar), "yunet" or "haar".

    model: YuNet's file; without it the environment variable AFFSERVE_FACE_MODEL, then the cache, then `url`.
    VideoError: the kind is unknown, a named file is missing or wrong, or "yunet" cannot be had.
    """
    if kind not in DETECTORS:
        raise VideoError(f"face detector is {kind!r}, expected one of {', '.join(DETECTORS)}")
    if kind == "haar":
        return HaarDetector()
    path = named_model(model) or cached_model(url)
    if path is not None:
        return YuNetDetector(path)
    how = f"download {YUNET_URL} and pass it with --face-model, or set {MODEL_ENVIRONMENT} to it"
    if kind == "yunet":
        raise VideoError(f"the YuNet face model is not in {cache_folder()} and cannot be fetched: {how}")
    print(
        f"note: finding faces with OpenCV's Haar cascade, which misses turned and small faces; for YuNet {how}",
        file=sys.stderr,
    )
    return HaarDetector()


def named_model(option: Path | None) -> Path | None:
    """Return the model file that the option or the environment names; VideoError where it does not exist."""
    variable = os.environ.get(MODEL_ENVIRONMENT)
    path, source = (option, "--face-model") if option else (Path(variable) if variable else None, MODEL_ENVIRONMENT)
    if path is not None and not path.is_file():
        raise VideoError(f"{source} names {path}, which is not a file; expected OpenCV Zoo's {YUNET_FILE}")
    return path


def cache_folder() -> Path:
    """Where fetched files are kept: $XDG_CACHE_HOME/affserve or ~/.cache/affserve."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "affserve"


def cached_model(url: str = YUNET_URL) -> Path | None:
    """Return YuNet's file from the cache, fetched into it if need be; None where there is no way to it."""
    path = cache_folder() / YUNET_FILE
    if path.is_file() and file_sha256(path) == YUNET_SHA256:
        return path
    content = _fetched(url)
    return path if content is not None and _stored(path, content) else None


def _fetched(url: str) -> bytes | None:
    """Return what the address serves, or None without a network and for anything but the pinned file."""
    try:
        with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S) as response:
            content = bytes(response.read(YUNET_BYTES + 1))
    except (OSError, http.client.HTTPException):
        return None
    return content if hashlib.sha256(content).hexdigest() == YUNET_SHA256 else None


def _stored(path: Path, content: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError:
        return False
    return True
