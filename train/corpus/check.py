"""Look a corpus over before days are spent on it: what there is, what is missing, what cannot be read.

In comes an opened corpus, out goes a report. Every annotation file is read and every crop folder listed; crops are
decoded only on request. A file that cannot be read is named and the others are counted all the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import permutations
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import PHOTOGRAPHS, TRAIN, VALIDATION, Corpus, base_name
from affserve.train.corpus.annotations import Annotation, labelled_columns, read_annotation
from affserve.train.crops import read_crop
from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Kind, Task
from affserve.train.provenance import AFF_WILD2
from affserve.train.windows import WINDOW_FRAMES

PARTS = (TRAIN, VALIDATION)
RAW_SUFFIXES = (".mp4", ".avi")
HALF = 0.5  # coverage below which a video is named


# Files and labelled frames of each set of each task, as Aff-Wild2's owners and the challenge papers say.
PUBLISHED = {
    (VALENCE_AROUSAL.key, TRAIN): (356, 1_679_857),
    (VALENCE_AROUSAL.key, VALIDATION): (76, 382_021),
    (EXPRESSION.key, TRAIN): (248, 597_361),
    (EXPRESSION.key, VALIDATION): (70, 284_230),
    (ACTION_UNITS.key, TRAIN): (295, 1_359_523),
    (ACTION_UNITS.key, VALIDATION): (105, 445_845),
}


@dataclass(kw_only=True)
class SetReport:
    """One set of one task; filled file by file."""

    task: str  # key
    part: str  # Train_Set or Validation_Set
    files: int = 0
    lines: int = 0  # annotated frames
    labelled: int = 0  # of them with a label
    strange: int = 0  # without a label, although no number is the invalid code
    labelled_without_crop: int = 0
    late: int = 0  # videos whose first crop is not frame 1
    past_end: int = 0  # videos with crops beyond the last line
    short: int = 0  # videos of fewer frames than a window
    counts: dict[str, int] = field(default_factory=dict)  # labelled frames by expression, or with each action unit
    told: dict[str, int] = field(default_factory=dict)  # of how many: a corpus may label some units only

    @property
    def published(self) -> str:
        """How files and labelled frames compare with what was published."""
        if (said := PUBLISHED.get((self.task, self.part))) is None:
            return "nothing published"
        parts = [
            f"{name} {found - expected:+,} ({found / expected - 1:+.1%})"
            for name, found, expected in (("files", self.files, said[0]), ("labelled", self.labelled, said[1]))
            if found != expected
        ]
        return ", ".join(parts) or "as published"


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """One crop folder against the longest of its annotations."""

    name: str
    frames: int  # lines of the annotation
    crops: int  # of these frames
    first_crop: int | None  # frame number; None: no crops
    past_end: int  # crops beyond the annotation's end
    raw_frames: int | None = None  # what the raw video's container says; None: no raw video

    @property
    def coverage(self) -> float:
        """Part of the frames that have a crop."""
        return self.crops / self.frames if self.frames else 0.0


@dataclass(kw_only=True)
class CorpusReport:
    """Everything that a look at a corpus tells."""

    root: str
    corpus: str
    kind: str  # recordings or photographs
    images: str  # official, served, or the image roots that were named
    people: int  # that corpus.json tells of
    sets: list[SetReport]
    videos: list[VideoReport]
    split_recordings: dict[str, list[str]]  # by task: videos of one recording that are in both of its sets
    crossing: list[str]  # videos that one task trains on and another validates on
    in_both_sets: list[str]  # videos that one task has in both of its sets
    unreadable: list[str]  # file and reason

    @property
    def real(self) -> bool:
        """Whether there are published figures to compare with."""
        return self.corpus == AFF_WILD2

    @property
    def moving(self) -> bool:
        """Whether frames follow one another."""
        return self.kind != PHOTOGRAPHS

    @property
    def unlabelled(self) -> list[str]:
        """Titles of the tasks that nothing is labelled for, and units of the others."""
        labelled = {one.task for one in self.sets}
        counted = {name for one in self.sets for name in one.told}
        units = [n for t in TASKS.values() if t.kind in LABEL_COUNTS and t.key in labelled for n in t.names]
        return [t.title for t in TASKS.values() if t.key not in labelled] + [n for n in units if n not in counted]

    @property
    def coverage_median(self) -> float:
        """Of the videos, the part of frames that have a crop."""
        return float(np.median([video.coverage for video in self.videos])) if self.videos else 0.0

    @property
    def length_differences(self) -> dict[int, int]:
        """How many videos have so many more annotation lines than the raw video has frames."""
        found = Counter(video.frames - video.raw_frames for video in self.videos if video.raw_frames is not None)
        return dict(sorted(found.items()))

    def named(self, chosen: Callable[[VideoReport], bool]) -> list[str]:
        """Return the names of the videos that a rule holds for."""
        return [video.name for video in self.videos if chosen(video)]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        compared = [{**asdict(one), "published": one.published if self.real else None} for one in self.sets]
        return {
            **asdict(self),
            "sets": compared,
            "coverage_median": self.coverage_median,
            "length_differences": {str(key): count for key, count in self.length_differences.items()},
        }


def check_corpus(
    corpus: Corpus, *, decode: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> CorpusReport:
    """Look over a corpus; `decode` crops of each video are decoded. progress: called with files done and to do."""
    unreadable: list[str] = []
    numbers = dict(_list_crops(corpus, unreadable))
    labelled = [key for key in TASKS if any(key == task for task, _ in corpus.annotation_files)]
    sets = {(key, part): SetReport(task=key, part=part) for key in labelled for part in PARTS}
    frames: dict[str, int] = dict.fromkeys(numbers, 0)
    total = sum(len(files) for files in corpus.annotation_files.values())
    annotated = ((task, part, v) for task in TASKS.values() for part in PARTS for v in corpus.videos(task, part))
    for done, (task, part, video) in enumerate(annotated):
        progress(done, total)
        try:
            annotation = read_annotation(corpus.annotation_files[task.key, part][video], task)
        except DataError as error:
            unreadable.append(str(error))
            continue
        frames[video] = max(frames[video], len(annotation.values))
        _count(sets[task.key, part], annotation, numbers[video])
    raw = _raw_frames(corpus, unreadable)
    unreadable += [text for video in numbers for text in _broken_images(corpus, video, decode)]
    return CorpusReport(
        root=str(corpus.root),
        corpus=corpus.name,
        kind=corpus.kind,
        images=corpus.images,
        people=len(set(corpus.people.values())),
        sets=list(sets.values()),
        videos=[_about(video, found, frames[video], raw) for video, found in numbers.items()],
        split_recordings={key: split for key, task in TASKS.items() if (split := _split(corpus, task))},
        crossing=_shared(corpus, permutations(TASKS.values(), 2)),
        in_both_sets=_shared(corpus, ((task, task) for task in TASKS.values())),
        unreadable=unreadable,
    )


def _list_crops(corpus: Corpus, unreadable: list[str]) -> Iterator[tuple[str, NDArray[np.int32]]]:
    for video in sorted({video for files in corpus.annotation_files.values() for video in files}):
        try:
            yield video, corpus.crop_numbers(video)
        except OSError as error:
            unreadable.append(f"{error.filename}: crops cannot be listed: {error.strerror}")
            yield video, np.zeros(0, np.int32)


def _count(report: SetReport, annotation: Annotation, crops: NDArray[np.int32]) -> None:
    task, values, valid = annotation.task, annotation.values, annotation.valid
    report.files += 1
    report.lines += len(values)
    report.labelled += int(valid.sum())
    columns = labelled_columns(task, values)
    report.strange += int((~valid & ~(values[:, columns] == task.invalid).any(axis=1)).sum())
    present = np.zeros(len(values), np.bool_)
    present[crops[crops <= len(values)] - 1] = True
    report.labelled_without_crop += int((valid & ~present).sum())
    report.late += bool(len(crops) and crops[0] > 1)
    report.past_end += bool(len(crops) and crops[-1] > len(values))
    report.short += len(values) < WINDOW_FRAMES
    if task.kind in LABEL_COUNTS:
        counts = LABEL_COUNTS[task.kind](task, values[valid])
        for k in np.flatnonzero(np.broadcast_to(columns, task.outputs)):
            name = task.names[k]
            report.counts[name] = report.counts.get(name, 0) + int(counts[k])
            report.told[name] = report.told.get(name, 0) + int(valid.sum())


# How labels (N, columns) are counted by class or unit; numbers are not counted.
LABEL_COUNTS: dict[Kind, Callable[[Task, NDArray[np.float32]], NDArray[Any]]] = {
    "one_of": lambda task, values: np.bincount(values[:, 0].astype(np.int64), minlength=task.outputs),
    "any_of": lambda task, values: (values > 0).sum(axis=0),
}


def _about(video: str, crops: NDArray[np.int32], frames: int, raw: dict[str, int]) -> VideoReport:
    inside = int((crops <= frames).sum())
    return VideoReport(
        name=video,
        frames=frames,
        crops=inside,
        first_crop=int(crops[0]) if len(crops) else None,
        past_end=len(crops) - inside,
        raw_frames=raw.get(base_name(video)),
    )


def _raw_frames(corpus: Corpus, unreadable: list[str]) -> dict[str, int]:
    """Return what the containers of the raw videos, `batch*/<base>.mp4`, say about their lengths."""
    wanted = {base_name(video) for files in corpus.annotation_files.values() for video in files}
    frames: dict[str, int] = {}
    for path in sorted([*corpus.root.glob("batch*/*"), *corpus.root.glob("*/batch*/*")]):
        if path.stem in wanted and path.suffix.lower() in RAW_SUFFIXES:
            capture = cv2.VideoCapture(str(path))
            if capture.isOpened():
                frames[path.stem] = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            else:
                unreadable.append(f"{path}: cannot be opened as a video")
            capture.release()
    return frames


def _broken_images(corpus: Corpus, video: str, images: int) -> Iterator[str]:
    """Decode some crops of a video, evenly spread, and tell of those that are broken."""
    paths = list(corpus.crops(video).values()) if images else []
    for index in sorted(set(np.linspace(0, len(paths) - 1, images, dtype=np.int64).tolist())) if paths else []:
        try:
            read_crop(paths[index])
        except DataError as error:
            yield str(error)


def _split(corpus: Corpus, task: Task) -> list[str]:
    """Return the videos of a task whose person or recording is in its training and in its validation set."""
    parts: defaultdict[str, set[str]] = defaultdict(set)
    videos = [(part, video) for part in PARTS for video in corpus.videos(task, part)]
    for part, video in videos:
        parts[corpus.person(video)].add(part)
    return sorted({video for _, video in videos if len(parts[corpus.person(video)]) == len(PARTS)})


def _shared(corpus: Corpus, pairs: Iterable[tuple[Task, Task]]) -> list[str]:
    """Return the videos that the first task of a pair trains on and the second validates on."""
    return sorted({v for one, two in pairs for v in {*corpus.videos(one, TRAIN)} & {*corpus.videos(two, VALIDATION)}})
