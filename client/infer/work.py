"""One source, from its path to what became of it: the same in this process, in a worker beside it, or on a node."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers, WholeImageCropper
from affserve.client.faces.face import Cropper
from affserve.client.infer.analyze_files import Job, Summary, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import ModelRecord, is_done, options_of
from affserve.client.sequences.kept_features import KeptFeatures, is_kept
from affserve.client.video.source import FOLDER_FPS, MOST_PIXELS, FrameSource, Progress, open_source
from affserve.train.errors import OutputError, VideoError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
MMAP_THRESHOLD_BYTES = 4 << 20  # chunks of crops lie above it, rows and the frames of 1280x720 below
TRIM_THRESHOLD_BYTES = 64 << 20  # at the end of the heap that the next frame is going to use


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """What is asked of every source, beside where its results go."""

    croppers: Croppers = field(default_factory=Croppers)
    fps: float = FOLDER_FPS  # of folders of images, frames per second
    most_pixels: int = MOST_PIXELS  # of a picture
    raw: bool = False  # make nothing of the answers, whatever is declared
    every: int = 1  # encode every n-th frame of a person
    resume: bool = False  # leave what is done already
    threads: int | None = None  # of decoding and of finding faces; None: each decides

    def open(self, path: Path) -> FrameSource:
        """Open a source, or features that were kept of one; VideoError where it cannot be read."""
        if is_kept(path):
            return KeptFeatures(path)
        return open_source(path, fps=self.fps, threads=self.threads or 0, most_pixels=self.most_pixels)

    def analyst(self, client: AffectClient, model: ModelRecord) -> Analyst:
        """Return who does the work."""
        return Analyst(self, client, model)

    def prepare_process(self) -> None:
        """Set what holds for a whole process."""
        return_large_buffers_at_once()
        # Faces are found beside the server's models: a second thread there takes from both (8 % slower on two cores).
        cv2.setNumThreads(self.threads or 1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a source; without summary and error it was done before."""

    path: Path | str
    outputs: OutputPaths
    summary: Summary | None = None
    error: str | None = None  # why it failed, or broke off
    worker: str = ""  # who did it


class Analyst:
    """Analyses one source after the other with a connected client."""

    def __init__(self, settings: WorkSettings, client: AffectClient, model: ModelRecord | None = None) -> None:
        self._settings = settings
        self._client = client
        self._model = model or ModelRecord.of(client)

    def analyse(
        self, source: FrameSource | Path | str, outputs: OutputPaths, progress: Progress | None = None
    ) -> Outcome:
        """Analyse a source unless it is done; what is wrong with it or its results is told in the outcome."""
        path = Path(source) if isinstance(source, (Path, str)) else source.path
        try:
            source = self._settings.open(path) if isinstance(source, (Path, str)) else source
            if self._is_done(path, outputs, source.already_cropped):
                return Outcome(path=path, outputs=outputs)
            cropper, options = self._cropper(path, source.already_cropped)
            every = source.about["every"] if isinstance(source, KeptFeatures) else self._settings.every
            raw = self._settings.raw
            job = Job(source=source, cropper=cropper, outputs=outputs, options=options, raw=raw, every=every)
            summary = analyze_to_files(job, self._client, model=self._model, progress=progress)
        except (VideoError, OutputError) as error:
            return Outcome(path=path, outputs=outputs, error=str(error))
        return Outcome(path=path, outputs=outputs, summary=summary, error=summary.error)

    def _cropper(self, path: Path, already_cropped: bool) -> tuple[Cropper, str]:
        """Return what finds the faces, and all that changes the rows."""
        asked = self._settings
        if is_kept(path):
            return WholeImageCropper(), json.dumps({"kept_features": True, "raw": asked.raw})
        cropper = asked.croppers.cropper(already_cropped)
        return cropper, options_of(cropper, asked.croppers.faces, asked.fps, raw=asked.raw, every=asked.every)

    def _is_done(self, path: Path, outputs: OutputPaths, already_cropped: bool = False) -> bool:
        return self._settings.resume and is_done(path, self._cropper(path, already_cropped)[1], outputs, self._model)


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
