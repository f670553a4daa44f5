"""Photographs to a corpus: the face of each found and cut as `affserve infer` cuts it, labels and sets beside.

In comes what a reader of train/importing collected, out goes a folder in Aff-Wild2's layout that appears when it is
complete. An image that cannot be read or shows no face is a gap in its folder, and a line in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.faces.detector_file import find_detector
from affserve.client.faces.face import Box, Face, FaceDetector, shared_area
from affserve.client.faces.settings import ALL, FaceSettings
from affserve.client.faces.tracks import Tracker
from affserve.client.video.source import read_image
from affserve.train.corpus.affwild2 import PHOTOGRAPHS, SERVED_ROOT, TRAIN
from affserve.train.crops import align_face
from affserve.train.errors import AffserveError, DataError
from affserve.train.files import staged_folder
from affserve.train.importing.layout import LaidOut, write_description, write_labels
from affserve.train.importing.photographs import Photograph

JPEG_QUALITY = 95
SMALL_PX = 128  # shorter side below which a photograph is enlarged for the search: YuNet wants faces of 20 px and more
ENLARGED_PX = 224
ROOM = 0.3  # of an image's sides, added around where no face was found: on a face alone there is nothing around it

Progress = Callable[[int, int], None]


@dataclass(kw_only=True)
class PhotographReport:
    """What became of the photographs."""

    out: str
    photographs: int
    found: int = 0  # faces
    people: int | None = None  # None: nobody knows
    train: int = 0  # photographs
    validation: int = 0
    problems: list[str] = field(default_factory=list)


def import_photographs(
    folders: Sequence[LaidOut],
    out: Path,
    name: str,
    facts: dict[str, Any],
    *,
    detector: str = "auto",
    model: Path | None = None,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> PhotographReport:
    """Write a corpus of photographs to a folder that does not exist yet; see the module."""
    if out.exists():
        raise DataError(f"{out} exists; name a folder that does not, or remove it")
    find = find_detector(detector, model)  # told once, and before any work
    people = {one.video: one.person for one in folders if one.person is not None}
    report = PhotographReport(
        out=str(out), photographs=sum(len(one.photographs) for one in folders), people=len(set(people.values())) or None
    )
    for one in folders:
        side = "train" if one.part == TRAIN else "validation"
        setattr(report, side, getattr(report, side) + len(one.photographs))
    with staged_folder(out) as staging:
        write_labels(staging, folders)
        for problems in _cut_all(folders, staging / SERVED_ROOT, find.name, model, workers):
            report.problems += [problem for problem in problems if problem]
            report.found += problems.count("")
            progress(report.found + len(report.problems), report.photographs)
        if not report.found:
            raise DataError(f"no face was found in {report.photographs} photographs: {report.problems[0]}")
        write_description(staging, name, people, {**facts, "kind": PHOTOGRAPHS, "detector": find.name})
    return report


def _cut_all(
    folders: Sequence[LaidOut], root: Path, detector: str, model: Path | None, workers: int
) -> Iterator[list[str]]:
    """Cut the faces of all folders; yield for each folder a text per photograph, empty where all went well."""
    initial = (detector, model)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=initial) as pool:
        arguments = ([root / one.video for one in folders], [one.photographs for one in folders])
        yield from pool.map(_cut_folder, *arguments, chunksize=max(1, min(16, len(folders) // (4 * workers))))


_detector: FaceDetector  # of a worker process


def _start(kind: str, model: Path | None) -> None:
    global _detector
    cv2.setNumThreads(1)
    _detector = find_detector(kind, model)


def _cut_folder(folder: Path, photographs: Sequence[Photograph]) -> list[str]:
    folder.mkdir(parents=True)
    return [_cut(one, folder / f"{number:05d}.jpg") for number, one in enumerate(photographs, start=1)]


def _cut(one: Photograph, target: Path) -> str:
    """Write the crop of a photograph; return what was wrong with it, or an empty text."""
    try:
        image = read_image(one.image) if isinstance(one.image, Path) else np.stack([one.image] * 3, axis=-1)
    except AffserveError as error:
        return f"{one.where}: {error}"
    found = locate_face(np.asarray(image, np.uint8), _detector, one.box_px)
    if found is None:
        return f"{one.where}: no face was found"
    write_crop(target, align_face(found[0], found[1].landmarks_px))
    return ""


def write_crop(path: Path, crop: NDArray[np.uint8]) -> None:
    """Write a crop (112, 112, 3) as JPEG."""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(crop[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def locate_face(
    image: NDArray[np.uint8], detector: FaceDetector, box_px: Box | None = None
) -> tuple[NDArray[np.uint8], Face] | None:
    """Return the largest face of an RGB image (H, W, 3), or the one that a box means, and the image it was found in.

    That is the image enlarged where it is small, and with room around it where nothing was found without.
    """
    scale = ENLARGED_PX / min(image.shape[:2]) if min(image.shape[:2]) < SMALL_PX else 1.0
    if scale > 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)
    box = None if box_px is None else (box_px[0] * scale, box_px[1] * scale, box_px[2] * scale, box_px[3] * scale)
    if (face := find_face(image, detector, box)) is not None:
        return image, face
    down, along = (round(ROOM * side) for side in image.shape[:2])
    roomy = np.asarray(cv2.copyMakeBorder(image, down, down, along, along, cv2.BORDER_CONSTANT), np.uint8)
    shifted = None if box is None else (box[0] + along, box[1] + down, box[2], box[3])
    face = find_face(roomy, detector, shifted)
    return None if face is None else (roomy, face)


def find_face(image: NDArray[np.uint8], detector: FaceDetector, box_px: Box | None = None) -> Face | None:
    """Return the largest face of an RGB image, or that which shares most with a box; None where there is none."""
    faces = [track.face for track in Tracker(detector, FaceSettings(faces=ALL)).step(image)]
    if box_px is None:
        return max(faces, key=lambda face: face.area_px, default=None)
    meant = max(faces, key=lambda face: shared_area(face.box_px, box_px), default=None)
    return meant if meant is not None and shared_area(meant.box_px, box_px) > 0 else None
