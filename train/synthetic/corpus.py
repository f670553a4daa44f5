"""A generated corpus in the layout of Aff-Wild2: a test instrument that needs no licence and shows no person.

In comes a `SyntheticConfig`, out comes a folder with annotations, 112x112 crops and whole-frame videos that has the
defects of the real corpus (gaps, late first crops, invalid codes, annotation files of another length than the video).
`corpus.json` at its root tells what was made and where each defect is. The same config gives the same crops and
annotations, byte for byte, however many processes draw them; a target that exists is never changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import CORPUS_FILE, VALIDATION
from affserve.train.corpus.annotations import validity, write_annotation
from affserve.train.crops import CROP_SIZE_PX, REFERENCE_LANDMARKS_PX, align_face
from affserve.train.errors import DataError, OutputError
from affserve.train.files import staged_folder
from affserve.train.labels import Task, task_by_key
from affserve.train.provenance import SYNTHETIC
from affserve.train.synthetic.anatomy import Placement
from affserve.train.synthetic.plan import DRAWN_TASKS, SyntheticConfig, VideoPlan, plan_videos
from affserve.train.synthetic.scene import Performance, draw_performance, draw_person
from affserve.train.synthetic.video import (
    HEIGHT_PX,
    WIDTH_PX,
    WholeFramePlan,
    plan_whole_frames,
    write_film,
    write_whole_frames,
)

SCHEMA_VERSION = 1
GENERATOR_VERSION = 3  # rises whenever the same config would give other bytes

Progress = Callable[[int, int], None]  # frames drawn, frames in all

TEMPLATES = "templates"  # folder of the challenge's files to be filled
LOCATION_COLUMN = "image_location"  # their first
FILMS = "batch1"  # what Aff-Wild2 calls a folder of the videos that its crops were cut from

_CANVAS_UNITS = 4.4  # face units that an image must be wide for a crop to stay inside it
_EYE_DISTANCE_PX = float(REFERENCE_LANDMARKS_PX[1, 0] - REFERENCE_LANDMARKS_PX[0, 0])


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What `write_corpus` made or found."""

    root: Path
    videos: int
    crops: int
    labelled_frames: dict[str, int]  # by task key: rows with a label, crop or not
    whole_frame_videos: int
    reused: bool  # the target already held exactly this corpus
    seconds: float  # wall-clock
    frames_per_second: float  # drawn and written, all processes together; 0 when reused


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What one worker reports about one video."""

    frames: int
    crops: int = 0
    labelled_frames: dict[str, int] = field(default_factory=dict)


def write_corpus(
    root: Path, config: SyntheticConfig, workers: int = 2, progress: Progress | None = None
) -> CorpusSummary:
    """Write the corpus of `config` to `root`, drawn by `workers` processes.

    It is written beside its target and renamed, so `root` is complete or absent. A target that already holds exactly
    this corpus is kept and reported as reused; any other non-empty target is a DataError. With more than one worker the
    calling script needs the usual `if __name__ == "__main__"` guard: processes are spawned.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}, expected at least 1")
    started = time.perf_counter()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return _reuse(root, config)
    videos, whole = plan_videos(config), plan_whole_frames(config)
    try:
        with staged_folder(root) as staging:
            written = _write_all(staging, config, videos, whole, workers, progress)
            _write_templates(staging, videos)
            _write_description(staging, config, videos, whole, written)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error}") from error
    seconds = time.perf_counter() - started
    frames = sum(part.frames for part in written)
    return _summary(root, reused=False, seconds=seconds, frames_per_second=frames / seconds)


def write_films(root: Path, config: SyntheticConfig, workers: int = 2, progress: Progress | None = None) -> int:
    """Draw the whole-frame video of each crop folder of a corpus into `batch1/`, beside its truth; return how many.

    Person, motion, labels and what spoils frames are those of the crops, which another aligner cut; wall, sensor noise,
    and where the face is are not. People of one video have a film each. What is there is kept.
    """
    videos = plan_videos(config)
    if not (root / FILMS).exists():
        with staged_folder(root / FILMS) as staging:
            total = sum(plan.frames for plan in videos)
            _all_done(_run(partial(_write_film, staging, config), videos, workers), total, progress)
    return len(videos)


