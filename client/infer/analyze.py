"""Video in, rows out: decode and crop ahead in one thread, encode in flight, predict per window, write as it comes.

Memory does not depend on the length of the video: chunks of frames wait in a bounded queue, features and frames wait
for one window at most. Every frame gets a row for each of its faces, or one row without a face, in order. A person who
is not seen carries their last feature through the head, as in training, so that windows stay contiguous in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers
from affserve.client.faces.face import Cropper
from affserve.client.faces.settings import LARGEST, FaceSettings
from affserve.client.infer.read_ahead import Chunk, ReadAhead, StageSeconds
from affserve.client.results.rows import Rows
from affserve.client.results.table import Table, table_of
from affserve.client.sequences.declared import as_done, processed_sequence
from affserve.client.sequences.kept_features import Block, FeatureKeeper, KeptFeatures
from affserve.client.sequences.row_merger import RowMerger
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.video.source import FrameSource, open_source
from affserve.export.contract import FEATURE_WIDTH
from affserve.train.windows import FrameAnswers, Outputs

if TYPE_CHECKING:
    from affserve.client.video.source import Progress


def analyze(
    source: str | Path | FrameSource, client: AffectClient, *, faces: str = LARGEST, raw: bool = False, every: int = 1
) -> Table:
    """Return what `affserve infer` writes of a source as columns by name: for `pandas.DataFrame(...)` or a plot.

    source: a video, an image, a folder of images, or one that is open. faces: largest, all, left or right.
    raw, every: see analyze_stream.
    VideoError: it cannot be read, or breaks off; `analyze_stream` yields the rows before that.
    """
    source = open_source(source) if isinstance(source, (str, Path)) else source
    cropper = Croppers(faces=FaceSettings(faces=faces)).cropper(source.already_cropped)
    head = as_done(client.describe(), raw=raw, every=every)
    return table_of(analyze_stream(source, client, cropper, raw=raw, every=every), head.labels)


def analyze_stream(
    source: str | Path | FrameSource,
    client: AffectClient,
    cropper: Cropper | None = None,
    *,
    seconds: StageSeconds | None = None,
    progress: Progress | None = None,
    raw: bool = False,
    every: int = 1,
    keeper: FeatureKeeper | None = None,
) -> Generator[Rows, None, None]:
    """Yield the rows of every frame of a source, in order, in blocks, as soon as no later frame can change them.

    source: a video, an image, a folder of images, or one that is open. cropper: unless given, the largest face of each
    frame, found by the default detector, or the frames themselves where they are crops already. raw: make nothing of
    the answers, whatever is declared. every: encode every n-th frame of a person. keeper: takes the features. A
    VideoError at the start says that the source cannot be read, at the end that it broke off, after the rows of what
    could be read.
    """
    if isinstance(source, (str, Path)):
        source = open_source(source)
    cropper = cropper or Croppers().cropper(source.already_cropped)
    seconds = seconds if seconds is not None else StageSeconds()
    head = as_done(client.describe(), raw=raw, every=every)

    def rows_of(blocks: Iterator[Block], patience_frames: int | None) -> Iterator[Rows]:
        sequence = lambda: processed_sequence(_Timed(client.sequence(), seconds), head)  # noqa: E731
        rows, done = RowMerger(sequence, head.labels, patience_frames), 0
        for frames, features in blocks:
            done += len(frames)
            # Rows come a window at a time; whoever waits wants to see more than that.
            if progress is not None:
                progress(done, source.frames_hint)
            yield from rows.push(frames, features)
        yield from rows.finish()

    if isinstance(source, KeptFeatures):
        source.check(head.encoder)
        yield from rows_of(source.blocks(), source.about["patience_frames"])
        source.raise_error()
        return
    with ReadAhead(source, cropper, seconds, every) as chunks:
        blocks = _encoded(chunks, client, seconds)
        yield from rows_of(keeper.passed(blocks) if keeper else blocks, cropper.patience_frames)
        chunks.raise_error()


def _encoded(chunks: Iterable[Chunk], client: AffectClient, seconds: StageSeconds) -> Iterator[Block]:
    """Yield the frames of each chunk with the features of their faces."""
    waiting: deque[list[SeenFrame]] = deque()
    early = np.empty((0, FEATURE_WIDTH), dtype=np.float32)  # of faces whose frame ends in the next chunk
    encoded = client.encode_stream(_crops(chunks, waiting))
    # It fetches its own chunks: the wait for these lies within.
    for features in seconds.timed("encode_wait_s", encoded, without="frames_wait_s"):
        frames = waiting.popleft()
        features = np.concatenate([early, features])
        faces = sum(frame.encoded for frame in frames)
        yield frames, features[:faces]
        early = features[faces:]


def _crops(chunks: Iterable[Chunk], waiting: deque[list[SeenFrame]]) -> Iterator[NDArray[np.uint8]]:
    for chunk in chunks:
        waiting.append(chunk.frames)
        yield chunk.crops


class _Timed:
    """A sequence whose waiting counts."""

    def __init__(self, sequence: FrameAnswers, seconds: StageSeconds) -> None:
        self._sequence = sequence
        self._seconds = seconds

    def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        return self._seconds.timed("head_s", self._sequence.push(features))

    def finish(self) -> Iterator[Outputs]:
        return self._seconds.timed("head_s", self._sequence.finish())
