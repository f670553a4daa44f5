"""One source to its files: rows as they come, what they mean beside them, a plot and an overlay video at the end.

In comes a path and a connected client; out come files that appear only when they are complete, and a summary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import WholeImageCropper, make_cropper
from affserve.client.faces.face import Cropper, FaceDetector
from affserve.client.faces.settings import FaceSettings
from affserve.client.infer.analyze import analyze
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.read_ahead import StageSeconds
from affserve.client.infer.run_record import BYTES, ERROR, OPTIONS, SOURCE, ModelRecord, source_state, written_options
from affserve.client.results.formats import RowWriter
from affserve.client.results.metadata import ResultTable, metadata_path, metadata_text
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.rows import NO_TRACK, Rows
from affserve.client.video.source import FOLDER_FPS, FrameSource, Progress, open_source
from affserve.train.errors import VideoError


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """How a source is looked at."""

    crops: bool | None = None  # frames are face crops already; None: decided by their size
    fps: float = FOLDER_FPS  # of a folder of images, frames per second
    threads: int = 0  # of decoding; 0: the decoder decides
    faces: FaceSettings = field(default_factory=FaceSettings)

    def as_text(self, cropper: Cropper) -> str:
        """Return all that changes the rows, for the record of a run."""
        return written_options({"fps": self.fps, "face_detector": cropper.name, **asdict(self.faces)})


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one analysis did; `affserve infer --json` prints it."""

    file: str
    error: str | None  # why the file broke off, with the rows before that kept
    frames: int
    frames_with_face: int
    rows: int  # one per face, or one for a frame without any
    people: int  # different track_ids
    duration_s: float  # timestamp of the last frame
    seconds: float  # wall-clock time of the analysis
    frames_per_s: float
    detector: str
    url: str
    engine: str
    trained_on: str
    out: str | None  # None: standard output
    metadata: str | None  # None: standard output, or a format that describes itself
    plot: str | None
    overlay: str | None
    overlay_s: float  # wall-clock time of the overlay, after the analysis
    notices: tuple[str, ...]  # what a user should know about the files
    stages: StageSeconds


