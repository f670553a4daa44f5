"""One source to its files: rows as they come, what they mean beside them, a plot at the end.

In comes a path and a connected client; out come files that appear only when they are complete, and a summary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from affserve.client.analyze import Progress, analyze
from affserve.client.client import AffectClient
from affserve.client.faces import Cropper, FaceCropper, FaceDetector, WholeImageCropper
from affserve.client.output_file import OutputFile, write_whole
from affserve.client.read_ahead import StageSeconds
from affserve.client.results import NO_TRACK, RowFormatter, Rows, csv_metadata
from affserve.client.video import FOLDER_FPS, FrameSource, open_source
from affserve.export.contract import HeadDescription
from affserve.train.errors import VideoError

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one analysis did; `affserve infer --json` prints it."""

    file: str
    error: str | None  # why the file broke off, with the rows before that kept
    frames: int  # rows written
    frames_with_face: int
    duration_s: float  # timestamp of the last frame
    seconds: float  # wall-clock time of the analysis
    frames_per_s: float
    detector: str
    url: str
    engine: str
    trained_on: str
    csv: str | None  # None: standard output
    metadata: str | None
    plot: str | None
    stages: StageSeconds


def analyze_to_files(
    path: Path,
    client: AffectClient,
    detector: FaceDetector | None,
    *,
    csv: Path,
    plot: Path | None = None,
    crops: bool | None = None,
    fps: float = FOLDER_FPS,
    threads: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Analyse one video, image or folder into `csv`, its metadata beside it, and `plot`.

    csv: "-" writes the table to standard output, without metadata and plot. crops: whether the frames are face crops
    already; None decides by their size. detector: may be None only for crops.
    VideoError, ServerError or OutputError leave no file behind, except that of a source that breaks off after some
    frames the rows are kept and the reason stands in the summary.
    """
    source = open_source(path, fps=fps, threads=threads)
    cropper = _cropper(source, detector, crops)
    start = time.perf_counter()
    tally = _Tally()
    to_file = csv != STANDARD_OUTPUT
    with OutputFile(csv if to_file else None) as file:
        _write_rows(file, source, client, cropper, tally, progress)
    metadata = csv.with_name(csv.name + "-metadata.json") if to_file else None
    if metadata is not None:
        write_whole(metadata, _metadata(csv, path, client, cropper).encode())
    if plot is not None and to_file:
        _draw(csv, plot, path, client.describe())
    seconds = time.perf_counter() - start
    return Summary(
        file=str(path),
        error=tally.error,
        frames=tally.frames,
        frames_with_face=tally.frames_with_face,
        duration_s=tally.last_s,
        seconds=seconds,
        frames_per_s=tally.frames / seconds,
        detector=cropper.name,
        url=client.url,
        engine=client.engine(),
        trained_on=client.describe().trained_on,
        csv=str(csv) if to_file else None,
        metadata=str(metadata) if metadata is not None else None,
        plot=str(plot) if plot is not None and to_file else None,
        stages=tally.stages,
    )


class _Tally:
    """What is counted while rows go by."""

    def __init__(self) -> None:
        self.frames = 0
        self.frames_with_face = 0
        self.last_s = 0.0
        self.error: str | None = None
        self.stages = StageSeconds()

    def add(self, rows: Rows) -> None:
        """Count a block."""
        self.frames += len(rows)
        self.frames_with_face += int((rows.track_id != NO_TRACK).sum())
        self.last_s = float(rows.timestamp_s[-1])


def _write_rows(
    file: OutputFile,
    source: FrameSource,
    client: AffectClient,
    cropper: Cropper,
    tally: _Tally,
    progress: Progress | None,
) -> None:
    formatter = RowFormatter(client.describe().labels)
    file.write(formatter.header.encode())
    try:
        for rows in analyze(source, client, cropper, seconds=tally.stages, progress=progress):
            start = time.perf_counter()
            file.write(formatter.text(rows).encode())
            tally.stages.write_s += time.perf_counter() - start
            tally.add(rows)
    except VideoError as error:
        if not tally.frames:
            raise
        tally.error = str(error)


def _cropper(source: FrameSource, detector: FaceDetector | None, crops: bool | None) -> Cropper:
    if crops or (crops is None and source.already_cropped):
        return WholeImageCropper()
    if detector is None:
        raise ValueError(f"{source.path} does not hold face crops: a face detector is needed")
    return FaceCropper(detector)


def _metadata(csv: Path, path: Path, client: AffectClient, cropper: Cropper) -> str:
    description = client.describe()
    provenance = {
        "trained_on": description.trained_on,
        "encoder": description.encoder,
        "engine": client.engine(),
        "window_frames": str(description.window_frames),
        "stride_frames": str(description.stride_frames),
        "face_detector": cropper.name,
    }
    return csv_metadata(csv.name, description.labels, source=path.name, provenance=provenance)


def _draw(csv: Path, plot: Path, path: Path, description: HeadDescription) -> None:
    from affserve.client.plots import draw_result  # matplotlib takes a while to load and most runs draw nothing

    write_whole(plot, draw_result(csv, description, title=path.name))
