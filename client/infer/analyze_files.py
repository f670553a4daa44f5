"""One source to its files: rows as they come, what they mean beside them, a plot and an overlay video at the end.

In come an open source and a connected client; out come files that appear only when they are complete, and a summary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import FaceCropper
from affserve.client.faces.face import Cropper
from affserve.client.infer.analyze import analyze_stream
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.read_ahead import StageSeconds
from affserve.client.infer.run_record import ERROR, OPTIONS, SOURCE, ModelRecord, source_state
from affserve.client.results.edits import NO_EDITS, Edits, read_edits
from affserve.client.results.formats import RowWriter
from affserve.client.results.metadata import DIGEST, ResultTable, write_metadata
from affserve.client.results.output_file import OutputFile, write_whole
from affserve.client.results.reading import read
from affserve.client.results.rows import Rows, Tally
from affserve.client.sequences.declared import as_done
from affserve.client.sequences.kept_features import FeatureKeeper, KeptFeatures
from affserve.client.video.source import FrameSource, Progress
from affserve.export.contract import HeadDescription
from affserve.train.errors import VideoError, printable

OF_FEATURES = ("engine", "frames_sent", OPTIONS)  # of the run that made kept features: it stays told


@dataclass(frozen=True, kw_only=True)
class Job:
    """One source and what is to become of it."""

    source: FrameSource
    cropper: Cropper
    outputs: OutputPaths
    options: str = ""  # all that changes the rows, for the record of the run
    raw: bool = False  # make nothing of the answers, whatever is declared
    every: int = 1  # encode every n-th frame of a person


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
    exchange: str | None  # in the format of another tool; where there are several files, the one written last
    overlay_s: float  # wall-clock time of the overlay, after the analysis
    notices: tuple[str, ...]  # what a user should know about the files
    stages: StageSeconds


def analyze_to_files(
    job: Job, client: AffectClient, *, model: ModelRecord | None = None, progress: Progress | None = None
) -> Summary:
    """Analyse one video, image or folder into its outputs.

    model: what the server said about itself, when it has been asked already. VideoError, ServerError or OutputError
    leave no file behind, except that of a source that breaks off after some frames the rows are kept and the reason
    stands in the summary.
    """
    outputs = job.outputs
    start = time.perf_counter()
    tally, stages = Tally(), StageSeconds()
    head = as_done(client.describe(), raw=job.raw, every=job.every)
    table = _table(job, head, model or ModelRecord.of(client))
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(FeatureKeeper(outputs.features)) if outputs.features else None
        asked: Any = {"seconds": stages, "progress": progress, "raw": job.raw, "every": job.every, "keeper": keeper}
        with OutputFile(None if outputs.to_stdout else outputs.rows) as file:
            writer = outputs.row_format.open(file, table)
            # Closed here, or the thread that reads ahead waits for ever where the writing failed.
            with contextlib.closing(analyze_stream(job.source, client, job.cropper, **asked)) as blocks:
                error = _write_rows(writer, blocks, tally, stages)
            closing = {"frames": str(tally.frames), "rows": str(tally.rows), **({ERROR: error} if error else {})}
            writer.finish(closing)
        metadata = None
        if not (outputs.to_stdout or outputs.row_format.describes_itself):
            # Beside the rows; it also says that they are whole.
            metadata = write_metadata(outputs.rows, table, {**closing, DIGEST: file.sha256})
        if keeper is not None:
            keeper.write(
                {
                    "source": table.source,
                    "patience_frames": job.cropper.patience_frames,
                    "every": job.every,
                    "error": error,
                    "provenance": table.provenance,
                }
            )
    # What people changed on the page, if this result was there before.
    edits = NO_EDITS if outputs.to_stdout else read_edits(outputs.rows)
    _draw_plot(job, edits, tally, head)
    notices = _exchange(outputs)
    seconds = time.perf_counter() - start
    notices += _draw_overlay(job, edits, head, progress)
    return Summary(
        file=str(job.source.path),
        error=error,
        frames=tally.frames,
        frames_with_face=tally.frames_with_face,
        rows=tally.rows,
        people=len(tally.seen),
        duration_s=tally.last_s,
        seconds=seconds,
        frames_per_s=tally.frames / seconds,
        detector=table.provenance["face_detector"],
        url=client.url,
        engine=table.provenance["engine"],
        trained_on=table.provenance["trained_on"],
        out=None if outputs.to_stdout else str(outputs.rows),
        metadata=_text(metadata),
        plot=_text(outputs.plot),
        overlay=_text(outputs.overlay),
        exchange=_text(outputs.exchanged),
        overlay_s=time.perf_counter() - start - seconds,
        notices=(*_face_notices(job, tally), *notices),
        stages=stages,
    )


def _face_notices(job: Job, tally: Tally) -> tuple[str, ...]:
    """Say what helps where most frames have no face."""
    faceless = tally.frames - tally.frames_with_face
    if not isinstance(job.cropper, FaceCropper) or 2 * faceless < tally.frames:
        return ()
    return (f"no face was found in {faceless} of {tally.frames} frames: {job.cropper.advice()}",)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _table(job: Job, head: HeadDescription, model: ModelRecord) -> ResultTable:
    """Tell what the rows are of and what makes them."""
    provenance = {
        **model.provenance(),
        "face_detector": job.cropper.name,
        SOURCE: source_state(job.source.path),
        OPTIONS: job.options,
    }
    source = job.source.path.name
    if isinstance(job.source, KeptFeatures):
        source, then = job.source.about["source"], job.source.about["provenance"]
        provenance |= {
            "face_detector": then["face_detector"],
            **{f"features_{name}": then[name] for name in OF_FEATURES},
        }
    return ResultTable(
        name=printable(job.outputs.rows.name), source=printable(source), labels=head.labels, provenance=provenance
    )


def _write_rows(writer: RowWriter, blocks: Iterator[Rows], tally: Tally, stages: StageSeconds) -> str | None:
    """Write and count the rows; return why the source broke off, if it did after some of them."""
    try:
        for rows in blocks:
            start = time.perf_counter()
            writer.write(rows)
            stages.write_s += time.perf_counter() - start
            tally.add(rows)
    except VideoError as error:
        if not tally.rows:
            raise
        return str(error)
    return None


def _draw_plot(job: Job, edits: Edits, tally: Tally, description: HeadDescription) -> None:
    outputs = job.outputs
    if outputs.plot is None:
        return
    from affserve.client.drawing.plots import draw_result  # matplotlib takes a while to load and most runs draw nothing

    if edits.people:
        tally = Tally()
        for rows in outputs.row_format.read(outputs.rows, description.labels, edits):
            tally.add(rows)
    blocks = outputs.row_format.read(outputs.rows, description.labels, edits)
    title = printable(job.source.path.name)
    write_whole(outputs.plot, draw_result(blocks, tally, description, title=title, name=edits.name))


def _exchange(outputs: OutputPaths) -> tuple[str, ...]:
    """Write the finished rows in the format of another tool, if wanted; return what did not fit."""
    if outputs.exchange is None or outputs.exchanged is None:
        return ()
    return tuple(outputs.exchange.write(read(outputs.rows), outputs.exchanged, None))


def _draw_overlay(job: Job, edits: Edits, description: HeadDescription, progress: Progress | None) -> tuple[str, ...]:
    outputs = job.outputs
    if outputs.overlay is None:
        return ()
    from affserve.client.drawing.overlay import draw_overlay

    rows = outputs.row_format.read(outputs.rows, description.labels, edits)
    return draw_overlay(job.source, rows, description, outputs.overlay, names=edits.names, progress=progress)
