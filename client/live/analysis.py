"""Frames in as they happen, answers out with a bounded delay: what `affserve live` does between source and screen.

What has arrived is cropped and encoded at once, in small batches. A head that streams answers every frame then, by the
same rows as `affserve infer` (row_merger.py): the same numbers. A head of the paper's form answers every `hop` frames
(window.py). A frame that comes while the machine is busy may be thinned out (frames.py): frames are dropped, delay is
not. Like a frame without a face, a dropped one repeats the feature before it, so that the time axis stays that of the
source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.client import AffectClient
from affserve.client.faces.face import Cropper
from affserve.client.live.frames import LiveCounters, LiveFrame, LiveSource, NewestFrames, Pace, now_s
from affserve.client.live.window import WindowAnswers
from affserve.client.results.rows import Rows
from affserve.client.sequences.row_merger import RowMerger
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.wire.calls import is_transient
from affserve.export.contract import IMAGE_SIZE_PX, HeadDescription
from affserve.train.errors import InferenceError, VideoError
from affserve.train.windows import WINDOW_FRAMES

DEFAULT_HOP_FRAMES = 10
BATCH_SHARE = 0.5  # of the time of a hop that the analysis of one batch may take before frames are dropped
STREAM_BATCH_S = 0.05  # the same of a head that streams: with as long a wait before it, a tenth of a second
PATIENCE = 1.5  # hops of time after which frames are answered although a stalled source sends no more
POLL_S = 0.1  # how often a quiet source is left to see whether anyone wants to stop


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How often there are answers."""

    hop: int | None = None  # frames from one prediction to the next, for heads that see whole segments; None: 10

    def __post_init__(self) -> None:
        if self.hop is not None and not 1 <= self.hop <= WINDOW_FRAMES:
            raise VideoError(f"hop is {self.hop} frames, expected 1 to {WINDOW_FRAMES}, the length of the window")

    def hop_of(self, head: HeadDescription) -> int | None:
        """Return the hop that a head needs; None for one that streams. VideoError where a hop makes no sense."""
        if head.stream is None:
            return self.hop or DEFAULT_HOP_FRAMES
        if self.hop is not None:
            raise VideoError(f"--hop {self.hop} is for heads that see whole segments; this one answers every frame")
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveAnswer:
    """The rows of the frames that were answered together, and how long each row waited: delay_s (n,) seconds."""

    rows: Rows
    delay_s: NDArray[np.float64]


class FrameRows(Protocol):
    """Joins frames with what the head says about their faces."""

    @property
    def waiting(self) -> list[int]:
        """The numbers of the frames whose rows are still to come."""
        ...

    def push(self, frames: Sequence[SeenFrame], features: NDArray[np.float32]) -> Iterator[Rows]:
        """Take the next frames and the features (n, 512) of their faces in order; yield the rows that are final."""
        ...

    def finish(self) -> Iterator[Rows]:
        """Yield the rows that are still to come."""
        ...


