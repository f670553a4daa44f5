"""Live answers of a head of the paper's form, which sees whole segments: from the trailing window of each person.

Every `hop` frames of the source the head sees the trailing windows, at most 300 frames, and the frames since the last
time get their answers from the windows' tails. So an answer waits hop / fps seconds at most, plus the time of
computing. It sees only what lies before it and in its own hop, `affserve infer` also what comes after: the two differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import FaceRow, Rows, rows_of_faces
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.export.contract import FEATURE_WIDTH, HeadDescription
from affserve.train.processing.processor import Processor
from affserve.train.windows import WINDOW_FRAMES, Outputs, PredictWindow


class LiveWindow:
    """At most `room` features, one per frame number.

    A frame number without a feature (no face, or dropped) repeats the feature before it, as in training. Where a gap is
    as long as the window, nothing but repetitions would be left: the window starts anew.
    """

    def __init__(self, room: int = WINDOW_FRAMES) -> None:
        self._features = np.empty((0, FEATURE_WIDTH), dtype=np.float32)  # oldest first
        self._room = room
        self.newest = -1  # frame number of the last feature

    def __len__(self) -> int:
        return len(self._features)

    def push(self, frame: int, feature: NDArray[np.float32]) -> None:
        """Take the feature (512,) of a frame; frames come in ascending order, with or without gaps."""
        if frame <= self.newest:
            raise ValueError(f"frame {frame} comes after frame {self.newest}, expected ascending numbers")
        kept = self._features[:0] if self.is_over_at(frame) else self._features
        held = np.repeat(kept[-1:], frame - self.newest - 1, axis=0)
        self._features = np.concatenate([kept, held, feature[None]])[-self._room :]
        self.newest = frame

    def is_over_at(self, frame: int) -> bool:
        """Say whether a feature at this frame number would start the window anew."""
        return frame - self.newest >= self._room

    def features(self) -> NDArray[np.float32]:
        """Return the window (T, 512), oldest first, T <= room."""
        return self._features

    def position_of(self, frame: int) -> int:
        """Return the row of a frame number in `features()`."""
        position = len(self) - 1 - (self.newest - frame)
        if not 0 <= position < len(self):
            first = self.newest - len(self) + 1
            raise ValueError(f"frame {frame} is not in the window, which holds {first} to {self.newest}")
        return position


class WindowAnswers:
    """Rows of the frames of one source; what `RowMerger` is for heads that stream.

    A frame that is answered while the server is away has no rows, and is not answered later.
    """

    def __init__(self, predict: PredictWindow, head: HeadDescription, *, hop: int, room: int) -> None:
        """room: frames of a window."""
        self._predict = predict
        self._labels = head.labels
        self._processing = partial(Processor, head.processing, head.labels, causal=True) if head.processing else None
        self._processors: dict[int, tuple[Processor, int]] = {}  # by track_id, with the newest frame each has had
        self._hop = hop
        self._room = room
        self._windows: dict[int, LiveWindow] = {}  # by track_id
        self._unanswered: list[SeenFrame] = []

    @property
    def waiting(self) -> list[int]:
        """The numbers of the frames whose rows are still to come."""
        return [frame.index for frame in self._unanswered]

    def push(self, frames: Sequence[SeenFrame], features: NDArray[np.float32]) -> Iterator[Rows]:
        """Take the next frames and the features (n, 512) of their faces; yield rows where a hop is complete."""
        unused = iter(features)
        for frame in frames:
            if self._unanswered and frame.index - self._unanswered[0].index >= self._room:
                yield from self.finish()  # before this frame pushes one that waits out of its window
            for track, _ in frame.faces:
                self._windows.setdefault(track, LiveWindow(self._room)).push(frame.index, next(unused))
            self._unanswered.append(frame)
            if frame.index - self._unanswered[0].index + 1 >= self._hop:
                yield from self.finish()

    def finish(self) -> Iterator[Rows]:
        """Yield the rows of all frames that wait for theirs."""
        frames, self._unanswered = self._unanswered, []
        if not frames:
            return
        tracks = sorted({track for frame in frames for track, _ in frame.faces})
        predicted = {track: self._processed(track, self._predict(self._windows[track].features())) for track in tracks}
        yield rows_of_faces([row for frame in frames for row in self._rows(frame, predicted)], self._labels)
        newest = frames[-1].index  # windows that would start anew anyway are dropped
        self._windows = {track: window for track, window in self._windows.items() if not window.is_over_at(newest)}
        self._processors = {track: one for track, one in self._processors.items() if track in self._windows}

    def _processed(self, track: int, outputs: Outputs) -> Outputs:
        """Add what is made of the answers since the last time; what was answered before is not looked at again."""
        if self._processing is None:
            return outputs
        window = self._windows[track]
        processor, until = self._processors.get(track, (None, -1))
        new = min(window.newest - until, len(window))
        if processor is None or new < window.newest - until:  # the window began anew
            processor = self._processing()
        self._processors[track] = processor, window.newest
        made = processor.push({task: values[-new:] for task, values in outputs.items()})
        before = len(window) - new
        return {key: np.pad(values, ((before, 0), (0, 0)), constant_values=np.nan) for key, values in made.items()}

    def _rows(self, frame: SeenFrame, predicted: dict[int, Outputs]) -> Iterator[FaceRow]:
        return frame.rows((predicted[track], self._windows[track].position_of(frame.index)) for track, _ in frame.faces)
