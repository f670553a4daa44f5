"""What finding and following faces costs per frame, and how far it strays from searching every frame.

In come videos, out come milliseconds per frame by search interval, search width, number of faces and OpenCV threads,
and distances in pixels of the 112x112 crop. Variants of one video are measured in turns, so that a busy machine is busy
for all of them; figures are medians over turns. `cpu_ms` is processor time per frame and hardly minds other load.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.cropper import FaceCropper
from affserve.client.faces.face import Face, FaceDetector
from affserve.client.faces.settings import ALL, FaceSettings
from affserve.client.video.source import open_source
from affserve.train.crops import CROP_SIZE_PX, REFERENCE_LANDMARKS_PX, similarity_to_reference

INTERVALS = (1, 2, 3, 5, 10, 15)  # frames
WIDTHS_PX = (320, 480, 640, 960)
GRIDS = (1, 2, 3)  # copies of the frame across and down
SMOOTHINGS = (0.0, 0.3, 0.5, 0.7)

Image = NDArray[np.uint8]


def measure_faces(
    videos: Sequence[Path], detector: FaceDetector, *, frames: int, turns: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Return the measurements of each video; `frames` of its first ones are used, `turns` times."""
    results: dict[str, Any] = {"detector": detector.name, "opencv_threads": cv2.getNumThreads(), "turns": turns}
    for video in videos:
        tell(video.name)
        images = [frame.image for frame in islice(open_source(video), frames)]
        results[video.name] = _measure(images, detector, turns)
    return results


def _measure(images: list[Image], detector: FaceDetector, turns: int) -> dict[str, Any]:
    height, width = images[0].shape[:2]
    every = {f"detect_every {k}": FaceSettings(faces=ALL, detect_every=k, smoothing=0) for k in INTERVALS}
    wide = {f"width_px {w}": FaceSettings(faces=ALL, width_px=w) for w in WIDTHS_PX}
    runs = _in_turns({**every, **wide}, images, detector, turns)
    reference = runs["detect_every 1"][0]
    return {
        "frames": len(images),
        "size_px": [width, height],
        "by_interval": {name: _told(runs[name]) | _strayed(reference, runs[name][0]) for name in every},
        "by_width": {name: _told(runs[name]) for name in wide},
        "search_alone_ms": _search_ms(images, detector),
        "by_faces": _by_faces(images, detector),
        "by_opencv_threads": _by_threads(images, detector, turns),
        "box_jitter_px": {str(s): _box_jitter_px(images, detector, s) for s in SMOOTHINGS},
    }


class _Run:
    """One pass over the images: what was found in each, what each cost, and how often the frame was searched."""

    def __init__(self, images: Sequence[Image], detector: FaceDetector, settings: FaceSettings) -> None:
        counting = _Counting(detector)
        cropper = FaceCropper(counting, settings)
        self.frame_ms: list[float] = []
        self.faces: list[dict[int, Face]] = []
        cpu_s = time.process_time()
        for image in images:
            start = time.perf_counter()
            found = cropper.crop(image)
            self.frame_ms.append(1e3 * (time.perf_counter() - start))
            self.faces.append({crop.track_id: crop.face for crop in found})
        self.cpu_ms = 1e3 * (time.process_time() - cpu_s) / len(images)
        self.searches = counting.searches


class _Counting:
    def __init__(self, detector: FaceDetector) -> None:
        self.name = detector.name
        self.searches = 0
        self._detector = detector

    def detect(self, image: Image, *, width_px: int = 0, closely: bool = True) -> list[Face]:
        self.searches += 1
        return self._detector.detect(image, width_px=width_px, closely=closely)


def _in_turns(
    variants: dict[str, FaceSettings], images: Sequence[Image], detector: FaceDetector, turns: int
) -> dict[str, list[_Run]]:
    runs: dict[str, list[_Run]] = {name: [] for name in variants}
    for _ in range(turns):
        for name, settings in variants.items():
            runs[name].append(_Run(images, detector, settings))
    return runs