class LiveAnalysis:
    """The state between two frames of one source: the people in sight, and who waits for an answer."""

    def __init__(
        self, client: AffectClient, make_cropper: Callable[[], Cropper], settings: LiveSettings, counters: LiveCounters
    ) -> None:
        self._client = client
        self._make_cropper = make_cropper
        self._cropper = make_cropper()
        head = client.describe()
        self.hop = settings.hop_of(head)  # frames from one answer to the next; None: every frame is answered
        self._room = min(head.window_frames, WINDOW_FRAMES)
        self._rows: FrameRows = (
            RowMerger(client.sequence, head.labels, self._cropper.patience_frames)
            if self.hop is None
            else WindowAnswers(client.predict, head.labels, hop=self.hop, room=self._room)
        )
        self._counters = counters
        self._arrived_s: dict[int, float] = {}  # of the frames that wait, by their number
        self._newest = -1  # frame number
        self._shape: tuple[int, ...] | None = None  # of the last image
        self._tracks = 0  # that earlier croppers have numbered
        self._highest = -1  # track_id so far

    @property
    def detector(self) -> str:
        """How faces are found."""
        return self._cropper.name

    def run(self, source: LiveSource, stopped: Callable[[], bool] = lambda: False) -> Iterator[LiveAnswer]:
        """Yield answers until the source ends or `stopped` says so; VideoError when the source breaks off for good."""
        hop_s = None if self.hop is None else self.hop / source.fps
        pace = Pace(STREAM_BATCH_S if hop_s is None else BATCH_SHARE * hop_s)
        with NewestFrames(source, self._counters) as newest:
            while not stopped() and (frames := newest.take(pace.most, POLL_S)) is not None:
                began_s = now_s()
                yield from self.push(frames)
                if frames:
                    pace.saw(len(frames), now_s() - began_s)
                elif hop_s is not None and began_s - min(self._arrived_s.values(), default=began_s) > PATIENCE * hop_s:
                    yield from self.answer()
        yield from self.answer()

    def push(self, frames: Sequence[LiveFrame]) -> Iterator[LiveAnswer]:
        """Take the next frames; yield the answers that are ready."""
        seen: list[SeenFrame] = []
        crops: list[NDArray[np.uint8]] = []
        for frame in frames:
            image = frame.rgb()
            if self._breaks_off(frame.index, image.shape):
                # After so long a break, or in a picture of another size, whoever is seen is a new person.
                yield from self._answered(seen, crops)
                yield from self.answer()
                self._cropper, self._tracks = self._make_cropper(), self._highest + 1
                seen, crops = [], []
            self._newest, self._shape = frame.index, image.shape
            seen.append(self._look_at(frame, image, crops))
        yield from self._answered(seen, crops)

    def answer(self) -> Iterator[LiveAnswer]:
        """Yield the answers of all frames that wait for one."""
        yield from self._told(self._rows.finish())

    def _breaks_off(self, index: int, shape: tuple[int, ...]) -> bool:
        is_late = self._newest >= 0 and index - self._newest >= self._room
        return is_late or shape != (self._shape or shape)

    def _look_at(self, frame: LiveFrame, image: NDArray[np.uint8], crops: list[NDArray[np.uint8]]) -> SeenFrame:
        """Find the faces of a frame; append their crops."""
        found = self._cropper.crop(image)
        crops.extend(one.pixels for one in found)
        faces = tuple((self._tracks + one.track_id, one.face) for one in found)
        self._highest = max([self._highest, *(track for track, _ in faces)])
        self._arrived_s[frame.index] = frame.arrived_s
        return SeenFrame(index=frame.index, timestamp_s=frame.timestamp_s, faces=faces)

    def _answered(self, seen: Sequence[SeenFrame], crops: Sequence[NDArray[np.uint8]]) -> Iterator[LiveAnswer]:
        if seen:
            yield from self._told(self._rows_of(seen, crops))

    def _rows_of(self, seen: Sequence[SeenFrame], crops: Sequence[NDArray[np.uint8]]) -> Iterator[Rows]:
        none = np.empty((0, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
        yield from self._rows.push(seen, self._client.encode(np.stack(crops) if crops else none))

    def _told(self, blocks: Iterator[Rows]) -> Iterator[LiveAnswer]:
        """Yield blocks of rows with their delays; a server that is away costs frames and nothing else."""
        try:
            for rows in blocks:
                yield self._answer(rows)
        except InferenceError as error:
            if not _is_away(error):
                raise
        for number in self._arrived_s.keys() - set(self._rows.waiting):
            del self._arrived_s[number]
            self._counters.lost += 1

    def _answer(self, rows: Rows) -> LiveAnswer:
        answered_s = now_s()
        delay_s = answered_s - np.array([self._arrived_s[number] for number in rows.frame.tolist()])
        numbers, first = np.unique(rows.frame, return_index=True)
        for number in numbers.tolist():
            del self._arrived_s[number]
        self._counters.analysed += len(numbers)
        self._counters.delays.add(delay_s[first])
        return LiveAnswer(rows=rows, delay_s=delay_s)


def _is_away(error: InferenceError) -> bool:
    """Say whether the server may be back later: the client has repeated the call in vain for as long as it may."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and is_transient(cause)
