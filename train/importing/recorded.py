"""Recordings whose faces are cut already, and files of their labels: the annotations of a corpus.

In come label files, each called as the crop folder that it is of, out go annotation files, split by person. A file that
cannot be understood is told, and the others go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import CORPUS_FILE, TRAIN, subject
from affserve.train.corpus.annotations import validity, write_annotation
from affserve.train.errors import DataError
from affserve.train.files import staged_folder
from affserve.train.importing.layout import deal_people, label_counts, write_description
from affserve.train.importing.photographs import person_of
from affserve.train.importing.recordings import Reading, described, frame_times, read_recording
from affserve.train.labels import TASKS

RESULT_MARK = ".affect"  # in the names of our own results

Labels = dict[str, NDArray[np.float32]]


@dataclass(kw_only=True)
class RecordingReport:
    """What became of the label files."""

    out: str
    recordings: int = 0
    people: int = 0
    labelled: dict[str, int] = field(default_factory=dict)  # frames by task
    train: int = 0  # recordings
    validation: int = 0
    problems: list[str] = field(default_factory=list)


def import_recordings(
    files: Sequence[Path],
    root: Path,
    reading: Reading,
    *,
    name: str,
    pattern: str | None = None,
    validation: float = 0.2,
    seed: int = 0,
) -> RecordingReport:
    """Write the annotations of a corpus whose crops `affserve data crop` has cut; earlier imported ones are replaced.

    pattern: its first group, found in a file's path, is the person; without it each recording is a person of its own.
    """
    if (root / "annotations").exists() and not (root / CORPUS_FILE).exists():
        raise DataError(f"{root} has annotations that were not imported; import into another folder")
    times = frame_times(root)
    if not times:
        raise DataError(f"{root} has no crops of recordings; cut them first: affserve data crop VIDEO... --out {root}")
    report = RecordingReport(out=str(root))
    labels: dict[str, Labels] = {}
    people: dict[str, str] = {}
    for path in files:
        video = path.stem.removesuffix(RESULT_MARK)
        try:
            if video not in times:
                raise DataError(
                    f"{path} is of {video!r}, and no crops are called so; found {', '.join(sorted(times)[:5])}"
                )
            found, odd = read_recording(path, times[video], reading)
            people[video] = person_of(path, pattern) if pattern else subject(video)
            if both := set(found) & set(labels.get(video, {})):
                raise DataError(f"{path} labels {', '.join(both)} of {video}, and so does another file; give one")
        except DataError as error:
            report.problems.append(str(error))
            continue
        report.problems += [odd] if odd else []
        labels.setdefault(video, {}).update(found)
    report.problems += [problem] if (problem := reading.names.problem()) else []
    if not labels:
        raise DataError("; ".join(report.problems) or "no file of labels was named")
    sizes: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: label_counts({}))
    for video in sorted(labels):
        sizes[people[video]] += label_counts(labels[video])
    dealt = deal_people(sizes, validation, seed)
    parts = {video: dealt[people[video]] for video in labels}
    with staged_folder(root / "annotations") as staging:
        for video, held in labels.items():
            for key, values in held.items():
                write_annotation(staging, TASKS[key], parts[video], video, values)
                report.labelled[key] = report.labelled.get(key, 0) + int(validity(TASKS[key], values).sum())
    write_description(
        root, name, {video: people[video] for video in labels}, {"kind": "recordings", **described(reading)}
    )
    report.recordings, report.people = len(labels), len({people[video] for video in labels})
    report.train = sum(part == TRAIN for part in parts.values())
    report.validation = len(parts) - report.train
    return report
