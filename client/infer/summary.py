"""What a person at a terminal sees of an analysis: a progress bar on stderr, a summary on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from affserve.client.infer.analyze_files import Summary
from affserve.client.video.source import Progress
from affserve.train.errors import printable

JSON_DIGITS = 4


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
        self._quiet = quiet
        self._silent = quiet or not self._console.is_terminal

    def _bar(self, told: ProgressColumn) -> Bar:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), told)
        return Bar(*columns, TimeRemainingColumn(), console=self._console, transient=True, disable=self._silent)

    @contextmanager
    def progress(self, name: str) -> Iterator[Progress]:
        """Show a bar for one source; yield what `analyze_to_files` reports to."""
        with self._bar(FramesPerSecond()) as bar:
            task = bar.add_task(printable(name), total=None)
            # The announced number of frames is a guess; a bar that is over-full looks like an error.
            yield lambda done, hint: bar.update(task, completed=done, total=max(done, hint) if hint else None)

    @contextmanager
    def several(self, total: int) -> Iterator[Callable[[Path | str, int, int | None], None]]:
        """Show a bar for many sources of which some are under way; yield what their workers report to."""
        shares: dict[Path | str, float] = {}  # of the frames of a source that are done
        with self._bar(TextColumn("{task.fields[now]}")) as bar:
            task = bar.add_task("sources", total=total, now="")

            def told(path: Path | str, done: int, hint: int | None) -> None:
                shares[path] = min(done / hint, 1.0) if hint else 1.0
                bar.update(task, completed=sum(shares.values()), now=printable(f"{Path(path).name}: frame {done}"))

            yield told

    def json(self, summary: Summary) -> None:
        """Print a summary as one line of JSON on stdout."""
        print(json.dumps(_rounded(asdict(summary))), flush=True)

    def skipped(self, source: Path | str, rows: Path, *, as_json: bool) -> None:
        """Tell that a source is done already."""
        if as_json:
            print(json.dumps({"file": str(source), "skipped": True, "out": str(rows)}), flush=True)
        elif not self._quiet:
            print(printable(f"{source}: done already, see {rows}"), flush=True)

    def end(self, sources: int, skipped: int, failures: Mapping[Path | str, str]) -> None:
        """Tell on stderr what became of many sources: on a long run, the errors have scrolled away."""
        done = sources - skipped - len(failures)
        counts = [f"{done} done", *([f"{skipped} done before"] if skipped else [])]
        if failures:
            counts.append(f"{len(failures)} failed:")
        print(f"{_count(sources, 'source')}: {', '.join(counts)}", file=sys.stderr)
        for source, error in failures.items():
            name = printable(str(source))
            print(f"  {name}: {printable(error).removeprefix(name).strip()}", file=sys.stderr)

    def summary(self, summary: Summary, *, to_stderr: bool) -> None:
        """Print a summary for people; on stderr when stdout carries the table."""
        print(printable(summary_text(summary)), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def summary_text(summary: Summary) -> str:
    """Render a summary in a few lines."""
    stages = summary.stages
    files = (summary.out, summary.metadata, summary.plot, summary.exchange, summary.overlay)
    seen = f"faces ({summary.people} people)" if summary.people > 1 else "a face"
    lines = [
        f"{summary.file}: {_count(summary.frames, 'frame')}, {summary.frames_with_face} with {seen}, "
        f"in {summary.seconds:.1f} s ({summary.frames_per_s:.1f} frames/s)",
        f"  faces: {summary.detector}; model: trained on {summary.trained_on}, {summary.engine}",
        f"  reading ahead: decode {stages.decode_s:.2f} s, faces {stages.detect_s:.2f} s, crops {stages.crop_s:.2f} s; "
        f"waiting: for frames {stages.frames_wait_s:.2f} s, encoder {stages.encode_wait_s:.2f} s, "
        f"head {stages.head_s:.2f} s",
        *([f"  overlay drawn in {summary.overlay_s:.1f} s"] if summary.overlay else []),
        *(f"  wrote {file}" for file in files if file is not None),
        *(f"  note: {notice}" for notice in summary.notices),
    ]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, JSON_DIGITS) if isinstance(value, float) else value
