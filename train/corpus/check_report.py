"""The report on a corpus as a person reads it: tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from affserve.train.corpus.affwild2 import TRAIN
from affserve.train.corpus.check import HALF, CorpusReport, SetReport
from affserve.train.labels import TASKS, task_by_key
from affserve.train.provenance import SYNTHETIC
from affserve.train.windows import WINDOW_FRAMES

MOST_NAMED = 8
COLUMNS = ("files", "lines", "labelled", "out of range", "no crop", "late start", "past end")  # of a set
WIDTH = 150  # columns of a table where stdout is no terminal


def print_report(report: CorpusReport) -> None:
    """Print what a look at a corpus told."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    people = f" of {report.people} people" if report.people else ""
    what = "annotated videos" if report.moving else "folders of photographs"
    console.print(f"{report.root}: {report.corpus}, {len(report.videos)} {what}{people}, {report.images} crops")
    console.print(_sets_table(report))
    for key in TASKS:
        if any(one.counts for one in report.sets if one.task == key):
            console.print(_counts_table([one for one in report.sets if one.task == key]))
    for line in _about_videos(report):
        console.print(line, markup=False, soft_wrap=True)
    if report.unlabelled:
        console.print(f"not labelled here: {', '.join(report.unlabelled)}")
    if report.corpus == SYNTHETIC:
        console.print("a generated corpus: there are no published figures to compare with")
    if not report.moving:
        console.print("photographs: affserve train encoder learns from them, a head over time needs recordings")
    for text in report.unreadable:
        console.print(f"cannot be read: {text}", markup=False, soft_wrap=True)


def _sets_table(report: CorpusReport) -> Table:
    table = Table("task", "set", box=None, pad_edge=False)
    for name in (*COLUMNS, f"< {WINDOW_FRAMES}"):
        table.add_column(name, justify="right")
    if report.real:
        table.add_column("against the published")
    for one in report.sets:
        row = [one.files, one.lines, one.labelled, one.strange, one.labelled_without_crop]
        row += [one.late, one.past_end, one.short]
        said = [one.published] if report.real else []
        table.add_row(task_by_key(one.task).title, _part(one), *(f"{number:,}" for number in row), *said)
    return table


def _part(one: SetReport) -> str:
    return "train" if one.part == TRAIN else "validation"


def _counts_table(sets: Sequence[SetReport]) -> Table:
    """Frames by expression, or with each action unit, and their part of the labelled frames."""
    table = Table(task_by_key(sets[0].task).title, box=None, pad_edge=False)
    for one in sets:
        table.add_column(_part(one), justify="right")
        table.add_column("", justify="right")
    for name in task_by_key(sets[0].task).names:
        cells = []
        for one in sets:
            count = one.counts.get(name, 0)
            cells += [f"{count:,}", f"{count / max(one.told[name], 1):.1%}"] if name in one.told else ["–", ""]
        table.add_row(name, *cells)
    return table


def _about_videos(report: CorpusReport) -> list[str]:
    frames, crops = sum(video.frames for video in report.videos), sum(video.crops for video in report.videos)
    lines = [
        f"crops: {crops:,} for {frames:,} annotated frames, {frames - crops:,} missing; "
        f"median coverage of a video {report.coverage_median:.1%}"
    ]
    lists = {
        "without any crop": report.named(lambda video: video.first_crop is None),
        f"covered under {HALF:.0%}": report.named(lambda video: 0 < video.coverage < HALF),
        "with missing crops": report.named(lambda video: 0 < video.crops < video.frames),
        "with crops past the annotation's end": report.named(lambda video: video.past_end > 0),
        "trained on by one task and validated by another": report.crossing,
        "in both sets of one task": report.in_both_sets,
    }
    if report.moving:
        lists["starting late"] = report.named(lambda video: (video.first_crop or 1) > 1)
        lists[f"shorter than {WINDOW_FRAMES} frames"] = report.named(lambda video: video.frames < WINDOW_FRAMES)
    lines += [f"videos {what}: {len(names)}{_some(names)}" for what, names in lists.items()]
    for key, names in report.split_recordings.items():
        title = task_by_key(key).title
        lines.append(f"warning: {title}: people or recordings in both sets: {len(names)} videos{_some(names)}")
    if report.length_differences:
        told = ", ".join(f"{difference:+d} in {count}" for difference, count in report.length_differences.items())
        lines.append(f"annotation lines minus frames of the raw video: {told}")
    return lines


def _some(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:MOST_NAMED])}{', ...' if len(names) > MOST_NAMED else ''})"
