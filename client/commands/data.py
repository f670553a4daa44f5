"""`affserve data import` and `affserve data crop`: corpora of what a lab has, with the crops that are served."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affserve.client.commands.options import FaceDetectorOption, FaceModelOption, FaceOptions, spread
from affserve.train.cli import progress_bar
from affserve.train.errors import UsageError

if TYPE_CHECKING:
    from affserve.client.corpora.photographs import PhotographReport
    from affserve.train.errors import DataError
    from affserve.train.importing.class_names import ClassNames
    from affserve.train.importing.photographs import Record
    from affserve.train.importing.presets import Preset
    from affserve.train.importing.recorded import RecordingReport
    from affserve.train.importing.recordings import Reading

MOST_TOLD = 20  # lines about single images

Processes = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that find faces.  [default: one a core]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def import_(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Photographs: a table with a row an image, a folder of a folder per class, or what --preset names. "
            "Recordings: tables and ELAN files, each named as its crop folder.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The corpus: new for photographs; with crops for recordings.")
    ] = None,
    recordings: Annotated[
        bool, typer.Option("--recordings", help="The sources label recordings whose faces affserve data crop has cut.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="As its owners hand it out: rafdb, affectnet, fer2013 or expw.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="The table's names for image, subject, time, frame, expression, ...: image=file,split=set"),
    ] = None,
    tiers: Annotated[
        str | None, typer.Option(help="ELAN's tiers: expression=TIER, or valence=TIER,arousal=TIER.")
    ] = None,
    delay_s: Annotated[float, typer.Option(help="Recordings: so much later than seen do labels come.")] = 0.0,
    between: Annotated[
        str, typer.Option(help="Recordings: valence and arousal between two labels: linear or nearest.")
    ] = "linear",
    images: Annotated[Path | None, typer.Option(help="Folder of the images.  [default: that of the table]")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Lines NAME,EXPRESSION over the table of names; - leaves out.")
    ] = None,
    print_classes: Annotated[bool, typer.Option("--print-classes", help="Print the table of names and end.")] = False,
    subject_pattern: Annotated[
        str | None, typer.Option(help="Expression whose group, in a file's path, is the person: '([^/]+)_[0-9]+'.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of each expression to validate on, split by person.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    name: Annotated[
        str | None, typer.Option(help="What models say they were trained on.  [default: the preset's, or the folder's]")
    ] = None,
    face_detector: FaceDetectorOption = "auto",
    face_model: FaceModelOption = None,
    workers: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Bring labelled photographs or recordings into Aff-Wild2's layout, faces cut as served ones are.

    Sets are split by person, never by image. What cannot be read is told line by line; the exit code is then 1.
    """
    names = _class_names(classes, preset)
    if print_classes:
        typer.echo(names.text(), nl=False)
        return
    if not sources or out is None:
        raise UsageError("data import needs SOURCE... and --out CORPUS")
    given = _pairs("--columns", columns)
    called = name or (preset and _preset(preset).title) or out.name
    if recordings:
        from affserve.train.importing.recorded import import_recordings
        from affserve.train.importing.recordings import Reading

        if between not in ("linear", "nearest"):
            raise UsageError(f"--between is {between!r}, expected linear or nearest")
        reading = Reading(
            names=names, columns=given, tiers=_pairs("--tiers", tiers), delay_s=delay_s, linear=between == "linear"
        )
        done = import_recordings(
            sources, out, reading, name=called, pattern=subject_pattern, validation=validation, seed=seed
        )
        _tell_recordings(done, reading, as_json=as_json)
        _tell_problems(done.problems)
        return
    from affserve.client.corpora.photographs import import_photographs
    from affserve.train.importing.layout import lay_out
    from affserve.train.importing.photographs import collect

    if len(sources) > 1:
        raise UsageError(f"photographs come from one SOURCE, found {len(sources)}; labels of recordings: --recordings")
    found = collect(_records(sources[0], preset, given, images), names, subject_pattern)
    folders = lay_out(found.photographs, validation, seed)
    with progress_bar("finding faces") as progress:
        report = import_photographs(
            folders,
            out,
            called,
            {"classes": names.table, "source": sources[0].name, "validation": validation, "seed": seed},
            detector=face_detector,
            model=face_model,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
        )
    report.problems[:0] = found.problems
    _tell_photographs(report, found.left_out, as_json=as_json)
    _tell_problems(report.problems)


