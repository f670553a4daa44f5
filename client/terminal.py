"""What a person at a terminal sees of an analysis: a progress bar on stderr, a summary on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from affserve.client.analyze import Progress
from affserve.client.analyze_files import Summary
from affserve.train.errors import AffserveError

JSON_DIGITS = 4


def report(error: AffserveError) -> None:
    """Tell of one source that failed while others go on."""
    print(f"error: {error}", file=sys.stderr)


class FramesPerSecond(ProgressColumn):
    """The speed, averaged over the last seconds."""

    def render(self, task: Task) -> Text:
        """Render one cell."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} frames/s" if speed else "")


class Terminal:
    """Where progress and summaries go; nothing moves when stderr is not a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True)
        self._silent = quiet or not self._console.is_terminal

    def status(self, text: str) -> AbstractContextManager[Bar]:
        """Show that something takes a moment."""
        return self._bar(SpinnerColumn(), TextColumn(text), start=text)

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        """Show a bar for one source; yield what `analyze_to_files` reports to."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            FramesPerSecond(),
            TimeRemainingColumn(),
        )
        with self._bar(*columns) as bar:
            task = bar.add_task(name, total=None)
            # The announced number of frames is a guess; a bar that is over-full looks like an error.
            yield lambda done, hint: bar.update(task, completed=done, total=max(done, hint) if hint else None)

    def _bar(self, *columns: ProgressColumn, start: str | None = None) -> Bar:
        bar = Bar(*columns, console=self._console, transient=True, disable=self._silent)
        if start is not None:
            bar.add_task(start, total=None)
        return bar

    def json(self, summary: Summary) -> None:
        """Print a summary as one line of JSON on stdout."""
        print(json.dumps(_rounded(asdict(summary))), flush=True)

    def summary(self, summary: Summary, *, to_stderr: bool) -> None:
        """Print a summary for people; on stderr when stdout carries the table."""
        print(summary_text(summary), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def summary_text(summary: Summary) -> str:
    """Render a summary in a few lines."""
    stages = summary.stages
    places = [place for place in (summary.csv, summary.metadata, summary.plot) if place is not None]
    lines = [
        f"{summary.file}: {_count(summary.frames, 'frame')}, {summary.frames_with_face} with a face, "
        f"in {summary.seconds:.1f} s ({summary.frames_per_s:.1f} frames/s)",
        f"  faces: {summary.detector}; model: trained on {summary.trained_on}, {summary.engine}",
        f"  reading ahead: decode {stages.decode_s:.2f} s, faces {stages.detect_s:.2f} s; waiting: for frames "
        f"{stages.frames_wait_s:.2f} s, encoder {stages.encode_wait_s:.2f} s, head {stages.head_s:.2f} s",
        *(f"  wrote {place}" for place in places),
    ]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, JSON_DIGITS) if isinstance(value, float) else value
