"""The body of `affserve infer`: which server, which files, what is told to whom.

Results and summaries go to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import typer

from affserve.client.client import AffectClient
from affserve.client.connection import Connection, connected
from affserve.client.exchange.exchange import EXCHANGES
from affserve.client.infer.analyze_files import Summary
from affserve.client.infer.crew import TERMINATED, Crew, Task, default_jobs, in_order
from affserve.client.infer.output_paths import (
    STANDARD_OUTPUT,
    OutputPaths,
    OutputWishes,
    make_folders,
    names_a_file,
    plan_outputs,
)
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.summary import Terminal
from affserve.client.infer.work import Analyst, Outcome, WorkSettings
from affserve.client.results.formats import choose_format
from affserve.client.video.inputs import spelt_out
from affserve.client.video.source import FrameSource
from affserve.train.errors import OutputError, VideoError, printable
from affserve.train.provenance import SYNTHETIC
from affserve.train.signals import handled


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """What the command line asks for."""

    sources: tuple[Path, ...]  # paths, folders of videos, quoted globs
    connection: Connection
    out: Path | None = None  # file, folder or "-"
    row_format: str | None = None  # None: by the suffix of `out`
    plot: bool | None = None  # None: where the rows go to a file
    overlay: Path | None = None  # file or folder
    work: WorkSettings = field(default_factory=WorkSettings)
    jobs: int | None = None  # sources at once; None: by the cores and by what computes
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        exchange = self.row_format in EXCHANGES
        if self.to_stdout and (self.plot or self.overlay or self.json or self.work.resume or exchange):
            raise typer.BadParameter(
                "--out - takes rows only: neither --plot, --overlay, --resume, --json nor formats of files"
            )

    @property
    def to_stdout(self) -> bool:
        """Whether the table goes to standard output."""
        return self.out == STANDARD_OUTPUT


def infer_sources(options: InferOptions) -> bool:
    """Analyse all sources; return False when one of them failed, after reporting it."""
    sources, notes = spelt_out(options.sources)
    several = len(sources) > 1 or sources != list(options.sources)
    planned = choose_outputs(options, sources)
    run = _Run(options, Terminal(quiet=options.quiet), several=several)
    run.note(notes)
    opened = {path: source for path, outputs in planned.items() if (source := run.opened(path, outputs)) is not None}
    if opened:
        options.work.prepare_process()
        with ExitStack() as stack:
            # SIGTERM unwinds the stack, so that a local server is stopped and unfinished files are removed.
            stack.enter_context(handled(signal.SIGTERM, by=lambda *_: sys.exit(TERMINATED)))
            for source in opened.values():
                options.work.croppers.cropper(source.already_cropped)  # no detector: told before a server is started
            client = stack.enter_context(connected(options.connection))
            if client.describe().trained_on == SYNTHETIC:
                print("warning: this model was trained on generated faces only: not for people", file=sys.stderr)
            with run.telling_how_to_go_on():
                run.analyse([(source, planned[path]) for path, source in opened.items()], client)
    return run.tell_end(len(planned))


def choose_outputs(options: InferOptions, sources: list[Path]) -> dict[Path, OutputPaths]:
    """Return the outputs of each source; typer.BadParameter where that cannot be, such as two sources with one file."""
    if options.to_stdout and len(sources) > 1:
        raise typer.BadParameter(f"--out - takes one source, and there are {len(sources)}")
    out = options.out
    try:
        wishes = OutputWishes(
            row_format=choose_format(options.row_format, out if out and names_a_file(out) else None, EXCHANGES),
            out=out,
            plot=options.plot if options.plot is not None else not options.to_stdout,
            overlay=options.overlay,
            exchange=EXCHANGES.get(options.row_format or ""),
        )
        planned = plan_outputs(sources, wishes)
    except OutputError as error:
        raise typer.BadParameter(str(error)) from error
    make_folders(planned)
    return planned


class _Run:
    """Goes through the sources: one that fails is told and does not stop the others."""

    def __init__(self, options: InferOptions, terminal: Terminal, *, several: bool) -> None:
        self._options = options
        self._terminal = terminal
        self._several = several
        self._failures: dict[Path | str, str] = {}
        self._skipped = 0

    def note(self, notes: list[str]) -> None:
        """Tell on stderr what a user should know of the sources."""
        for note in notes if not self._options.quiet else ():
            print(f"note: {note}", file=sys.stderr)

    def opened(self, path: Path, outputs: OutputPaths) -> FrameSource | None:
        """Open a source and check what can be checked before a server starts; None where that fails, after telling."""
        try:
            source = self._options.work.open(path)
            outputs.check_writable()
        except (VideoError, OutputError) as error:
            self._fail(path, str(error))
            return None
        return source

    def analyse(self, planned: list[tuple[FrameSource, OutputPaths]], client: AffectClient) -> None:
        """Analyse every source that is not done, several at once where that was asked for or pays."""
        model = ModelRecord.of(client)
        jobs = (
            min(self._options.jobs, len(planned))
            if self._options.jobs
            else default_jobs(client.engine(), [source.frames_hint for source, _ in planned])
        )
        how = self._in_turn(planned, client, model)
        if jobs > 1:
            how = self._side_by_side(jobs, planned, client, model)
        with closing(how) as outcomes:
            for outcome in outcomes:
                self._tell(outcome)

    def _in_turn(
        self, planned: list[tuple[FrameSource, OutputPaths]], client: AffectClient, model: ModelRecord
    ) -> Generator[Outcome, None, None]:
        analyst = Analyst(self._options.work, client, model)
        for source, outputs in planned:
            with self._terminal.progress(source.path.name) as progress:
                outcome = analyst.analyse(source, outputs, progress)
            yield outcome

    def _side_by_side(
        self, jobs: int, planned: list[tuple[FrameSource, OutputPaths]], client: AffectClient, model: ModelRecord
    ) -> Generator[Outcome, None, None]:
        options, work = self._options, self._options.work
        # What this process has found out and told is not found out again.
        kind = work.croppers.detector.name if any(not one.already_cropped for one, _ in planned) else "auto"
        work = replace(work, croppers=replace(work.croppers, face_detector=kind), threads=work.threads or 1)
        tasks = [Task(path=source.path, outputs=outputs) for source, outputs in planned]
        with (
            Crew(jobs, work, replace(options.connection, repository=None, url=client.url), model) as crew,
            self._terminal.several(len(tasks)) as told,
        ):
            yield from in_order(crew.outcomes(tasks, told), [task.path for task in tasks])

    @contextmanager
    def telling_how_to_go_on(self) -> Iterator[None]:
        """Say on stderr what became of a run that is stopped, where some of it may be done."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._several:
                print("note: stopped; what is complete stays, the same command with --resume goes on", file=sys.stderr)
            raise

    def _tell(self, outcome: Outcome) -> None:
        if outcome.summary is not None:
            self._tell_summary(outcome.summary)
        if outcome.error is not None:
            self._fail(outcome.path, outcome.error)
        elif outcome.summary is None:
            self._skipped += 1
            self._terminal.skipped(outcome.path, outcome.outputs.rows, as_json=self._options.json)

    def _tell_summary(self, summary: Summary) -> None:
        if self._options.json:
            self._terminal.json(summary)
        elif not self._options.quiet:
            self._terminal.summary(summary, to_stderr=self._options.to_stdout)

    def _fail(self, source: Path | str, error: str) -> None:
        print(printable(f"error: {error}"), file=sys.stderr)
        self._failures[source] = error

    def tell_end(self, sources: int) -> bool:
        """Tell what failed once more, where there was more than one source; return whether nothing did."""
        if self._several and not self._options.quiet:
            self._terminal.end(sources, self._skipped, self._failures)
        return not self._failures
