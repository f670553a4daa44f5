"""Video in, rows out: decode and crop ahead in one thread, encode in flight, predict per window, write as it comes.

Memory does not depend on the length of the video: chunks of frames wait in a bounded queue, features and frames wait
for one window at most. Every frame gets exactly one row, in order. Frames without a face carry the last feature
through the head, as in training, so that windows stay contiguous in time; their rows stay empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.faces import Cropper, FaceCropper, FaceDetector, WholeImageCropper
from affserve.client.output_file import OutputFile, write_whole
from affserve.client.read_ahead import Chunk, ReadAhead, SeenFrame, StageSeconds
from affserve.client.results import RowFormatter, Rows, csv_metadata
from affserve.client.row_merger import RowMerger
from affserve.client.video import FOLDER_FPS, FrameSource, open_source
from affserve.export.contract import HeadDescription
from affserve.train.errors import VideoError
from affserve.train.windows import Outputs, PredictWindow

STANDARD_OUTPUT = Path("-")
Progress = Callable[[int, int | None], None]
"""Called with the number of frames encoded so far and the number that the container announces, if it does."""


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


def analyze(
    source: FrameSource,
    client: AffectClient,
    cropper: Cropper,
    *,
    seconds: StageSeconds | None = None,
    progress: Progress | None = None,
) -> Iterator[Rows]:
    """Yield the rows of every frame of a source, in order, in blocks, as soon as no later frame can change them.

    A VideoError at the end says that the source broke off; the rows of what could be read have been yielded by then.
    """
    seconds = seconds if seconds is not None else StageSeconds()
    rows = RowMerger(_timed(client.predict, seconds), client.describe())
    with ReadAhead(source, cropper, seconds) as chunks:
        waiting: deque[list[SeenFrame]] = deque()
        encoded = 0
        for features in _timed_encoding(client, _crops(chunks, waiting), seconds):
            frames = waiting.popleft()
            encoded += len(frames)
            # Rows come a window at a time; whoever waits wants to see more than that.
            if progress is not None:
                progress(encoded, source.frames_hint)
            yield from rows.push(frames, features)
        yield from rows.finish()
        chunks.raise_error()


def _crops(chunks: Iterable[Chunk], waiting: deque[list[SeenFrame]]) -> Iterator[NDArray[np.uint8]]:
    for chunk in chunks:
        waiting.append(chunk.frames)
        yield chunk.crops


def _timed(predict: PredictWindow, seconds: StageSeconds) -> PredictWindow:
    def timed(features: NDArray[np.float32]) -> Outputs:
        start = time.perf_counter()
        outputs = predict(features)
        seconds.head_s += time.perf_counter() - start
        return outputs

    return timed


def _timed_encoding(
    client: AffectClient, crops: Iterator[NDArray[np.uint8]], seconds: StageSeconds
) -> Iterator[NDArray[np.float32]]:
    stream = client.encode_stream(crops)
    while True:
        start, before = time.perf_counter(), seconds.frames_wait_s
        features = next(stream, None)
        # The stream fetches its own chunks, so the wait for those is inside this call.
        seconds.encode_wait_s += time.perf_counter() - start - (seconds.frames_wait_s - before)
        if features is None:
            return
        yield features


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
        self.frames_with_face += int(np.isfinite(rows.face_score).sum())
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
