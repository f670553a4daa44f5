"""The Aff-Wild2 corpus on disk: which videos there are, their labels, and where each frame's crop lies.

In comes the folder of an Aff-Wild2 release (or of a generated corpus in the same layout), out go annotations and crop
paths. Line k after an annotation's header is crop `<k:05d>.jpg`; the annotation's length is trusted, never the video's.
Folders may lie one level deeper than they should, as archives unpack, under whatever name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.annotations import Annotation, read_annotation
from affserve.train.errors import DataError
from affserve.train.labels import TASKS, Task
from affserve.train.provenance import AFF_WILD2

TRAIN = "Train_Set"
VALIDATION = "Validation_Set"
HOLD_OUTS = ("any", "task")  # whose validation videos a training set leaves out
IMAGE_ROOT_PREFIX = "cropped_aligned"
SERVED_ROOT = "cropped_affserve"  # crops that the client's detector and aligner cut, as a served model sees them
CROP_RECORDS = ".done"  # in it: what was cut of which video, and when its frames are
OFFICIAL, SERVED = "official", "served"
CORPUS_FILE = "corpus.json"  # written by generated and imported corpora; says what they are
PHOTOGRAPHS = "photographs"  # kind of a corpus whose frames do not follow one another

_CROP = re.compile(r"[0-9]{1,9}\.jpg", re.IGNORECASE)
_PART = re.compile(r"(video[0-9]+)_[0-9]+|([0-9]+-[0-9]+-[0-9]+x[0-9]+)-[0-9]+")  # of one recording


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus that has been looked over: folders are known, no image has been read."""

    root: Path
    name: str  # AFF_WILD2, or what corpus.json says
    annotation_files: Mapping[tuple[str, str], Mapping[str, Path]]  # (task key, set) -> video name -> file
    crop_folders: Mapping[str, tuple[Path, ...]]  # video name -> its folders in the image roots
    images: str = OFFICIAL  # which crops these are: official, served, or those of the roots that were named
    kind: str = "recordings"  # or PHOTOGRAPHS
    people: Mapping[str, str] = field(default_factory=dict)  # video name -> who is in it, where corpus.json says so
    weights: Mapping[str, float] = field(default_factory=dict)  # video name -> how often it is drawn, beside the others
    sources: tuple[str, ...] = ()  # of several corpora that were joined: their image_source

    def videos(self, task: Task, part: str) -> list[str]:
        """Return the names of the videos labelled for a task in a set, sorted."""
        return sorted(self.annotation_files.get((task.key, part), {}))

    def annotation(self, task: Task, part: str, video: str) -> Annotation | None:
        """Read the labels of one video; None where the set does not hold it."""
        path = self.annotation_files.get((task.key, part), {}).get(video)
        return read_annotation(path, task) if path else None

    def crops(self, video: str) -> dict[int, Path]:
        """Return the crops of a video by frame number (from 1), in order; gaps are simply absent."""
        found: dict[int, Path] = {}
        for folder in self.crop_folders.get(video, ()):
            for number, name in _crop_files(folder):
                found.setdefault(number, folder / name)
        return dict(sorted(found.items()))

    def crop_numbers(self, video: str) -> NDArray[np.int32]:
        """Return the frame numbers of a video's crops, (M,), ascending; quicker than `crops`."""
        found = [number for folder in self.crop_folders.get(video, ()) for number, _ in _crop_files(folder)]
        return np.unique(np.array(found, dtype=np.int32))

    def image_source(self) -> str:
        """Return what tells the images of this corpus from those of another with the same video names."""
        described = self.root / CORPUS_FILE
        if self.sources:
            return "; ".join(self.sources)
        crops = " served" if self.images == SERVED else ""
        if not described.exists():
            return self.name + crops
        return f"{self.name} {hashlib.sha256(described.read_bytes()).hexdigest()[:16]}{crops}"

    def person(self, video: str) -> str:
        """Return what two videos share when the same person is, or may be, in both."""
        return self.people.get(video) or subject(video)

    def part_videos(self, tasks: Sequence[Task], part: str, hold_out: str = "any") -> list[str]:
        """Return the videos of a set for some tasks together, sorted.

        The official splits differ between tasks, so a training video of one may be a validation video of another. A
        training set leaves out every video that any task validates on: what has been validated has never been seen.
        hold_out "task" leaves out only what the tasks asked for validate on, as the paper does.
        """
        if hold_out not in HOLD_OUTS:
            raise DataError(f"hold_out is {hold_out!r}, expected one of {', '.join(HOLD_OUTS)}")
        chosen = {video for task in tasks for video in self.videos(task, part)}
        if part == TRAIN:
            validated = tasks if hold_out == "task" else TASKS.values()
            chosen -= {video for task in validated for video in self.videos(task, VALIDATION)}
        return sorted(chosen)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any annotation: what a checkpoint says it was trained on."""
        digest = hashlib.sha256()
        for key in sorted(self.annotation_files):
            for video, path in sorted(self.annotation_files[key].items()):
                weight = f"{self.weights[video]:g} " if video in self.weights else ""
                digest.update(f"{key} {video} {weight}".encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def base_name(video: str) -> str:
    """Return the name of the raw video of a crop folder: without a trailing `_left`, `_right` or `_track0`."""
    return re.sub("_(left|right|track[0-9]+)$", "", video)


def subject(video: str) -> str:
    """Return what two videos share when their names tell that the same person may be in both.

    That is the recording: `video10_1_left`, `video10_1` and `video10_2_right` are people and parts of `video10`, and
    `122-60-1920x1080-4` is a part of `122-60-1920x1080`. Names do not tell who sits where in another part, so everybody
    in a recording counts as one. A person in two recordings cannot be told from names.
    """
    base = base_name(video)
    part = _PART.fullmatch(base)
    return part[1] or part[2] if part else base


def open_corpus(
    root: Path, image_roots: Sequence[Path] = (), videos: Collection[str] = (), images: str | None = None
) -> Corpus:
    """Look over a corpus; `image_roots` are searched before the folders `cropped_aligned*` below `root`.

    videos: further ones whose crops are wanted, such as those of a test set. images: official (`cropped_aligned*`),
    served (`cropped_affserve`), or None: served where there are any, then of every video that has official ones.
    DataError when there are no annotations, unless only such videos are wanted, or no crops.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; expected an Aff-Wild2 release or the output of affserve data synth")
    if images not in (None, OFFICIAL, SERVED):
        raise DataError(f"images is {images!r}, expected {OFFICIAL} or {SERVED}")
    annotation_files = {
        (task.key, part): files
        for task in TASKS.values()
        for part in (TRAIN, VALIDATION)
        if (files := _find(root, task, part))
    }
    if not annotation_files and not videos:
        challenges = ", ".join(task.challenge for task in TASKS.values())
        raise DataError(
            f"{root} has no annotation files; expected annotations/<challenge>/{TRAIN}/*.txt for {challenges}"
        )
    wanted = {video for files in annotation_files.values() for video in files} | set(videos)
    chosen, crop_folders = _choose_images(root, image_roots, wanted, images)
    if not crop_folders:
        raise DataError(
            f"{root} has no face crops of its annotated videos; expected {IMAGE_ROOT_PREFIX}/<video>/00001.jpg, or "
            "name an image root, or cut them from the videos: affserve data crop"
        )
    described = _description(root)
    return Corpus(
        root=root,
        name=str(described["corpus"]),
        annotation_files=annotation_files,
        crop_folders=crop_folders,
        images=chosen,
        kind=described.get("kind", "recordings"),
        people=described.get("people", {}),
    )