def read_description(root: Path) -> dict[str, Any]:
    """Return what `corpus.json` in `root` says; DataError where there is none or it cannot be understood."""
    path = root / CORPUS_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as the description of a generated corpus: {error}") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version is {version}, expected {SCHEMA_VERSION}; generate the corpus again")
    return dict(description)


def _reuse(root: Path, config: SyntheticConfig) -> CorpusSummary:
    advice = "choose another target or remove it"
    if not (root / CORPUS_FILE).is_file():
        raise DataError(f"{root} exists and is not a generated corpus (no {CORPUS_FILE} in it); {advice}")
    found = read_description(root)
    if found.get("generator_version") != GENERATOR_VERSION:
        version = found.get("generator_version")
        raise DataError(f"{root} is of generator version {version}, this is version {GENERATOR_VERSION}; {advice}")
    wanted = json.loads(json.dumps(asdict(config)))  # as it comes back from a file
    different = [name for name in wanted if found.get("config", {}).get(name) != wanted[name]]
    if different:
        raise DataError(f"{root} holds a generated corpus of another config ({', '.join(different)} differ); {advice}")
    return _summary(root, reused=True, seconds=0.0, frames_per_second=0.0)


def _summary(root: Path, *, reused: bool, seconds: float, frames_per_second: float) -> CorpusSummary:
    counts = read_description(root)["counts"]
    return CorpusSummary(root=root, reused=reused, seconds=seconds, frames_per_second=frames_per_second, **counts)


def _write_all(
    root: Path,
    config: SyntheticConfig,
    videos: list[VideoPlan],
    whole: list[WholeFramePlan],
    workers: int,
    progress: Progress | None,
) -> list[_Written]:
    (root / "videos").mkdir()
    # The longest first, so that no worker is left alone with one at the end.
    jobs: list[WholeFramePlan | VideoPlan] = [*whole, *videos]
    total = sum(len(plan.ticks) for plan in whole) + sum(len(plan.crops()) for plan in videos)
    return _all_done(_run(partial(_write_job, root, config), jobs, workers), total, progress)


def _all_done(results: Iterator[_Written], total: int, progress: Progress | None) -> list[_Written]:
    written: list[_Written] = []
    for result in results:
        written.append(result)
        if progress:
            progress(sum(part.frames for part in written), total)
    return written


def _run(write: Callable[[Any], _Written], jobs: Sequence[Any], workers: int) -> Iterator[_Written]:
    if workers == 1:
        yield from map(write, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        futures = [pool.submit(write, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _write_job(root: Path, config: SyntheticConfig, plan: WholeFramePlan | VideoPlan) -> _Written:
    if isinstance(plan, WholeFramePlan):
        return _Written(frames=write_whole_frames(root / "videos", plan, config))
    performance, rng, scale_px = _perform(plan, config)
    _write_crops(root / plan.root / plan.name, plan, performance, rng, config.difficulty.landmark_jitter, scale_px)
    labelled = {key: _write_annotation(root, plan, performance, task_by_key(key)) for key in plan.tasks}
    crops = len(plan.crops())
    return _Written(frames=crops, crops=crops, labelled_frames=labelled)


def _write_film(folder: Path, config: SyntheticConfig, plan: VideoPlan) -> _Written:
    film = WholeFramePlan(
        number=plan.number,
        name=plan.name,
        identity=plan.identity,
        ticks_per_second=plan.fps,
        ticks=tuple(range(plan.frames)),
        variable_frame_rate=False,
    )
    performance, rng, _ = _perform(plan, config, (HEIGHT_PX, WIDTH_PX))
    return _Written(frames=write_film(folder, film, performance, rng))


def _perform(
    plan: VideoPlan, config: SyntheticConfig, size: tuple[int, int] | None = None
) -> tuple[Performance, np.random.Generator, float]:
    """Return what a crop folder shows, in images of `size` or a little larger than a crop, and px a face unit there."""
    rng = np.random.default_rng([config.seed, 2, plan.number])
    scale_px = _EYE_DISTANCE_PX * float(rng.uniform(0.98, 1.12))
    side = round(_CANVAS_UNITS * scale_px)
    performance = draw_performance(
        rng,
        draw_person(config.seed, plan.identity, config.difficulty.identity_spread),
        frames=plan.frames,
        fps=plan.fps,
        difficulty=config.difficulty,
        size=size or (side, side),
        lead=plan.lead,
    )
    return performance, rng, scale_px


def _write_crops(
    folder: Path, plan: VideoPlan, performance: Performance, rng: np.random.Generator, jitter: float, scale_px: float
) -> None:
    """Draw each frame a little larger than a crop and cut the crop as the client will, with an aligner's errors."""
    folder.mkdir(parents=True)
    # An aligner errs in its own way on every face, and a little otherwise on every frame.
    errors = rng.normal(0, 1.5 * jitter * scale_px, (5, 2)) + rng.normal(0, jitter * scale_px, (plan.frames, 5, 2))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(72, 96))]
    middle = _CANVAS_UNITS * scale_px / 2
    # A crop's middle lies below the eyes by this much.
    below = (CROP_SIZE_PX / 2 - float(REFERENCE_LANDMARKS_PX[0, 1])) / _EYE_DISTANCE_PX * scale_px
    placement = Placement(centre_px=(middle, middle - below), scale_px=scale_px)
    for number in plan.crops():
        image, landmarks = performance.draw(number - 1, placement)
        crop = align_face(image, landmarks + errors[number - 1])
        _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(crop[..., ::-1]), quality)
        (folder / f"{number:05d}.jpg").write_bytes(encoded.tobytes())