def _told(runs: Sequence[_Run]) -> dict[str, Any]:
    return {
        "mean_ms": round(statistics.median(statistics.fmean(run.frame_ms) for run in runs), 2),
        "cpu_ms": round(statistics.median(run.cpu_ms for run in runs), 2),
        "median_ms": round(statistics.median(statistics.median(run.frame_ms) for run in runs), 2),
        "searches": runs[0].searches,
        "tracks": len({track for faces in runs[0].faces for track in faces}),
        "faces_per_frame": round(statistics.fmean(len(faces) for faces in runs[0].faces), 3),
    }


def _strayed(reference: _Run, run: _Run) -> dict[str, float]:
    """Compare crops with those of the run that searches every frame, and each with its neighbours in time."""
    apart = [
        crop_distance_px(there[track].landmarks_px, here[track].landmarks_px)
        for there, here in zip(reference.faces, run.faces, strict=True)
        for track in there.keys() & here.keys()
    ]
    shake = [
        crop_distance_px(now[track].landmarks_px, (before[track].landmarks_px + after[track].landmarks_px) / 2)
        for before, now, after in zip(run.faces, run.faces[1:], run.faces[2:], strict=False)
        for track in before.keys() & now.keys() & after.keys()
    ]
    if not apart or not shake:
        return {}
    mean, p95, jitter = np.mean(apart), np.percentile(apart, 95), np.mean(shake)
    return {
        "from_every_frame_mean_px": round(float(mean), 2),
        "from_every_frame_p95_px": round(float(p95), 2),
        "jitter_px": round(float(jitter), 2),
    }


def crop_distance_px(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return how far apart two crops with these landmarks (5, 2) lie, on average, in pixels of the crop."""
    linear, shift = np.split(similarity_to_reference(a), [2], axis=1)
    in_image = np.linalg.solve(linear, REFERENCE_LANDMARKS_PX.T - shift)
    linear, shift = np.split(similarity_to_reference(b), [2], axis=1)
    return float(np.linalg.norm((linear @ in_image + shift).T - REFERENCE_LANDMARKS_PX, axis=1).mean())


def _search_ms(images: Sequence[Image], detector: FaceDetector) -> dict[str, float]:
    """Return the median time of one search of the whole frame by width, measured in turns."""
    times: dict[int, list[float]] = {width: [] for width in WIDTHS_PX}
    for image in images[:20]:
        for width in WIDTHS_PX:
            start = time.perf_counter()
            detector.detect(image, width_px=width, closely=False)
            times[width].append(1e3 * (time.perf_counter() - start))
    return {str(width): round(statistics.median(values), 2) for width, values in times.items()}


def _by_faces(images: Sequence[Image], detector: FaceDetector) -> dict[str, Any]:
    """Tile the frame into a grid, at the grid's size: the faces stay as large, and there are more of them."""
    results = {}
    for grid in GRIDS:
        tiled = [np.tile(image, (grid, grid, 1)) for image in images[:40]]
        settings = FaceSettings(faces=ALL, width_px=480 * grid, max_faces=64)
        results[f"{grid}x{grid}"] = _told([_Run(tiled, detector, settings)])
    return results


def _by_threads(images: Sequence[Image], detector: FaceDetector, turns: int) -> dict[str, float]:
    before = cv2.getNumThreads()
    times: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(turns):
            for threads, means in times.items():
                cv2.setNumThreads(threads)
                means.append(statistics.fmean(_Run(images, detector, FaceSettings()).frame_ms))
    finally:
        cv2.setNumThreads(before)
    return {f"{threads}_threads_mean_ms": round(statistics.median(means), 2) for threads, means in times.items()}


def _box_jitter_px(images: Sequence[Image], detector: FaceDetector, smoothing: float) -> float | None:
    """Return how much the reported box of the first person shakes: the mean second difference, in crop pixels."""
    faces = _Run(images, detector, FaceSettings(faces=ALL, smoothing=smoothing)).faces
    boxes = np.array([face[0].box_px for face in faces if 0 in face])
    if len(boxes) < 3:
        return None
    return round(float(np.abs(np.diff(boxes, n=2, axis=0)).mean() * CROP_SIZE_PX / boxes[:, 2].mean()), 3)
