"""Frames in as they happen, answers out with a bounded delay: what `affserve live` does between source and screen.

Faces, encoder and head are stages that overlap: while a frame is answered the next one is encoded, and the one after it
looked at; what waits for a stage goes to it together. A head that streams answers every frame, by the same rows as
`affserve infer` (row_merger.py): the same numbers. A head of the paper's form answers every `hop` frames (window.py).
A frame that comes while the machine is busy may be thinned out (frames.py): frames are dropped, delay is not. Like a
frame without a face, a dropped one repeats the feature before it, so that the time axis stays that of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.ahead import Ahead
from affserve.client.client import AffectClient
from affserve.client.faces.face import Cropper
from affserve.client.live.frames import LiveCounters, LiveFrame, LiveSource, NewestFrames, Pace, now_s
from affserve.client.live.looking import POLL_S, LookedAhead, LookedAt, Looker
from affserve.client.live.window import WindowAnswers
from affserve.client.results.rows import Rows
from affserve.client.sequences.declared import as_done, processed_sequence
from affserve.client.sequences.row_merger import RowMerger
from affserve.client.wire.calls import is_transient
from affserve.export.contract import HeadDescription
from affserve.train.errors import InferenceError, VideoError
from affserve.train.windows import WINDOW_FRAMES

DEFAULT_HOP_FRAMES = 10
BATCH_SHARE = 0.5  # of the time of a hop that the analysis of one batch may take before frames are dropped
STREAM_BATCH_S = 0.3  # the same of a head that streams: only a machine that is too slow for every frame comes near it
PATIENCE = 1.5  # hops of time after which frames are answered although a stalled source sends no more


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How often there are answers."""

    hop: int | None = None  # frames from one prediction to the next, for heads that see whole segments; None: 10
    raw: bool = False  # make nothing of the answers, whatever is declared

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Encoded:
    """Frames, and the features (n, 512) of their faces or why there are none."""

    frames: Sequence[LookedAt]
    features: NDArray[np.float32] | InferenceError


class LiveAnalysis:
    """The state between two frames of one source: the people in sight, and who waits for an answer."""

    def __init__(
        self, client: AffectClient, make_cropper: Callable[[], Cropper], settings: LiveSettings, counters: LiveCounters
    ) -> None:
        self._client = client
        head = as_done(client.describe(), raw=settings.raw)
        self.hop = settings.hop_of(head)  # frames from one answer to the next; None: every frame is answered
        room = min(head.window_frames, WINDOW_FRAMES)
        self._looker = Looker(make_cropper, room)
        self._rows: RowMerger | WindowAnswers = (
            RowMerger(
                lambda: processed_sequence(client.sequence(), head, causal=True),
                head.labels,
                self._looker.cropper.patience_frames or room,  # after so long a break everybody is new
            )
            if self.hop is None
            else WindowAnswers(client.predict, head, hop=self.hop, room=room)
        )
        self._counters = counters
        self._arrived_s: dict[int, float] = {}  # of the frames that wait, by their number

    @property
    def detector(self) -> str:
        """How faces are found."""
        return self._looker.cropper.name

    def run(self, source: LiveSource, stopped: Callable[[], bool] = lambda: False) -> Iterator[LiveAnswer]:
        """Yield answers until the source ends or `stopped` says so; VideoError when the source breaks off for good."""
        hop_s = None if self.hop is None else self.hop / source.fps
        pace = Pace(STREAM_BATCH_S if hop_s is None else BATCH_SHARE * hop_s)
        with (
            NewestFrames(source, self._counters) as newest,
            LookedAhead(newest, self._looker.look, pace) as looked,
            Ahead(self._encoding(looked, stopped), 1, "live-encoder") as batches,
        ):
            for encoded in batches:
                began_s = now_s()
                yield from self._answered(encoded)
                longest_s = began_s - min(self._arrived_s.values(), default=began_s)
                if hop_s is not None and not encoded.frames and longest_s > PATIENCE * hop_s:
                    yield from self.answer()
        yield from self.answer()

    def push(self, frames: Sequence[LiveFrame]) -> Iterator[LiveAnswer]:
        """Take the next frames; yield the answers that are ready."""
        yield from self._answered(self._encoded([self._looker.look(frame) for frame in frames]))

    def answer(self) -> Iterator[LiveAnswer]:
        """Yield the answers of all frames that wait for one."""
        yield from self._told(self._rows.finish())

    def _encoding(self, looked: LookedAhead, stopped: Callable[[], bool]) -> Iterator[_Encoded]:
        while not stopped() and (frames := looked.take(POLL_S)) is not None:
            yield self._encoded(frames)

    def _encoded(self, frames: Sequence[LookedAt]) -> _Encoded:
        crops = [crop for frame in frames for crop in frame.crops]
        try:
            return _Encoded(frames=frames, features=self._client.encode(crops))
        except InferenceError as error:
            return _Encoded(frames=frames, features=error)

    def _answered(self, encoded: _Encoded) -> Iterator[LiveAnswer]:
        self._arrived_s.update({frame.seen.index: frame.arrived_s for frame in encoded.frames})
        yield from self._told(self._rows_of(encoded))

    def _rows_of(self, encoded: _Encoded) -> Iterator[Rows]:
        if isinstance(encoded.features, InferenceError):
            raise encoded.features
        yield from self._rows.push([frame.seen for frame in encoded.frames], encoded.features)

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
