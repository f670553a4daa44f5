"""The body of `affserve infer`: which server, which files, what is told to whom.

Results and summaries go to stdout; progress, notes and errors to stderr.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import cv2
import typer

from affserve.client.analyze_files import STANDARD_OUTPUT, analyze_to_files
from affserve.client.client import AffectClient
from affserve.client.connection import Connection, connected
from affserve.client.face_model import find_detector
from affserve.client.faces import FaceDetector
from affserve.client.output_file import check_writable
from affserve.client.terminal import Terminal, report
from affserve.client.video import FOLDER_FPS, open_source
from affserve.train.affwild2 import SYNTHETIC
from affserve.train.errors import OutputError, VideoError

RESULT_SUFFIX = ".affect.csv"
TERMINATED = 128 + signal.SIGTERM
M_MMAP_THRESHOLD = -3  # of <malloc.h>
MMAP_THRESHOLD_BYTES = 256 * 1024  # crops and frames lie above it, rows below


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """What the command line asks for."""

    sources: tuple[Path, ...]
    connection: Connection
    out: Path | None = None  # file, folder or "-"
    plot: bool | None = None  # None: where the rows go to a file
    face_detector: str = "auto"
    face_model: Path | None = None
    crops: bool | None = None  # None: decide by image size
    fps: float = FOLDER_FPS  # of folders of images, frames per second
    threads: int | None = None  # None: each part decides
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.to_stdout and (len(self.sources) > 1 or self.plot or self.json):
            raise typer.BadParameter("--out - takes one source, and neither --plot nor --json")

    @property
    def wants_plot(self) -> bool:
        """Whether to draw."""
        return self.plot if self.plot is not None else not self.to_stdout

    @property
    def to_stdout(self) -> bool:
        """Whether the table goes to standard output."""
        return self.out == STANDARD_OUTPUT


def infer_sources(options: InferOptions) -> bool:
    """Analyse all sources; return False when one of them failed, after reporting it."""
    outputs = choose_outputs(options)
    good = {source: csv for source, csv in outputs.items() if _usable(source, csv, options)}
    complete = len(good) == len(outputs)
    if not good:
        return False
    return_large_buffers_at_once()
    if options.threads is not None:
        cv2.setNumThreads(options.threads)
    with ExitStack() as stack:
        stack.enter_context(_terminated_cleanly())
        detector = _detector(options, list(good))
        client = stack.enter_context(connected(options.connection))
        if client.describe().trained_on == SYNTHETIC:
            print("warning: this model was trained on generated faces only: not for people", file=sys.stderr)
        for source, csv in good.items():
            complete &= _infer_one(source, csv, client, detector, options)
    return complete


def return_large_buffers_at_once() -> None:
    """Keep this process from growing with the length of a video.

    glibc raises the size from which a buffer is given back to the system to that of the largest one freed; chunks of
    crops (5 MB) then live in the heap, which frays. A fixed threshold keeps them out. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def choose_outputs(options: InferOptions) -> dict[Path, Path]:
    """Return the CSV path of each source; typer.BadParameter where two would be one, or a source its own result."""
    several = len(options.sources) > 1
    is_folder = options.out is not None and (several or options.out.is_dir())
    outputs: dict[Path, Path] = {}
    for source in dict.fromkeys(options.sources):
        name = (source.resolve().name if source.is_dir() else source.stem) + RESULT_SUFFIX
        if options.out is not None:
            outputs[source] = options.out / name if is_folder else options.out
        else:
            outputs[source] = Path(name)
    if len(set(outputs.values())) < len(outputs):
        raise typer.BadParameter("two sources of the same name would write the same file; run them one by one")
    if own := [source for source, csv in outputs.items() if csv.exists() and source.exists() and csv.samefile(source)]:
        raise typer.BadParameter(f"--out would overwrite the source {own[0]}")
    if several and options.out is not None:
        _make_folder(options.out)
    return outputs


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made a folder for the results: {error.strerror}") from error


def _usable(source: Path, csv: Path, options: InferOptions) -> bool:
    """Check what can be checked before a server starts: the source opens and its result can be written."""
    try:
        open_source(source, fps=options.fps)
        if not options.to_stdout:
            check_writable(csv)
    except (VideoError, OutputError) as error:
        report(error)
        return False
    return True


def _detector(options: InferOptions, sources: list[Path]) -> FaceDetector | None:
    """Return a face detector, or None where every source consists of crops."""
    if options.crops is True:
        return None
    if options.crops is None and all(open_source(source, fps=options.fps).already_cropped for source in sources):
        return None
    return find_detector(options.face_detector, options.face_model)


@contextmanager
def _terminated_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that a local server is stopped and unfinished files are removed."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _infer_one(
    source: Path, csv: Path, client: AffectClient, detector: FaceDetector | None, options: InferOptions
) -> bool:
    terminal = Terminal(quiet=options.quiet)
    try:
        with terminal.progress(source.name) as progress:
            summary = analyze_to_files(
                source,
                client,
                detector,
                csv=csv,
                plot=csv.with_suffix(".png") if options.wants_plot else None,
                crops=options.crops,
                fps=options.fps,
                threads=options.threads or 0,
                progress=progress,
            )
    except (VideoError, OutputError) as error:
        report(error)
        return False
    if options.json:
        terminal.json(summary)
    elif not options.quiet:
        terminal.summary(summary, to_stderr=options.to_stdout)
    if summary.error is not None:
        report(VideoError(summary.error))
    return summary.error is None
