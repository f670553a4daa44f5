"""Arrays and JPEG files as Triton's inputs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from affserve.export.contract import JPEG, TensorSpec


def raw_tensor(spec: TensorSpec, array: NDArray[Any]) -> triton.InferInput:
    """Return an input that carries an array."""
    tensor = triton.InferInput(spec.name, list(array.shape), spec.datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


def jpeg_tensor(frames: NDArray[np.uint8], quality: int) -> triton.InferInput:
    """Return an input that carries each of the frames (N, 224, 224, 3) RGB as a JPEG file."""
    files = np.array([[encode_jpeg(frame, quality)] for frame in frames], dtype=np.object_)  # (N, 1)
    return raw_tensor(JPEG, files)


def encode_jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    """Return a frame (H, W, 3) RGB as a JPEG file with colour at full resolution."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    _, file = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    return file.tobytes()
