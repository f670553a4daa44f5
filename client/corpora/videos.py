"""Raw videos to face crops for training: the people found, followed and cut exactly as `affserve infer` does it.

In come video files, out come folders of numbered crops, `cropped_affserve/<name>/00001.jpg`, in Aff-Wild2's layout. A
video is one unit of work: its folders appear when it is complete, with a record of what was done, and what is recorded
is not done again. A video of an annotated corpus gives the folders that the annotations name, such as `<video>_left`
and `<video>_right`; another one gives its main subject, or with everybody wanted a folder per track.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.corpora.photographs import write_crop
from affserve.client.faces.detector_file import find_detector
from affserve.client.faces.face import FaceDetector
from affserve.client.faces.settings import ALL, LEFT, RIGHT, FaceSettings
from affserve.client.faces.subjects import chooser
from affserve.client.faces.tracks import Tracker
from affserve.client.infer.run_record import source_state
from affserve.client.video.source import open_source
from affserve.train.corpus.affwild2 import (
    CROP_RECORDS,
    IMAGE_ROOT_PREFIX,
    SERVED_ROOT,
    annotated_videos,
    base_name,
    crop_numbers,
    find_crop_folders,
)
from affserve.train.crops import CROP_SIZE_PX, align_face, read_crop
from affserve.train.errors import DataError, VideoError
from affserve.train.files import replace_folder, sole_user, write_file

PARTIAL = ".partial"  # folder of what is being made
COMPARED = 50  # frames of a folder, evenly spread, whose official crop is looked at
SIDES = {"_left": LEFT, "_right": RIGHT}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CropJob:
    """One video and the folders to fill: by name, whose face."""

    video: Path
    folders: Mapping[str, str]  # name -> left, right, largest; or all, then a folder `<name>_track<k>` each
    official: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # official crops of these folders
    settings: FaceSettings = field(default_factory=FaceSettings)
    detector: str = "auto"
    face_model: Path | None = None


@dataclass(kw_only=True)
class CropReport:
    """What became of one video."""

    video: str
    frames: int = 0
    people: int = 0  # tracks
    crops: dict[str, int] = field(default_factory=dict)  # by folder
    official_px: dict[str, float] = field(default_factory=dict)  # median distance of landmarks from the official crops
    problem: str | None = None
    reused: bool = False

    def line(self) -> str:
        """Return the report as a person reads it."""
        told = [f"{name} {count / max(self.frames, 1):.1%}" for name, count in self.crops.items()]
        far = [f"{name} {px:.1f} px from the official crops" for name, px in self.official_px.items()]
        done = " (done before)" if self.reused else ""
        return f"{self.video}: {self.frames} frames, {self.people} people; {', '.join([*told, *far])}{done}"


def plan_crops(
    videos: Sequence[Path], root: Path, settings: FaceSettings, detector: str, model: Path | None
) -> list[CropJob]:
    """Say what is to be cut out of which video for the corpus at `root`; DataError for two videos of one name."""
    twice = [name for name, count in Counter(video.stem for video in videos).items() if count > 1]
    if twice:
        same = ", ".join(str(video) for video in videos if video.stem == twice[0])
        raise DataError(f"{same} have the same name, which is that of their crops; rename one")
    wanted: dict[str, dict[str, str]] = {video.stem: {} for video in videos}
    for name in annotated_videos(root):
        # `x_left` is one of two people of x, unless a video is called so itself.
        base = name if name in wanted else base_name(name)
        if base in wanted:
            wanted[base][name] = SIDES.get(name[len(base) :], settings.faces)
    roots = [*sorted(root.glob(f"{IMAGE_ROOT_PREFIX}*")), *sorted(root.glob(f"*/{IMAGE_ROOT_PREFIX}*"))]
    official = find_crop_folders(roots, {name for names in wanted.values() for name in names})
    return [
        CropJob(
            video=video,
            folders=wanted[video.stem] or {video.stem: settings.faces},
            official={name: official[name] for name in wanted[video.stem] if name in official},
            settings=replace(settings, faces=ALL),
            detector=detector,
            face_model=model,
        )
        for video in videos
    ]


def crop_videos(
    jobs: Sequence[CropJob], root: Path, workers: int, progress: Progress = lambda done, total: None
) -> Iterator[CropReport]:
    """Cut the crops of videos into a corpus, several at a time; yield a report of each as it is done."""
    served = root / SERVED_ROOT
    served.mkdir(parents=True, exist_ok=True)
    with sole_user(served):
        shutil.rmtree(served / PARTIAL, ignore_errors=True)  # of a run that was killed
        for folder in (PARTIAL, CROP_RECORDS):
            (served / folder).mkdir(exist_ok=True)
        done = [report for job in jobs if (report := _done(job, served)) is not None]
        known = {report.video for report in done}
        yield from done
        left = [job for job in jobs if str(job.video) not in known]
        initial = partial(cv2.setNumThreads, 1)
        with ProcessPoolExecutor(min(workers, len(left) or 1), get_context("spawn"), initializer=initial) as pool:
            futures = [pool.submit(crop_video, job, served) for job in left]
            try:
                for count, future in enumerate(as_completed(futures), start=1):
                    progress(len(done) + count, len(jobs))
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()


def _record(job: CropJob, served: Path) -> dict[str, Any] | None:
    """Return what is recorded of a video, if anything that can be read."""
    try:
        record = json.loads((served / CROP_RECORDS / f"{job.video.stem}.json").read_text(encoding="utf-8"))
        return {
            "made_from": record["made_from"],
            "report": {**record["report"], "crops": dict(record["report"]["crops"])},
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _done(job: CropJob, served: Path) -> CropReport | None:
    """Return the report of a video that was cut with the same settings and is still the same."""
    record = _record(job, served)
    if record is None or record["made_from"] != _made_from(job):
        return None
    if not all((served / name).is_dir() for name in record["report"]["crops"]):
        return None
    return CropReport(**{**record["report"], "video": str(job.video), "reused": True})


def _made_from(job: CropJob) -> dict[str, object]:
    return {
        "source": source_state(job.video),
        "folders": dict(job.folders),
        "settings": asdict(job.settings),
        "detector": job.detector,
    }


def crop_video(job: CropJob, served: Path) -> CropReport:
    """Cut the crops of one video, and record it; a video that cannot be read is told in the report and not recorded."""
    report = CropReport(video=str(job.video))
    partial_folder = served / PARTIAL / job.video.stem
    times_s: list[float] = []
    try:
        detector = find_detector(job.detector, job.face_model)
        for timestamp_s in _cut(job, detector, partial_folder, report):
            times_s.append(round(timestamp_s, 6))
    except VideoError as error:
        report.problem = str(error)
        if not report.frames:
            return report
    before = _record(job, served)
    for name in set(before["report"]["crops"]) - set(report.crops) if before else ():  # of other settings
        shutil.rmtree(served / name, ignore_errors=True)
    for name in report.crops:
        replace_folder(partial_folder / name, served / name)
    shutil.rmtree(partial_folder, ignore_errors=True)
    for name, folders in job.official.items():
        if (px := _from_official(served / name, folders, detector)) is not None:
            report.official_px[name] = px
    told = {**asdict(report), "video": job.video.name}
    record = {"made_from": _made_from(job), "report": told, "times_s": times_s}
    write_file(served / CROP_RECORDS / f"{job.video.stem}.json", (json.dumps(record) + "\n").encode())
    return report


def _cut(job: CropJob, detector: FaceDetector, target: Path, report: CropReport) -> Iterator[float]:
    """Cut the crops of one video into a folder and count them; yield the time of each frame, seconds."""
    tracker = Tracker(detector, job.settings)
    choosers = {name: chooser(faces) for name, faces in job.folders.items()}
    everybody = {name for name, faces in job.folders.items() if faces == ALL}
    for name in sorted(set(choosers) - everybody):
        (target / name).mkdir(parents=True)
        report.crops[name] = 0
    seen: set[int] = set()
    for frame in open_source(job.video, threads=1):
        people = tracker.step(frame.image)
        seen |= {person.track_id for person in people}
        report.frames, report.people = report.frames + 1, len(seen)
        for name, one in choosers.items():
            for person in one.choose(people, cut=tracker.cut, width_px=frame.image.shape[1]):
                folder = f"{name}_track{person.track_id}" if name in everybody else name
                (target / folder).mkdir(parents=True, exist_ok=True)
                crop = align_face(frame.image, person.face.landmarks_px)
                write_crop(target / folder / f"{frame.index + 1:05d}.jpg", crop)
                report.crops[folder] = report.crops.get(folder, 0) + 1
        yield frame.timestamp_s


def _from_official(ours: Path, official: Sequence[Path], detector: FaceDetector) -> float | None:
    """Return the median distance, px of 112, of the landmarks in our crops from those in the official ones."""
    theirs = {number: folder for folder in reversed(official) for number in crop_numbers(folder)}
    both = sorted(set(crop_numbers(ours)) & set(theirs))
    chosen = [both[k] for k in np.unique(np.linspace(0, len(both) - 1, COMPARED).astype(int))] if both else []
    distances = []
    for number in chosen:
        name = f"{number:05d}.jpg"
        points = [_landmarks(folder / name, detector) for folder in (ours, theirs[number])]
        if points[0] is not None and points[1] is not None:
            distances.append(float(np.linalg.norm(points[0] - points[1], axis=1).mean()))
    return round(float(np.median(distances)), 2) if distances else None


def _landmarks(path: Path, detector: FaceDetector) -> NDArray[np.float32] | None:
    """Find the landmarks (5, 2) of the face in a crop, px of 112; crops have no room around the face, so add some."""
    try:
        crop = read_crop(path)
    except DataError:
        return None
    crop = np.asarray(cv2.resize(crop, (CROP_SIZE_PX, CROP_SIZE_PX)), np.uint8)
    room = CROP_SIZE_PX // 2
    roomy = cv2.copyMakeBorder(crop, room, room, room, room, cv2.BORDER_CONSTANT)
    faces = detector.detect(np.asarray(roomy, np.uint8))
    return max(faces, key=lambda face: face.area_px).landmarks_px - room if faces else None
