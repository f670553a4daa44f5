"""The body of `affserve annotate`: every video of a corpus that is not done, on this machine or on a cluster.

What failed goes to `failed.csv`, what was done and how fast to `report.json`, both in the folder of the results.
Neither the list of videos nor that of failures is held in memory.
"""

from __future__ import annotations

import csv
import json
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from affserve.client.annotate.annotator import CorpusSettings
from affserve.client.annotate.nodes import Cluster
from affserve.client.annotate.places import is_address, videos
from affserve.client.connection import Connection, connected
from affserve.client.infer.crew import TERMINATED, Crew, Task, default_jobs
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import Outcome
from affserve.client.results.formats import RowFormat
from affserve.client.sequences.kept_features import SUFFIX, is_kept
from affserve.client.video.inputs import RESULT_MARK
from affserve.train.errors import printable
from affserve.train.provenance import SYNTHETIC
from affserve.train.signals import handled

FAILED, REPORT = "failed.csv", "report.json"
REASONS_TOLD = 5
TOLD_CHARACTERS = 120  # of a reason, by which failures are counted


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions:
    """What the command line asks for."""

    corpus: str
    settings: CorpusSettings
    connection: Connection
    row_format: RowFormat
    ray: str | None = None  # address of a cluster, "auto" or "local"; None: this machine, without Ray
    jobs: int | None = None  # videos at once on a machine; None: by its cores
    patience_s: float  # without a new frame
    keep_features: bool = False  # beside the rows
    quiet: bool = False


def annotate_corpus(options: AnnotateOptions) -> bool:
    """Annotate every video of a corpus; return whether none failed, after telling."""
    total = sum(1 for _ in videos(options.corpus))
    results = options.settings.results
    report = Report()
    with tempfile.TemporaryFile("w+", newline="") as failures, ExitStack() as stack:
        failed = csv.writer(failures)
        failed.writerow(("source", "reason"))
        stack.callback(lambda: _keep(options, report, failures))
        stack.enter_context(handled(signal.SIGTERM, by=lambda *_: sys.exit(TERMINATED)))
        done = stack.enter_context(_bar(total, quiet=options.quiet))

        def take(outcome: Outcome) -> None:
            report.add(outcome)
            if outcome.error is not None:
                failed.writerow((outcome.path, printable(outcome.error)))
            done()

        for outcome in _outcomes(options, total, _present(options, take), stack):
            take(outcome)
    if not options.quiet:
        print("\n".join(report.lines(total, results.address)))
    return not report.failed


def _present(options: AnnotateOptions, take: Callable[[Outcome], None]) -> Iterator[Task]:
    """Yield what there is to do; a file that is not there is told at once."""
    for source, name in videos(options.corpus):
        rows = Path(name + RESULT_MARK + options.row_format.suffixes[0])
        features = Path(name + RESULT_MARK + SUFFIX) if options.keep_features and not is_kept(source) else None
        task = Task(path=source, outputs=OutputPaths(rows=rows, row_format=options.row_format, features=features))
        if is_address(source) or Path(source).exists():
            yield task
        else:
            take(Outcome(path=source, outputs=task.outputs, error="does not exist"))


def _outcomes(options: AnnotateOptions, total: int, tasks: Iterator[Task], stack: ExitStack) -> Iterable[Outcome]:
    first = next(tasks, None)
    if first is None:
        return ()
    tasks = _chained(first, tasks)
    settings, connection = options.settings, options.connection
    # One detector for all: a node without its file says so, and does not search with another one.
    kind = settings.croppers.detector.name if not (settings.croppers.crops or is_kept(first.path)) else "auto"
    settings = replace(settings, croppers=replace(settings.croppers, face_detector=kind), threads=settings.threads or 1)
    if options.ray is not None:
        cluster = Cluster(options.ray, settings, connection, options.jobs, options.patience_s)
        return stack.enter_context(cluster).outcomes(tasks)
    client = stack.enter_context(connected(connection))
    if client.describe().trained_on == SYNTHETIC:
        print("warning: this model was trained on generated faces only: not for people", file=sys.stderr)
    jobs = options.jobs or default_jobs(client.engine(), [None] * min(total, 1000))
    shared = replace(connection, repository=None, url=client.url)
    crew = Crew(jobs, settings, shared, ModelRecord.of(client), patience_s=options.patience_s)
    return stack.enter_context(crew).outcomes(tasks)


def _chained(first: Task, tasks: Iterator[Task]) -> Iterator[Task]:
    yield first
    yield from tasks


@contextmanager
def _bar(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show how many videos are done and when all will be; yield what is called for each."""
    console = Console(stderr=True)
    columns = (TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("videos", total=total)
        yield lambda: bar.advance(task)


def _keep(options: AnnotateOptions, report: Report, failures: IO[str]) -> None:
    """Write what failed and the report, also of a run that is stopped."""
    results = options.settings.results
    failures.flush()
    failures.seek(0)
    with tempfile.TemporaryDirectory() as scratch:
        table, told = Path(scratch) / FAILED, Path(scratch) / REPORT
        with table.open("w", newline="") as copy:
            copy.writelines(failures)
        told.write_text(json.dumps(report.facts(), indent=2) + "\n")
        results.put(table, FAILED)
        results.put(told, REPORT)


class Report:
    """What became of the videos, counted."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.done = self.skipped = self.failed = 0
        self._reasons: Counter[str] = Counter()
        self._workers: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])  # videos, their s, s of work

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome.error is not None:
            self.failed += 1
            reason = outcome.error.removeprefix(str(outcome.path)).strip(" :")[:TOLD_CHARACTERS]
            if reason in self._reasons or len(self._reasons) < 1000:
                self._reasons[reason] += 1
        elif outcome.summary is None:
            self.skipped += 1
        else:
            self.done += 1
        if outcome.summary is not None:
            share = self._workers[outcome.worker]
            share[0] += 1
            share[1] += outcome.summary.duration_s
            share[2] += outcome.summary.seconds

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        hours = (time.monotonic() - self._started) / 3600
        video_hours = sum(share[1] for share in self._workers.values()) / 3600
        return {
            "done": self.done,
            "done_before": self.skipped,
            "failed": self.failed,
            "reasons": dict(self._reasons.most_common(REASONS_TOLD)),
            "hours": round(hours, 4),
            "hours_of_video": round(video_hours, 4),
            "hours_of_video_per_hour": round(video_hours / hours, 2),
            "workers": {
                name: {
                    "videos": int(share[0]),
                    "hours_of_video": round(share[1] / 3600, 4),
                    "hours_of_video_per_hour": round(share[1] / share[2], 2) if share[2] else 0.0,
                }
                for name, share in sorted(self._workers.items())
            },
        }

    def lines(self, total: int, place: str) -> list[str]:
        """Tell it to people."""
        facts = self.facts()
        head = f"{total} videos: {self.done} done, {self.skipped} done before, {self.failed} failed"
        told = [f"{head}; {facts['hours_of_video_per_hour']} hours of video an hour"]
        told += [f"  {count} x {reason}" for reason, count in facts["reasons"].items()]
        told += [
            f"  {name}: {one['videos']} videos, {one['hours_of_video_per_hour']} hours of video an hour of work"
            for name, one in facts["workers"].items()
        ]
        return [printable(line) for line in (*told, f"  wrote {place}/{FAILED}, {place}/{REPORT}")]
