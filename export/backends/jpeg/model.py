"""A Triton backend called `jpeg`, written for Triton's python backend: JPEG files of face crops in, their pixels out.

Runs inside Triton's stub process, where affserve is not importable.
Every request stands for itself, so that one bad file is one refused request. Size is read from the file's header before
anything is decoded: a small file that claims to be huge costs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from affserve_backend import THREADS_VARIABLE, BadRequestError, LoadError, respond
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

try:
    import simplejpeg
except ImportError as error:
    raise LoadError(
        f"No module named simplejpeg ({error}): the JPEG models need it in the Python that runs Triton's stubs; "
        "install it there with: pip install simplejpeg, or remove jpeg_decoder/, clip_encoder_jpeg/ and affect_jpeg/ "
        "from the repository"
    ) from error


class TritonPythonModel:
    """The one instance: decoding takes 0.1 ms a crop, and its threads share out the files of all waiting requests."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]
        self._shape = tuple(int(length) for length in config["output"][0]["dims"])  # (height, width, 3)
        threads = int(os.environ.get(THREADS_VARIABLE, "0")) or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="jpeg")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        pending = [self._begin(request) for request in requests]
        return [self._finish(frames, files) for frames, files in pending]

    def finalize(self) -> None:
        self._threads.shutdown()

    def _begin(self, request: Any) -> tuple[Frames, list[Any]]:
        """Hand the files of a request to the threads; return where their pixels go, and what to wait for."""
        files = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().ravel()
        frames: Frames = np.empty((len(files), *self._shape), dtype=np.uint8)
        return frames, [
            self._threads.submit(decode, file, frames[k], f"file {k + 1} of {len(files)}")
            for k, file in enumerate(files)
        ]

    def _finish(self, frames: Frames, files: Sequence[Any]) -> Any:
        errors = [error for file in files if (error := file.exception()) is not None]
        if not errors:
            return respond({self._output: frames})
        if isinstance(errors[0], BadRequestError):
            message, code = f"{self._input}: {errors[0]}", pb_utils.TritonError.INVALID_ARG
        else:
            # Raised, it would reach whoever asked as a trace with our paths.
            pb_utils.Logger.log_error(f"{self._input} could not be decoded: {errors[0]!r}")
            message, code = f"{self._input}: internal error, see the server's log", pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def decode(file: bytes, frame: Frames, name: str) -> None:
    """Decode one file into `frame` (H, W, 3) RGB; simplejpeg lets go of the interpreter while it works."""
    height, width = frame.shape[:2]
    try:
        found = simplejpeg.decode_jpeg_header(file)
        if found[:2] != (height, width):
            raise BadRequestError(
                f"{name} has {found[1]} x {found[0]} pixels, expected a face crop of {width} x {height}"
            )
        simplejpeg.decode_jpeg(file, colorspace="RGB", buffer=frame)
    except ValueError as error:
        raise BadRequestError(f"{name} ({len(file)} bytes) is not a whole JPEG file: {error}") from error