def _tell_photographs(report: PhotographReport, left_out: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**asdict(report), "left_out": dict(left_out)}))
        return
    people = f"{report.people} people" if report.people else "people unknown, the owners' split"
    typer.echo(
        f"{report.out}: {report.found} faces in {report.photographs} photographs "
        f"({report.found / report.photographs:.1%}), {people}; train {report.train}, validation {report.validation}"
    )
    for reason, count in left_out.items():
        typer.echo(f"left out: {count} {reason}", err=True)


def _tell_recordings(report: RecordingReport, reading: Reading, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    frames = ", ".join(f"{key} {count} frames" for key, count in report.labelled.items())
    numbers = "linearly interpolated" if reading.linear else "of the nearest label"
    typer.echo(
        f"{report.out}: {report.recordings} recordings of {report.people} people; {frames}; train {report.train}, "
        f"validation {report.validation}; valence and arousal {numbers}, classes and units of the nearest label, "
        f"{reading.delay_s:g} s later than seen"
    )


@spread
def crop(
    *,
    videos: Annotated[list[Path], typer.Argument(help="Videos, folders of them, or quoted patterns.")],
    out: Annotated[Path, typer.Option("--out", help="The corpus: crops go to cropped_affserve/ in it.")],
    chosen: FaceOptions,
    face_detector: FaceDetectorOption = "auto",
    face_model: FaceModelOption = None,
    workers: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Cut the faces out of raw videos for training, by the detector, tracker and aligner that serve.

    A video whose labels are in the corpus fills the folders that these name, such as those of two people, _left and
    _right; another one a folder with its name. Run again, it goes on where it stopped.
    """
    from affserve.client.corpora.videos import crop_videos, plan_crops
    from affserve.client.faces.detector_file import find_detector
    from affserve.client.faces.settings import FaceSettings
    from affserve.client.video.inputs import spelt_out

    sources, notes = spelt_out(videos)
    kind = find_detector(face_detector, face_model).name  # told once
    jobs = plan_crops(sources, out, FaceSettings(**vars(chosen)), kind, face_model)
    problems = []
    with progress_bar("cutting faces") as progress:
        for report in crop_videos(jobs, out, workers or os.cpu_count() or 1, progress):
            typer.echo(json.dumps(asdict(report)) if as_json else report.line())
            problems += [report.problem] if report.problem else []
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    _tell_problems(problems)


def _class_names(classes: Path | None, preset: str | None) -> ClassNames:
    from affserve.train.importing.class_names import CLASS_NAMES, read_class_names

    return read_class_names(classes, _preset(preset).names if preset else CLASS_NAMES)


def _preset(name: str) -> Preset:
    from affserve.train.importing.presets import PRESETS

    if name not in PRESETS:
        raise UsageError(f"--preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _pairs(option: str, text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    if broken := [name for name, mark, _ in pairs if not mark]:
        raise UsageError(f"{option} has {broken[0]!r}, expected pairs like expression=emotion")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option} names {twice[0]!r} {names.count(twice[0])} times, expected once")
    return {name.strip(): title.strip() for name, _, title in pairs}


def _records(
    source: Path, preset: str | None, columns: dict[str, str], images: Path | None
) -> Iterable[Record | DataError]:
    from affserve.train.errors import DataError
    from affserve.train.importing.photographs import read_class_folders, read_table

    if not source.exists():
        raise DataError(f"{source} does not exist; expected a table of labels or a folder of images")
    if preset:
        return _preset(preset).read(source)
    return read_class_folders(source) if source.is_dir() else read_table(source, images or source.parent, columns)


def _tell_problems(problems: list[str]) -> None:
    """Tell what went wrong on stderr and end with exit code 1, if anything did."""
    for problem in problems[:MOST_TOLD]:
        typer.echo(f"error: {problem}", err=True)
    if len(problems) > MOST_TOLD:
        typer.echo(f"error: and {len(problems) - MOST_TOLD} more; --json names all", err=True)
    if problems:
        raise typer.Exit(1)