def analyze_to_files(
    path: Path,
    client: AffectClient,
    detector: FaceDetector | None,
    outputs: OutputPaths,
    *,
    settings: AnalysisSettings | None = None,
    model: ModelRecord | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Analyse one video, image or folder into its outputs.

    detector: may be None only for crops. model: what the server said about itself, when it has been asked already.
    VideoError, ServerError or OutputError leave no file behind, except that of a source that breaks off after some
    frames the rows are kept and the reason stands in the summary.
    """
    settings = settings or AnalysisSettings()
    source = open_source(path, fps=settings.fps, threads=settings.threads)
    cropper = cropper_for(source, detector, settings)
    start = time.perf_counter()
    tally = _Tally()
    table = _table(path, outputs, client, cropper, settings, model)
    with OutputFile(None if outputs.to_stdout else outputs.rows) as file:
        writer = outputs.row_format.open(file, table)
        _write_rows(writer, source, client, cropper, tally, progress)
        closing = tally.closing()
        writer.finish(closing)
    metadata = _write_metadata(outputs, table, closing)
    _draw_plot(path, outputs, client)
    seconds = time.perf_counter() - start
    notices = _draw_overlay(path, outputs, client, settings, progress)
    return Summary(
        file=str(path),
        error=tally.error,
        frames=tally.frames,
        frames_with_face=tally.frames_with_face,
        rows=tally.rows,
        people=len(tally.people),
        duration_s=tally.last_s,
        seconds=seconds,
        frames_per_s=tally.frames / seconds,
        detector=cropper.name,
        url=client.url,
        engine=table.provenance["engine"],
        trained_on=table.provenance["trained_on"],
        out=None if outputs.to_stdout else str(outputs.rows),
        metadata=_text(metadata),
        plot=_text(outputs.plot),
        overlay=_text(outputs.overlay),
        overlay_s=time.perf_counter() - start - seconds,
        notices=notices,
        stages=tally.stages,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _table(
    path: Path,
    outputs: OutputPaths,
    client: AffectClient,
    cropper: Cropper,
    settings: AnalysisSettings,
    model: ModelRecord | None,
) -> ResultTable:
    """Tell what the rows are of and what makes them."""
    provenance = {
        **(model or ModelRecord.of(client)).provenance(),
        "face_detector": cropper.name,
        SOURCE: source_state(path),
        OPTIONS: settings.as_text(cropper),
    }
    labels = client.describe().labels
    return ResultTable(name=outputs.rows.name, source=path.name, labels=labels, provenance=provenance)


def cropper_for(source: FrameSource, detector: FaceDetector | None, settings: AnalysisSettings) -> Cropper:
    """Return what finds the faces of a source."""
    if settings.crops or (settings.crops is None and source.already_cropped):
        return WholeImageCropper()
    if detector is None:
        raise ValueError(f"{source.path} does not hold face crops: a face detector is needed")
    return make_cropper(settings.faces, detector)


class _Tally:
    """What is counted while rows go by."""

    def __init__(self) -> None:
        self.rows = 0
        self.frames = 0
        self.frames_with_face = 0
        self.people: set[int] = set()
        self.last_s = 0.0
        self.error: str | None = None
        self.stages = StageSeconds()
        self._last_frame = -1

    def add(self, rows: Rows) -> None:
        """Count a block; the rows of a frame are in one block or in two that follow each other."""
        faces = rows.track_id != NO_TRACK
        self.rows += len(rows)
        self.frames += self._new_frames(rows.frame)
        self.frames_with_face += self._new_frames(rows.frame[faces])
        self.people.update(rows.track_id[faces].tolist())
        self.last_s = float(rows.timestamp_s[-1])
        self._last_frame = int(rows.frame[-1])

    def _new_frames(self, frames: NDArray[np.int64]) -> int:
        return len(set(frames.tolist()) - {self._last_frame})

    def closing(self) -> dict[str, str]:
        """Return what is known only at the end."""
        facts = {"frames": str(self.frames), "rows": str(self.rows)}
        return facts if self.error is None else {**facts, ERROR: self.error}


def _write_rows(
    writer: RowWriter,
    source: FrameSource,
    client: AffectClient,
    cropper: Cropper,
    tally: _Tally,
    progress: Progress | None,
) -> None:
    try:
        for rows in analyze(source, client, cropper, seconds=tally.stages, progress=progress):
            start = time.perf_counter()
            writer.write(rows)
            tally.stages.write_s += time.perf_counter() - start
            tally.add(rows)
    except VideoError as error:
        if not tally.rows:
            raise
        tally.error = str(error)


def _write_metadata(outputs: OutputPaths, table: ResultTable, closing: Mapping[str, str]) -> Path | None:
    """Write the description beside the rows, where the format has no place for it; it also says that they are whole."""
    if outputs.to_stdout or outputs.row_format.describes_itself:
        return None
    path = metadata_path(outputs.rows)
    facts = {**table.provenance, **closing, BYTES: str(outputs.rows.stat().st_size)}
    write_whole(path, metadata_text(replace(table, provenance=facts)).encode())
    return path


def _draw_plot(path: Path, outputs: OutputPaths, client: AffectClient) -> None:
    if outputs.plot is None:
        return
    from affserve.client.drawing.plots import draw_result  # matplotlib takes a while to load and most runs draw nothing

    description = client.describe()
    read = partial(outputs.row_format.read, outputs.rows, description.labels)
    write_whole(outputs.plot, draw_result(read, description, title=path.name))


def _draw_overlay(
    path: Path, outputs: OutputPaths, client: AffectClient, settings: AnalysisSettings, progress: Progress | None
) -> tuple[str, ...]:
    if outputs.overlay is None:
        return ()
    from affserve.client.drawing.overlay import draw_overlay

    rows = outputs.row_format.read(outputs.rows, client.describe().labels)
    source = open_source(path, fps=settings.fps, threads=settings.threads)
    return draw_overlay(source, rows, client.describe(), outputs.overlay, progress=progress)