def _choose_images(
    root: Path, image_roots: Sequence[Path], wanted: set[str], images: str | None
) -> tuple[str, dict[str, tuple[Path, ...]]]:
    """Return which crops are read, and the folders of each video."""
    below = sorted({*root.glob(f"{IMAGE_ROOT_PREFIX}*"), *root.glob(f"*/{IMAGE_ROOT_PREFIX}*")})
    cut = [path for path in (root / SERVED_ROOT,) if path.is_dir()]
    if image_roots or images == OFFICIAL or (not cut and images is None):
        named = ", ".join(map(str, image_roots))
        return named or OFFICIAL, find_crop_folders([*image_roots, *below], wanted)
    served = find_crop_folders(cut, wanted)
    lacking = sorted(set(find_crop_folders(below, wanted)) - set(served)) if images is None else []
    if lacking:
        raise DataError(
            f"{root / SERVED_ROOT} lacks {len(lacking)} of the videos that have official crops, such as {lacking[0]}: "
            f"cut them too (affserve data crop goes on), or choose: --images {OFFICIAL} or --images {SERVED}"
        )
    return SERVED, served


def annotated_videos(root: Path) -> set[str]:
    """Return the names of all videos that a corpus has labels of, whatever crops there are."""
    return {video for task in TASKS.values() for part in (TRAIN, VALIDATION) for video in _find(root, task, part)}


def _find(root: Path, task: Task, part: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    top = root / "annotations"
    nested = sorted(path for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    for challenge in (*task.older_challenges, task.challenge):
        for folder in (*nested, top):
            for path in (folder / challenge / part).glob("*.txt"):
                if not path.name.startswith("."):  # what macOS leaves in archives
                    files[path.stem] = path
    return files


def find_crop_folders(image_roots: Sequence[Path], wanted: set[str]) -> dict[str, tuple[Path, ...]]:
    """Find the folders named for the wanted videos in image roots and in folders one level deeper."""
    folders: dict[str, tuple[Path, ...]] = {}
    for image_root in image_roots:
        if not image_root.is_dir():
            raise DataError(f"image root {image_root} is not a folder; expected one that holds <video>/00001.jpg")
        for folder in _subfolders(image_root):
            # Only a folder that is no annotated video's is looked into, and only until it shows what it holds.
            found = [folder] if folder.name in wanted else _subfolders(folder) if _holds_folders(folder) else []
            for video in found:
                if video.name in wanted and video not in folders.get(video.name, ()):
                    folders[video.name] = (*folders.get(video.name, ()), video)
    return folders


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _holds_folders(folder: Path) -> bool:
    """Say whether a folder holds others rather than images; the first of either decides."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _CROP.fullmatch(entry.name):
                return False
            if entry.is_dir():
                return True
    return False


def crop_numbers(folder: Path) -> list[int]:
    """Return the frame numbers of the crops in a folder, ascending."""
    return sorted(number for number, _ in _crop_files(folder))


def _crop_files(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield frame number and file name of the crops in a folder, in no order; no file is looked at."""
    for name in os.listdir(folder):
        if _CROP.fullmatch(name) and (number := int(name[:-4])) > 0:
            yield number, name


def _description(root: Path) -> dict[str, Any]:
    """Return what corpus.json says; Aff-Wild2 has none."""
    described = root / CORPUS_FILE
    if not described.exists():
        return {"corpus": AFF_WILD2}
    try:
        found: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
        return {**found, "corpus": str(found["corpus"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{described} does not say which corpus it describes: {error}") from error
