"""`affserve data`: make a corpus, and look one over before training on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from affserve.train.synthetic import CorpusSummary, SyntheticConfig

data_app = typer.Typer(help="Make and inspect corpora.", no_args_is_help=True)


@data_app.command()
def synth(
    out: Annotated[
        Path, typer.Argument(help="Folder to make; an existing one is kept if it holds exactly this corpus.")
    ],
    videos: Annotated[int, typer.Option(help="Crop folders of both sets together.")] = 60,
    seed: Annotated[int, typer.Option(help="Another seed gives other people doing other things.")] = 0,
    frames_min: Annotated[int, typer.Option(help="Frames of the shortest ordinary video.")] = 280,
    frames_max: Annotated[int, typer.Option(help="Frames of the longest video.")] = 400,
    whole_frame_videos: Annotated[int, typer.Option(help="Videos (mp4) for trying the client.")] = 6,
    whole_frame_frames: Annotated[int, typer.Option(help="Frames of each of those.")] = 600,
    workers: Annotated[int, typer.Option(help="Processes that draw.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate a corpus of drawn, animated faces in the layout of Aff-Wild2, defects included."""
    from affserve.train.synthetic import SyntheticConfig

    config = SyntheticConfig(
        seed=seed,
        videos=videos,
        frames_min=min(frames_min, frames_max),
        frames_max=frames_max,
        whole_frame_videos=whole_frame_videos,
        whole_frame_frames=whole_frame_frames,
    )
    summary = _write_with_progress(out, config, workers)
    if as_json:
        typer.echo(json.dumps(asdict(summary), default=str))
    else:
        typer.echo(_one_line(summary))


def _write_with_progress(out: Path, config: SyntheticConfig, workers: int) -> CorpusSummary:
    from affserve.train.progress_bar import progress_bar
    from affserve.train.synthetic import write_corpus

    with progress_bar("drawing frames") as progress:
        return write_corpus(out, config, workers, progress)


def _one_line(summary: CorpusSummary) -> str:
    what = f"{summary.videos} videos, {summary.crops} crops, {summary.whole_frame_videos} whole-frame videos"
    if summary.reused:
        return f"{summary.root}: already holds exactly this corpus, reused: {what}"
    speed = f"{summary.seconds:.0f} s, {summary.frames_per_second:.0f} frames/s"
    return f"{summary.root}: {what} in {speed} (synthetic: a test instrument, not people)"


@data_app.command()
def check(
    root: Annotated[Path, typer.Argument(help="An Aff-Wild2 release, or the output of affserve data synth.")],
    image_root: Annotated[
        list[Path] | None, typer.Option(help="Folder of crop folders, besides cropped_aligned*; may be repeated.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Decode so many crops of each video, evenly spread.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count what a corpus holds, name what cannot be read, and compare it with what was published of Aff-Wild2.

    The exit code is 1 when a file cannot be read.
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.corpus_check import check_corpus
    from affserve.train.corpus_tables import print_report
    from affserve.train.progress_bar import progress_bar

    with progress_bar("reading") as progress:
        report = check_corpus(open_corpus(root, image_root or ()), images=images, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report)
    if report.unreadable:
        raise typer.Exit(1)
