"""What Python programs hand over as frames: an array, or a list of arrays or PIL images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.export.contract import FRAMES
from affserve.train.errors import InferenceError

EXPECTED = "frames are face crops: an array (N, 224, 224, 3) uint8 RGB, or a list of N such arrays or PIL images"

Frames = NDArray[np.uint8] | Sequence[Any]  # of Any: arrays (224, 224, 3) or PIL images


def frames_array(frames: Frames) -> NDArray[np.uint8]:
    """Return frames as one array (N, 224, 224, 3) uint8; InferenceError that says what else was given, and what to do.

    An array of several frames is passed on as it is: what its model expects is checked where it is sent.
    """
    if isinstance(frames, np.ndarray):
        if frames.ndim == len(FRAMES.shape):
            raise InferenceError(f"{EXPECTED}; got one frame {frames.shape}: call with frames[None]")
        return frames
    if isinstance(frames, (str, os.PathLike)):
        raise InferenceError(
            f"{EXPECTED}; got the path {os.fspath(frames)!r}: from affserve.client import analyze, then "
            "analyze(path, client) finds the faces of a video or an image"
        )
    if _is_picture(frames):
        raise InferenceError(f"{EXPECTED}; got one image: call with [image]")
    if not isinstance(frames, Sequence) or isinstance(frames, bytes):
        stream = ": call with list(frames), or encode_stream with chunks" if isinstance(frames, Iterable) else ""
        raise InferenceError(f"{EXPECTED}; got {_name(frames)}{stream}")
    checked = [_frame(one, place) for place, one in enumerate(frames)]
    return np.stack(checked) if checked else np.empty((0, *FRAMES.shape), dtype=np.uint8)


def _frame(one: Any, place: int) -> NDArray[Any]:
    frame = np.asarray(one.convert("RGB")) if _is_picture(one) else one
    if not isinstance(frame, np.ndarray):
        raise InferenceError(f"{EXPECTED}; item {place} of the list is {_name(frame)}")
    if frame.shape != FRAMES.shape or frame.dtype != FRAMES.numpy_dtype:
        raise InferenceError(f"{EXPECTED}; item {place} of the list is {frame.shape} {frame.dtype}")
    return frame


def _is_picture(one: Any) -> bool:
    """Say whether this is a PIL image, without loading PIL."""
    return hasattr(one, "convert") and hasattr(one, "getbands")


def _name(one: object) -> str:
    return f"a {type(one).__name__}"
