"""The Aff-Wild2 corpus on disk: which videos there are, their labels, and where each frame's crop lies.

In comes the folder of an Aff-Wild2 release (or of a generated corpus in the same layout), out go annotations and crop
paths. Line k after an annotation's header is crop `<k:05d>.jpg`; the annotation's length is trusted, never the video's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError
from affserve.train.labels import TASKS, Annotation, Task, read_annotation

TRAIN = "Train_Set"
VALIDATION = "Validation_Set"
IMAGE_ROOT_PREFIX = "cropped_aligned"
CORPUS_FILE = "corpus.json"  # written by generated corpora; says what they are
AFF_WILD2 = "Aff-Wild2"
SYNTHETIC = "synthetic"  # a corpus of generated faces; a model trained on it knows nothing of people


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus that has been looked over: folders are known, no image has been read."""

    root: Path
    name: str  # AFF_WILD2, or what corpus.json says
    annotation_files: Mapping[tuple[str, str], Mapping[str, Path]]  # (task key, set) -> video name -> file
    crop_folders: Mapping[str, tuple[Path, ...]]  # video name -> its folders in the image roots

    def videos(self, task: Task, part: str) -> list[str]:
        """Return the names of the videos labelled for a task in a set, sorted."""
        return sorted(self.annotation_files.get((task.key, part), {}))

    def annotation(self, task: Task, part: str, video: str) -> Annotation:
        """Read the labels of one video."""
        return read_annotation(self.annotation_files[task.key, part][video], task)

    def labels(
        self, task: Task, part: str, video: str, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return labels (N, columns) and validity (N,) of frame numbers (N,), counted from 1.

        Numbers past the annotation's end, and every number of a video the set does not hold, are invalid.
        """
        rows = np.full((len(numbers), task.columns), task.invalid, dtype=np.float32)
        valid = np.zeros(len(numbers), dtype=np.bool_)
        if video in self.annotation_files.get((task.key, part), {}):
            annotation = self.annotation(task, part, video)
            inside = numbers <= len(annotation.values)
            rows[inside] = annotation.values[numbers[inside] - 1]
            valid[inside] = annotation.valid[numbers[inside] - 1]
        return rows, valid

    def crops(self, video: str) -> dict[int, Path]:
        """Return the crops of a video by frame number (from 1), in order; gaps are simply absent."""
        found: dict[int, Path] = {}
        for folder in self.crop_folders.get(video, ()):
            with os.scandir(folder) as entries:
                for entry in entries:
                    number, dot, _ = entry.name.partition(".jpg")
                    if dot and number.isdigit():
                        found.setdefault(int(number), Path(entry.path))
        return dict(sorted(found.items()))

    def part_videos(self, tasks: Sequence[Task], part: str) -> list[str]:
        """Return the videos of a set for some tasks together, sorted.

        The official splits differ between tasks, so a training video of one may be a validation video of another. A
        training set leaves out every video that any task validates on: what has been validated has never been seen.
        """
        chosen = {video for task in tasks for video in self.videos(task, part)}
        if part == TRAIN:
            chosen -= {video for task in TASKS.values() for video in self.videos(task, VALIDATION)}
        return sorted(chosen)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any annotation: what a checkpoint says it was trained on."""
        digest = hashlib.sha256()
        for key in sorted(self.annotation_files):
            for video, path in sorted(self.annotation_files[key].items()):
                digest.update(f"{key} {video} ".encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def open_corpus(root: Path, image_roots: Sequence[Path] = ()) -> Corpus:
    """Look over a corpus; `image_roots` are searched besides the folders `cropped_aligned*` below `root`.

    DataError when there are no annotations or no crops.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected an Aff-Wild2 release or the output of affserve data synth")
    annotation_files = {
        (task.key, part): files
        for task in TASKS.values()
        for part in (TRAIN, VALIDATION)
        if (files := _find(root, task, part))
    }
    if not annotation_files:
        challenges = ", ".join(task.challenge for task in TASKS.values())
        raise DataError(
            f"{root} has no annotation files; expected annotations/<challenge>/{TRAIN}/*.txt for {challenges}"
        )
    crop_folders = _find_crop_folders([*image_roots, *sorted(root.glob(f"{IMAGE_ROOT_PREFIX}*"))])
    if not crop_folders:
        raise DataError(
            f"{root} has no face crops; expected {IMAGE_ROOT_PREFIX}/<video>/00001.jpg, or name an image root"
        )
    return Corpus(root=root, name=_name(root), annotation_files=annotation_files, crop_folders=crop_folders)


def _find(root: Path, task: Task, part: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for challenge in (*task.older_challenges, task.challenge):
        for path in (root / "annotations" / challenge / part).glob("*.txt"):
            files[path.stem] = path
    return files


def _find_crop_folders(image_roots: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    folders: dict[str, tuple[Path, ...]] = {}
    for image_root in image_roots:
        nested = image_root / image_root.name  # archives often unpack into a folder of their own name
        for folder in sorted((nested if nested.is_dir() else image_root).iterdir()):
            if folder.is_dir():
                folders[folder.name] = (*folders.get(folder.name, ()), folder)
    return folders


def _name(root: Path) -> str:
    described = root / CORPUS_FILE
    if not described.exists():
        return AFF_WILD2
    try:
        return str(json.loads(described.read_text())["corpus"])
    except (ValueError, KeyError) as error:
        raise DataError(f"{described} does not say which corpus it describes: {error}") from error
