"""Where a face sits in a crop: the one convention that generated crops, training and the client share.

A crop is 112x112 px with the five landmarks (right eye, left eye, nose tip, right and left mouth corner; "right" is the
person's, so it lies on the left of the image) brought as near as a similarity transform can to fixed points. These are
the reference points of ArcFace, used by the aligners behind Aff-Wild2's `cropped_aligned` images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError

CROP_SIZE_PX = 112
ENCODER_SIZE_PX = 224
REFERENCE_LANDMARKS_PX: NDArray[np.float32] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)
"""(5, 2) x, y in a 112x112 crop."""


def similarity_to_reference(landmarks_px: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the (2, 3) least-squares similarity transform from image to crop for landmarks (5, 2); Umeyama 1991.

    Points that do not span a plane (all equal) give a pure translation rather than a failure.
    """
    source = np.asarray(landmarks_px, dtype=np.float64)
    target = REFERENCE_LANDMARKS_PX.astype(np.float64)
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    s, t = source - source_mean, target - target_mean
    variance = float((s**2).sum())
    # In two dimensions the optimal rotation and scale are one complex number: sum(conj(s) t) / sum(|s|^2).
    real = float((s * t).sum()) / variance if variance > 0 else 1.0
    imaginary = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / variance if variance > 0 else 0.0
    linear = np.array([[real, -imaginary], [imaginary, real]])
    return np.hstack([linear, (target_mean - linear @ source_mean)[:, None]])


def align_face(image: NDArray[np.uint8], landmarks_px: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Cut the (112, 112, 3) crop with the given landmarks (5, 2) out of an image (H, W, 3), black beyond its border."""
    transform = similarity_to_reference(landmarks_px)
    size = (CROP_SIZE_PX, CROP_SIZE_PX)
    return np.asarray(cv2.warpAffine(image, transform, size, flags=cv2.INTER_LINEAR), dtype=np.uint8)


def to_encoder_input(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize a crop (H, W, 3) to the (224, 224, 3) that the encoder takes, the same way in training and serving."""
    size = (ENCODER_SIZE_PX, ENCODER_SIZE_PX)
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def to_crop_size(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) that is a crop to (112, 112, 3); one of that size is returned as it is."""
    if image.shape[:2] == (CROP_SIZE_PX, CROP_SIZE_PX):
        return image
    size = (CROP_SIZE_PX, CROP_SIZE_PX)
    how = cv2.INTER_AREA if min(image.shape[:2]) > CROP_SIZE_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def read_crop(path: Path) -> NDArray[np.uint8]:
    """Read a crop as (H, W, 3) RGB; DataError names a file that cannot be read."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    # Of a truncated JPEG cv2.imread paints the rest grey and says nothing; imdecode refuses it.
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise DataError(f"{path} cannot be decoded as an image ({content.size} bytes); delete or replace it")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
