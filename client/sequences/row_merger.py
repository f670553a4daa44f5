"""The last half of the pipeline: frames and features in, finished rows out, one window per person held at most.

The same for a file and for what happens now; a head that streams holds nothing back but its look-ahead.

Every person has a sequence of features of their own, with one step per frame number from their first face on: a frame
in which they are not seen, and a number missing from a folder, repeat the feature before, as in training. A person who
stays away for longer than `patience_frames` has left: the sequence ends there, and if the number ever comes back it
begins anew. Rows leave in the order of frame and track_id, as soon as no later frame can change them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import Rows, rows_of_faces
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.train.windows import WINDOW_FRAMES, FrameAnswers, Outputs


@dataclass(kw_only=True, eq=False)
class _HeldFrame:
    """A frame that waits for the predictions of its faces."""

    seen: SeenFrame
    answers: list[tuple[Outputs, int] | None] = field(default_factory=list)  # per face: a block, and the row in it
    missing: int = 0  # answers


class _Sequence:
    """The features of one person, and where their predictions belong."""

    def __init__(self, head: FrameAnswers) -> None:
        self._head = head
        self._batch: list[NDArray[np.float32]] = []  # steps that the head has not seen
        self._asked = False  # whether any of them waits for an answer
        self._places: deque[tuple[_HeldFrame, int] | None] = deque()  # of steps without an answer; None: nobody asks
        self._last: NDArray[np.float32] | None = None
        self._skipped: list[tuple[_HeldFrame, int]] = []  # places of the steps since, whose features lie in between
        self.unseen = 0  # steps since the last face

    def see(self, feature: NDArray[np.float32], frame: _HeldFrame, place: int) -> None:
        """Take the next step with a feature (D,)."""
        self.unseen = 0
        self._interpolate(feature)
        self._step(feature, (frame, place))

    def skip(self, frame: _HeldFrame, place: int) -> None:
        """Take the next step with a face that was not encoded."""
        self.unseen = 0
        self._skipped.append((frame, place))

    def _interpolate(self, until: NDArray[np.float32] | None) -> None:
        """Give the skipped steps features between the last one and `until`; None: the last one's."""
        start, skipped, self._skipped = self._last, self._skipped, []
        for k, place in enumerate(skipped, start=1):
            if start is not None:
                share = np.float32(k / (len(skipped) + 1))
                self._step(start if until is None else (1 - share) * start + share * until, place)

    def hold(self) -> None:
        """Take the next step without a face."""
        self._interpolate(None)
        if self._last is not None:
            self.unseen += 1
            self._step(self._last, None)

    def _step(self, feature: NDArray[np.float32], place: tuple[_HeldFrame, int] | None) -> None:
        self._last = feature
        self._batch.append(feature)
        self._places.append(place)
        self._asked = self._asked or place is not None

    def flush(self, *, more_follow: bool = False) -> None:
        """Predict what can be predicted now; while nobody asks, or more frames follow, only what fills memory."""
        if len(self._batch) >= WINDOW_FRAMES or (self._asked and not more_follow):
            self._flush()

    def end(self) -> None:
        """Predict the rest."""
        self._interpolate(None)
        self._flush()
        self._answer(self._head.finish())

    def _flush(self) -> None:
        batch, self._batch, self._asked = self._batch, [], False
        if batch:
            self._answer(self._head.push(np.stack(batch)))

    def _answer(self, blocks: Iterator[Outputs]) -> None:
        for outputs in blocks:
            for row in range(len(next(iter(outputs.values())))):
                place = self._places.popleft()
                if place is not None:
                    frame, face = place
                    frame.answers[face] = (outputs, row)
                    frame.missing -= 1


class RowMerger:
    """Joins frames with the predictions for their faces.

    sequence: returns what answers a new person's frames, such as `AffectClient.sequence`. patience_frames:
    `Cropper.patience_frames`; None: nobody ever leaves. An error in between loses no frame where the head loses none.
    """

    def __init__(
        self,
        sequence: Callable[[], FrameAnswers],
        labels: Mapping[str, tuple[str, ...]],
        patience_frames: int | None = None,
    ) -> None:
        self._new_sequence = sequence
        self._labels = labels
        self._patience = patience_frames
        self._sequences: dict[int, _Sequence] = {}  # of the people who have not left
        self._leaving: list[_Sequence] = []
        self._held: deque[_HeldFrame] = deque()
        self._last_index: int | None = None

    @property
    def waiting(self) -> list[int]:
        """The numbers of the frames whose rows are still to come."""
        return [held.seen.index for held in self._held]

    def push(self, frames: Sequence[SeenFrame], features: NDArray[np.float32]) -> Iterator[Rows]:
        """Take the next frames and the features (n, D) of those encoded in order; yield the rows that are final."""
        unused = iter(features)
        for frame in frames:
            if self._last_index is not None:
                self._skip(frame.index)
            self._last_index = frame.index
            self._take(frame, unused)
        self._ask()
        yield from self._finished()

    def finish(self) -> Iterator[Rows]:
        """Yield the rows that are still held; whoever is seen after this is new."""
        self._leaving += self._sequences.values()
        self._sequences.clear()
        self._ask()
        yield from self._finished()

    def _ask(self) -> None:
        """Have the head answer."""
        while self._leaving:
            self._leaving[0].end()
            del self._leaving[0]
        for sequence in self._sequences.values():
            sequence.flush()

    def _skip(self, until: int) -> None:
        """Let time pass over frame numbers that do not exist."""
        while self._sequences and self._last_index is not None and self._last_index < until - 1:
            self._last_index += 1
            self._hold(set())
            for sequence in self._sequences.values():
                sequence.flush(more_follow=True)  # a gap may be longer than memory should hold

    def _take(self, frame: SeenFrame, features: Iterator[NDArray[np.float32]]) -> None:
        held = _HeldFrame(seen=frame, answers=[None] * len(frame.faces), missing=len(frame.faces))
        self._held.append(held)
        for place, (track_id, _) in enumerate(frame.faces):
            if track_id not in self._sequences:
                self._sequences[track_id] = _Sequence(self._new_sequence())
            if track_id in frame.skipped:
                self._sequences[track_id].skip(held, place)
            else:
                self._sequences[track_id].see(next(features), held, place)
        self._hold({track_id for track_id, _ in frame.faces})

    def _hold(self, seen: set[int]) -> None:
        """Repeat the last feature of everybody else, and let go of those who have left."""
        for track_id in [track_id for track_id in self._sequences if track_id not in seen]:
            sequence = self._sequences[track_id]
            sequence.hold()
            if self._patience is not None and sequence.unseen > self._patience:
                self._leaving.append(self._sequences.pop(track_id))

    def _finished(self) -> Iterator[Rows]:
        frames: list[_HeldFrame] = []
        while self._held and not self._held[0].missing:
            frames.append(self._held.popleft())
        if frames:
            yield rows_of_faces([row for frame in frames for row in frame.seen.rows(frame.answers)], self._labels)
