"""The labelled videos of a corpus with their features, each on its annotation's timeline.

In come a corpus and the folder of its features, out go labels and masks per frame, held in memory (15 numbers a frame
at most); features stay on disk until somebody asks for their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import Corpus
from affserve.train.corpus.annotations import aligned
from affserve.train.errors import DataError
from affserve.train.features.gaps import HOLD, CropFeatures, check_policy, fill_gaps, have_crop
from affserve.train.features.store import FeatureStore
from affserve.train.labels import Task


@dataclass(frozen=True, kw_only=True)
class LabelledVideo:
    """One video on its annotation's timeline, frames 1..N."""

    name: str
    frames: int  # N, the annotation's length
    truth: dict[str, NDArray[np.float32]]  # (N, columns) by task
    valid: dict[str, NDArray[np.bool_]]  # (N,) by task: labelled, and the frame has a crop
    crops: CropFeatures  # on disk
    gaps: str = HOLD  # what frames without a crop look like
    person: str = ""  # who is in it

    def features(self, span: slice = slice(None)) -> NDArray[np.float32]:
        """Return the features (T, D) of some frames, counted from 0; only their rows are read."""
        return fill_gaps(self.crops, np.arange(*span.indices(self.frames)) + 1, self.gaps)


def load_videos(
    corpus: Corpus, features: Path, tasks: Sequence[Task], part: str, *, gaps: str = HOLD, hold_out: str = "any"
) -> list[LabelledVideo]:
    """Lay out the videos of a set that are labelled for at least one of the tasks.

    features: the folder of an extraction. hold_out: as in Corpus.part_videos. DataError when there are
    no such videos, or when the features are another corpus's or not all there.
    """
    check_policy(gaps)
    names = corpus.part_videos(tasks, part, hold_out)
    store = FeatureStore(features)
    store.check_complete(names)
    if store.description.corpus != (source := corpus.image_source()):
        raise DataError(f"{features} holds features of {store.description.corpus}, not of {source}: {corpus.root}")
    videos = [_lay_out(corpus, tasks, part, name, store.crops(name), gaps) for name in names]
    if not videos:
        raise DataError(f"{corpus.root}: no videos in {part} for {', '.join(task.key for task in tasks)}")
    return videos


def _lay_out(
    corpus: Corpus, tasks: Sequence[Task], part: str, name: str, crops: CropFeatures, gaps: str
) -> LabelledVideo:
    """Bring the annotations of a video to the length of the longest; what is missing is not valid."""
    held = {task: corpus.annotation(task, part, name) for task in tasks}
    frames = max(len(one.values) for one in held.values() if one)
    numbers = np.arange(1, frames + 1)
    labels = {task.key: aligned(one, task, numbers) for task, one in held.items()}
    present = have_crop(crops, numbers)
    return LabelledVideo(
        name=name,
        frames=frames,
        truth={key: rows for key, (rows, _) in labels.items()},
        valid={key: valid & present for key, (_, valid) in labels.items()},
        crops=crops,
        gaps=gaps,
        person=corpus.person(name),
    )


Arrays = dict[str, NDArray[Any]]


def labels_of(videos: Sequence[LabelledVideo], keys: Sequence[str]) -> tuple[Arrays, Arrays]:
    """Return the labels (N, columns) of all frames of some videos and their validity (N,), by task."""
    return (
        {key: np.concatenate([video.truth[key] for video in videos]) for key in keys},
        {key: np.concatenate([video.valid[key] for video in videos]) for key in keys},
    )
