"""The last half of the pipeline: frames and features in, finished rows out, one window per person held at most.

Every person has a sequence of features of their own, with one step per frame number from their first face on: a frame
in which they are not seen, and a number missing from a folder, repeat the feature before, as in training. A person who
stays away for longer than `patience_frames` has left: the sequence ends there, and if the number ever comes back it
begins anew. Rows leave in the order of frame and track_id, as soon as no later frame can change them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affserve.client.infer.read_ahead import SeenFrame
from affserve.client.results.rows import FaceRow, Rows, rows_of_faces
from affserve.export.contract import HeadDescription
from affserve.train.windows import Outputs, OverlapMerger, PredictWindow


@dataclass(kw_only=True, eq=False)
class _HeldFrame:
    """A frame that waits for the predictions of its faces."""

    seen: SeenFrame
    answers: list[tuple[Outputs, int] | None] = field(default_factory=list)  # per face: a block, and the row in it
    missing: int = 0  # answers

    def rows(self) -> Iterator[FaceRow]:
        """Yield a row for each face, or one without."""
        seen = self.seen
        if not seen.faces:
            yield FaceRow(seen.index, seen.timestamp_s)
        for (track_id, face), answer in zip(seen.faces, self.answers, strict=True):
            yield FaceRow(seen.index, seen.timestamp_s, track_id, face.box_px, face.score, answer)


class _Sequence:
    """The features of one person, and where their predictions belong."""

    def __init__(self, merger: OverlapMerger, window: int) -> None:
        self._merger = merger
        self._window = window
        self._batch: list[NDArray[np.float32]] = []  # steps that the merger has not seen
        self._places: deque[tuple[_HeldFrame, int] | None] = deque()  # of steps without an answer; None: nobody asks
        self._last: NDArray[np.float32] | None = None
        self.unseen = 0  # steps since the last face

    def see(self, feature: NDArray[np.float32], frame: _HeldFrame, place: int) -> None:
        """Take the next step with a feature (D,)."""
        self.unseen = 0
        self._step(feature, (frame, place))

    def hold(self) -> None:
        """Take the next step without a face."""
        if self._last is not None:
            self.unseen += 1
            self._step(self._last, None)

    def _step(self, feature: NDArray[np.float32], place: tuple[_HeldFrame, int] | None) -> None:
        self._last = feature
        self._batch.append(feature)
        self._places.append(place)
        if len(self._batch) == self._window:  # a gap may be longer than memory should hold
            self.flush()

    def flush(self) -> None:
        """Predict what can be predicted now."""
        batch, self._batch = self._batch, []
        if batch:
            self._answer(self._merger.push(np.stack(batch)))

    def end(self) -> None:
        """Predict the rest."""
        self.flush()
        self._answer(self._merger.finish())

    def _answer(self, blocks: Iterator[Outputs]) -> None:
        for outputs in blocks:
            for row in range(len(next(iter(outputs.values())))):
                place = self._places.popleft()
                if place is not None:
                    frame, face = place
                    frame.answers[face] = (outputs, row)
                    frame.missing -= 1


class RowMerger:
    """Joins frames with the predictions of the windows that their faces lie in.

    patience_frames: `Cropper.patience_frames`; None: nobody ever leaves.
    """

    def __init__(
        self, predict: PredictWindow, description: HeadDescription, patience_frames: int | None = None
    ) -> None:
        self._predict = predict
        self._description = description
        self._patience = patience_frames
        self._sequences: dict[int, _Sequence] = {}  # of the people who have not left
        self._held: deque[_HeldFrame] = deque()
        self._last_index: int | None = None

    def push(self, frames: Sequence[SeenFrame], features: NDArray[np.float32]) -> Iterator[Rows]:
        """Take the next frames and the features (n, D) of their faces in order; yield the rows that are final."""
        unused = iter(features)
        for frame in frames:
            if self._last_index is not None:
                self._skip(frame.index - self._last_index - 1)
            self._last_index = frame.index
            self._take(frame, unused)
        for sequence in self._sequences.values():
            sequence.flush()
        yield from self._finished()

    def finish(self) -> Iterator[Rows]:
        """Yield the rows that are still held."""
        for sequence in self._sequences.values():
            sequence.end()
        self._sequences.clear()
        yield from self._finished()

    def _skip(self, numbers: int) -> None:
        """Let time pass over frame numbers that do not exist."""
        for _ in range(numbers):
            if not self._sequences:
                return
            self._hold(set())

    def _take(self, frame: SeenFrame, features: Iterator[NDArray[np.float32]]) -> None:
        held = _HeldFrame(seen=frame, answers=[None] * len(frame.faces), missing=len(frame.faces))
        self._held.append(held)
        for place, (track_id, _) in enumerate(frame.faces):
            if track_id not in self._sequences:
                self._sequences[track_id] = self._new_sequence()
            self._sequences[track_id].see(next(features), held, place)
        self._hold({track_id for track_id, _ in frame.faces})

    def _hold(self, seen: set[int]) -> None:
        """Repeat the last feature of everybody else, and let go of those who have left."""
        for track_id in [track_id for track_id in self._sequences if track_id not in seen]:
            sequence = self._sequences[track_id]
            sequence.hold()
            if self._patience is not None and sequence.unseen > self._patience:
                sequence.end()
                del self._sequences[track_id]

    def _new_sequence(self) -> _Sequence:
        window, stride = self._description.window_frames, self._description.stride_frames
        return _Sequence(OverlapMerger(self._predict, window, stride), window)

    def _finished(self) -> Iterator[Rows]:
        frames: list[_HeldFrame] = []
        while self._held and not self._held[0].missing:
            frames.append(self._held.popleft())
        if frames:
            yield rows_of_faces([row for frame in frames for row in frame.rows()], self._description.labels)