def _write_annotation(root: Path, plan: VideoPlan, performance: Performance, task: Task) -> int:
    """Write one annotation file and return how many of its rows carry a label."""
    values = performance.motion.labels(task)
    rows = np.minimum(np.arange(plan.lines), plan.frames - 1)
    values = _spoil(values[rows].copy(), plan, task)
    write_annotation(root / "annotations", task, plan.subset, plan.name, values)
    return int(validity(task, values).sum())


def _spoil(values: NDArray[np.float32], plan: VideoPlan, task: Task) -> NDArray[np.float32]:
    """Put the invalid codes of the plan into values (rows, task.columns)."""
    for first, last in plan.invalid:
        values[first - 1 : last] = task.invalid
    for first, last in plan.partly_invalid:
        # Of valence and arousal one is missing, of twelve action units every third.
        values[first - 1 : last, :: 3 if task.columns > 2 else 2] = task.invalid
    return values


def _write_templates(root: Path, videos: list[VideoPlan]) -> None:
    """Write the file of each task that the challenge hands out to be filled: a row a frame of the validation videos."""
    (root / TEMPLATES).mkdir()
    for task in map(task_by_key, DRAWN_TASKS):
        asked = (plan for plan in videos if plan.subset == VALIDATION and task.key in plan.tasks)
        rows = [f"{plan.name}/{number:05d}.jpg\n" for plan in asked for number in range(1, plan.lines + 1)]
        text = f"{LOCATION_COLUMN},{task.header}\n" + "".join(rows)
        (root / TEMPLATES / f"{task.key}.txt").write_text(text, encoding="utf-8", newline="\n")


def _write_description(
    root: Path, config: SyntheticConfig, videos: list[VideoPlan], whole: list[WholeFramePlan], written: list[_Written]
) -> None:
    description = {
        "schema_version": SCHEMA_VERSION,
        "corpus": SYNTHETIC,
        "generator_version": GENERATOR_VERSION,
        "seed": config.seed,
        "config": asdict(config),
        "counts": {
            "videos": len(videos),
            "crops": sum(part.crops for part in written),
            "labelled_frames": {key: sum(part.labelled_frames.get(key, 0) for part in written) for key in DRAWN_TASKS},
            "whole_frame_videos": len(whole),
        },
        "videos": [_describe(plan) for plan in videos],
        "whole_frame_videos": [_describe_whole(plan) for plan in whole],
    }
    (root / CORPUS_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _describe(plan: VideoPlan) -> dict[str, Any]:
    defects = ("extra_lines", "first_crop", "missing", "invalid", "partly_invalid")
    same = {name: getattr(plan, name) for name in ("root", "tasks", "fps", "frames", "identity")}
    return {"name": plan.name, "set": plan.subset, **same, "defects": {name: getattr(plan, name) for name in defects}}


def _describe_whole(plan: WholeFramePlan) -> dict[str, Any]:
    same = {name: getattr(plan, name) for name in ("identity", "ticks_per_second", "variable_frame_rate")}
    return {"name": plan.name, "frames": len(plan.ticks), **same}
