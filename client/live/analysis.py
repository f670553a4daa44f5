"""Frames in as they happen, answers out with a bounded delay: what `affserve live` does between source and screen.

What has arrived is cropped and encoded at once, in small batches. Every `hop` frames of the source the head sees the
trailing window of each person, at most 300 frames, and the frames since the last time get their answers from the
window's tail. So an answer waits hop / fps seconds at most, plus the time of computing. A frame that comes while the
machine is busy may be thinned out (frames.py): frames are dropped, delay is not. Like a frame without a face, a
dropped one repeats the feature before it, so that the window's time axis stays that of the source.

A live answer sees only what lies before it and in its own hop, `affserve infer` also what comes after, so the two
differ; `affserve bench live-answers` measures by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from affserve.client.client import AffectClient
from affserve.client.faces.face import Cropper, Face
from affserve.client.live.frames import LiveCounters, LiveFrame, LiveSource, NewestFrames, Pace, now_s
from affserve.client.live.window import LiveWindow
from affserve.client.results.rows import FaceRow, Rows, rows_of_faces
from affserve.client.wire.calls import is_transient
from affserve.export.contract import IMAGE_SIZE_PX
from affserve.train.errors import InferenceError, VideoError
from affserve.train.windows import WINDOW_FRAMES, Outputs

DEFAULT_HOP_FRAMES = 10
BATCH_SHARE = 0.5  # of the time of a hop that the analysis of one batch may take before frames are dropped
PATIENCE = 1.5  # hops of time after which frames are answered although a stalled source sends no more
POLL_S = 0.1  # how often a quiet source is left to see whether anyone wants to stop

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How often there are answers."""

    hop: int = DEFAULT_HOP_FRAMES  # frames of the source from one prediction to the next

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= WINDOW_FRAMES:
            raise VideoError(f"hop is {self.hop} frames, expected 1 to {WINDOW_FRAMES}, the length of the window")


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveAnswer:
    """The rows of the frames that were answered together, and how long each row waited: delay_s (n,) seconds."""

    rows: Rows
    delay_s: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A frame whose faces are in the windows and that has no answer yet."""

    index: int
    timestamp_s: float
    arrived_s: float
    faces: tuple[tuple[int, Face], ...]  # track_id and face, in the order of track_id


class LiveAnalysis:
    """The state between two frames of one source: the people in sight, their windows, and who waits for an answer."""

    def __init__(
        self, client: AffectClient, make_cropper: Callable[[], Cropper], settings: LiveSettings, counters: LiveCounters
    ) -> None:
        self._client = client
        self._make_cropper = make_cropper
        self._cropper = make_cropper()
        self._description = client.describe()
        self._hop = settings.hop
        self._room = min(self._description.window_frames, WINDOW_FRAMES)
        self._counters = counters
        self._windows: dict[int, LiveWindow] = {}
        self._unanswered: list[_Seen] = []
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
        hop_s = self._hop / source.fps
        pace = Pace(BATCH_SHARE * hop_s)
        with NewestFrames(source, self._counters) as newest:
            while not stopped() and (frames := newest.take(pace.most, POLL_S)) is not None:
                began_s = now_s()
                yield from self.push(frames)
                if frames:
                    pace.saw(len(frames), now_s() - began_s)
                elif self._unanswered and began_s - self._unanswered[0].arrived_s > PATIENCE * hop_s:
                    yield from self.answer()
        yield from self.answer()

    def push(self, frames: list[LiveFrame]) -> Iterator[LiveAnswer]:
        """Take the next frames; yield an answer where a hop is complete."""
        if not frames:
            return
        crops: list[NDArray[np.uint8]] = []
        seen = [self._seen(frame, crops) for frame in frames]
        features = self._from_server(lambda: self._client.encode(_stacked(crops)))
        if features is None:
            self._counters.lost += len(seen)
            return
        position = 0
        for frame in seen:
            if self._unanswered and frame.index - self._unanswered[0].index >= self._room:
                yield from self.answer()  # before this frame pushes one that waits out of its window
            for track, _ in frame.faces:
                self._windows.setdefault(track, LiveWindow(self._room)).push(frame.index, features[position])
                position += 1
            self._unanswered.append(frame)
            if frame.index - self._unanswered[0].index + 1 >= self._hop:
                yield from self.answer()

    def answer(self) -> Iterator[LiveAnswer]:
        """Yield the answers of all frames that wait for one."""
        frames, self._unanswered = self._unanswered, []
        if not frames:
            return
        predicted = self._from_server(lambda: self._predicted(frames))
        if predicted is None:
            self._counters.lost += len(frames)
            return
        answered_s = now_s()
        self._counters.analysed += len(frames)
        self._counters.delays.add(np.array([answered_s - frame.arrived_s for frame in frames]))
        rows = [row for frame in frames for row in self._rows(frame, predicted)]
        arrived_s = [frame.arrived_s for frame in frames for _ in frame.faces or (None,)]
        yield LiveAnswer(rows=rows_of_faces(rows, self._description.labels), delay_s=answered_s - np.array(arrived_s))
        self._forget(frames[-1].index)

    def _seen(self, frame: LiveFrame, crops: list[NDArray[np.uint8]]) -> _Seen:
        """Find the faces of a frame; append their crops."""
        image = frame.rgb()
        is_late = self._newest >= 0 and frame.index - self._newest >= self._room
        if is_late or image.shape != (self._shape or image.shape):
            # After so long a break, or in a picture of another size, whoever is seen is a new person.
            self._cropper, self._tracks = self._make_cropper(), self._highest + 1
        self._newest, self._shape = frame.index, image.shape
        found = self._cropper.crop(image)
        crops.extend(one.pixels for one in found)
        faces = tuple((self._tracks + one.track_id, one.face) for one in found)
        self._highest = max([self._highest, *(track for track, _ in faces)])
        return _Seen(index=frame.index, timestamp_s=frame.timestamp_s, arrived_s=frame.arrived_s, faces=faces)

    def _predicted(self, frames: list[_Seen]) -> dict[int, Outputs]:
        """Return what the head says about the windows of all people in these frames, by track_id."""
        tracks = sorted({track for frame in frames for track, _ in frame.faces})
        return {track: self._client.predict(self._windows[track].features()) for track in tracks}

    def _from_server(self, ask: Callable[[], T]) -> T | None:
        """Ask; None when the server is away, which costs the frames in question and nothing else."""
        try:
            answer = ask()
        except InferenceError as error:
            if not _is_away(error):
                raise
            return None
        return answer

    def _forget(self, newest: int) -> None:
        """Drop the windows that would start anew anyway."""
        self._windows = {track: window for track, window in self._windows.items() if not window.is_over_at(newest)}

    def _rows(self, frame: _Seen, predicted: dict[int, Outputs]) -> Iterator[FaceRow]:
        """Yield a row for each face, or one without."""
        if not frame.faces:
            yield FaceRow(frame.index, frame.timestamp_s)
        for track, face in frame.faces:
            answer = predicted[track], self._windows[track].position_of(frame.index)
            yield FaceRow(frame.index, frame.timestamp_s, track, face.box_px, face.score, answer)


def _stacked(crops: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(crops) if crops else np.empty((0, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)


def _is_away(error: InferenceError) -> bool:
    """Say whether the server may be back later: the client has repeated the call in vain for as long as it may."""
    cause = error.__cause__
    return isinstance(cause, InferenceServerException) and is_transient(cause)
