"""The body of `affserve infer`: which server, which files, what is told to whom.

Results and summaries go to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import typer

from affserve.client.client import AffectClient
from affserve.client.connection import Connection, connected
from affserve.client.exchange.exchange import EXCHANGES
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.analyze_files import Job, Summary, analyze_to_files
from affserve.client.infer.output_paths import (
    STANDARD_OUTPUT,
    OutputPaths,
    OutputWishes,
    make_folders,
    names_a_file,
    plan_outputs,
)
from affserve.client.infer.run_record import ModelRecord, is_done, options_of
from affserve.client.infer.summary import Terminal
from affserve.client.results.formats import RowFormat, choose_format
from affserve.client.video.inputs import spelt_out
from affserve.client.video.source import FOLDER_FPS, MOST_PIXELS, FrameSource, open_source
from affserve.train.errors import AffserveError, OutputError, VideoError
from affserve.train.provenance import SYNTHETIC
from affserve.train.signals import handled

TERMINATED = 128 + signal.SIGTERM
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
MMAP_THRESHOLD_BYTES = 4 << 20  # chunks of crops lie above it, rows and the frames of 1280x720 below
TRIM_THRESHOLD_BYTES = 64 << 20  # at the end of the heap that the next frame is going to use


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """What the command line asks for."""

    sources: tuple[Path, ...]  # paths, folders of videos, quoted globs
    connection: Connection
    out: Path | None = None  # file, folder or "-"
    row_format: str | None = None  # None: by the suffix of `out`
    plot: bool | None = None  # None: where the rows go to a file
    overlay: Path | None = None  # file or folder
    resume: bool = False  # leave what is done already
    croppers: Croppers = field(default_factory=Croppers)
    fps: float = FOLDER_FPS  # of folders of images, frames per second
    most_pixels: int = MOST_PIXELS  # of a picture
    raw: bool = False  # make nothing of the answers, whatever is declared
    every: int = 1  # encode every n-th frame of a person
    threads: int | None = None  # None: each part decides
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        exchange = self.row_format in EXCHANGES
        if self.to_stdout and (self.plot or self.overlay or self.json or self.resume or exchange):
            raise typer.BadParameter(
                "--out - takes rows only: neither --plot, --overlay, --resume, --json nor formats of files"
            )

    @property
    def to_stdout(self) -> bool:
        """Whether the table goes to standard output."""
        return self.out == STANDARD_OUTPUT

    def job(self, source: FrameSource, outputs: OutputPaths) -> Job:
        """Say what is to be done with a source."""
        cropper = self.croppers.cropper(source.already_cropped)
        options = options_of(cropper, self.croppers.faces, self.fps, raw=self.raw, every=self.every)
        return Job(source=source, cropper=cropper, outputs=outputs, options=options, raw=self.raw, every=self.every)

    def wishes(self, row_format: RowFormat) -> OutputWishes:
        """What is wanted of every source."""
        plot = self.plot if self.plot is not None else not self.to_stdout
        exchange = EXCHANGES.get(self.row_format or "")
        return OutputWishes(row_format=row_format, out=self.out, plot=plot, overlay=self.overlay, exchange=exchange)


def infer_sources(options: InferOptions) -> bool:
    """Analyse all sources; return False when one of them failed, after reporting it."""
    sources, notes = spelt_out(options.sources)
    several = len(sources) > 1 or sources != list(options.sources)
    planned = choose_outputs(options, sources)
    run = _Run(options, Terminal(quiet=options.quiet), several=several)
    run.note(notes)
    opened = {path: source for path, outputs in planned.items() if (source := run.opened(path, outputs)) is not None}
    if opened:
        return_large_buffers_at_once()
        # Faces are found beside the server's models: a second thread there takes from both (8 % slower on two cores).
        cv2.setNumThreads(options.threads or 1)
        with ExitStack() as stack:
            # SIGTERM unwinds the stack, so that a local server is stopped and unfinished files are removed.
            stack.enter_context(handled(signal.SIGTERM, by=lambda *_: sys.exit(TERMINATED)))
            for source in opened.values():
                options.croppers.cropper(source.already_cropped)  # no detector: told before a server is started
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
        wishes = options.wishes(
            choose_format(options.row_format, out if out and names_a_file(out) else None, EXCHANGES)
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
        self._failures: dict[Path, AffserveError] = {}
        self._skipped = 0

    def note(self, notes: list[str]) -> None:
        """Tell on stderr what a user should know of the sources."""
        for note in notes if not self._options.quiet else ():
            print(f"note: {note}", file=sys.stderr)

    def opened(self, path: Path, outputs: OutputPaths) -> FrameSource | None:
        """Open a source and check what can be checked before a server starts; None where that fails, after telling."""
        try:
            source = open_source(
                path, fps=self._options.fps, threads=self._options.threads or 0, most_pixels=self._options.most_pixels
            )
            outputs.check_writable()
        except (VideoError, OutputError) as error:
            self._fail(path, error)
            return None
        return source

    def analyse(self, planned: list[tuple[FrameSource, OutputPaths]], client: AffectClient) -> None:
        """Analyse every source that is not done."""
        model = ModelRecord.of(client)
        for source, outputs in planned:
            job = self._options.job(source, outputs)
            try:
                if self._options.resume and is_done(source.path, job.options, outputs, model):
                    self._skipped += 1
                    self._terminal.skipped(source.path, outputs.rows, as_json=self._options.json)
                    continue
                with self._terminal.progress(source.path.name) as progress:
                    summary = analyze_to_files(job, client, model=model, progress=progress)
            except (VideoError, OutputError) as error:
                self._fail(source.path, error)
                continue
            self._tell(summary)
            if summary.error is not None:
                self._fail(source.path, VideoError(summary.error))

    @contextmanager
    def telling_how_to_go_on(self) -> Iterator[None]:
        """Say on stderr what became of a run that is stopped, where some of it may be done."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._several:
                print("note: stopped; what is complete stays, the same command with --resume goes on", file=sys.stderr)
            raise

    def _tell(self, summary: Summary) -> None:
        if self._options.json:
            self._terminal.json(summary)
        elif not self._options.quiet:
            self._terminal.summary(summary, to_stderr=self._options.to_stdout)

    def _fail(self, source: Path, error: AffserveError) -> None:
        print(f"error: {error}", file=sys.stderr)
        self._failures[source] = error

    def tell_end(self, sources: int) -> bool:
        """Tell what failed once more, where there was more than one source; return whether nothing did."""
        if self._several and not self._options.quiet:
            self._terminal.end(sources, self._skipped, self._failures)
        return not self._failures


def return_large_buffers_at_once() -> None:
    """Keep this process from growing with the length of a video.

    glibc raises the size from which a buffer is given back to the system to that of the largest one freed; chunks of
    crops (5 MB) then live in the heap, which frays. A fixed threshold keeps them out. Frames stay in: each would else
    be given memory that the system has to clear first, 2.3 ms at 1280x720. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
