"""The last half of the pipeline: frames and features in, finished rows out, one window held at most."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from affserve.client.read_ahead import SeenFrame
from affserve.client.results import NO_TRACK, Rows
from affserve.export.contract import HeadDescription
from affserve.train.windows import Outputs, OverlapMerger, PredictWindow


class RowMerger:
    """Joins frames with the predictions of the windows that they lie in.

    The sequence that the head sees starts at the first face and has one step per frame number: a frame without a face,
    and a number missing from a folder, repeat the feature before them.
    """

    def __init__(self, predict: PredictWindow, description: HeadDescription) -> None:
        self._labels = description.labels
        self._window = description.window_frames
        self._merger = OverlapMerger(predict, description.window_frames, description.stride_frames)
        self._waiting: deque[SeenFrame | None] = deque()  # None: a number without a frame, which gets no row
        self._last: tuple[int, NDArray[np.float32]] | None = None  # number and feature of the last step

    def push(self, frames: list[SeenFrame], features: NDArray[np.float32]) -> Iterator[Rows]:
        """Take the next frames and the features (n, 512) of those with a face; yield the rows that are final."""
        if self._last is None:
            leading = next((k for k, frame in enumerate(frames) if frame.faces), len(frames))
            yield from self._rows(frames[:leading], None)
            frames = frames[leading:]
        steps = self._steps(frames, features)
        # A gap may be longer than memory should hold, so steps go on a window at a time.
        while batch := list(islice(steps, self._window)):
            self._waiting.extend(frame for frame, _ in batch)
            for outputs in self._merger.push(np.stack([feature for _, feature in batch])):
                yield from self._merged(outputs)

    def finish(self) -> Iterator[Rows]:
        """Yield the rows that are still held."""
        for outputs in self._merger.finish():
            yield from self._merged(outputs)

    def _steps(
        self, frames: Sequence[SeenFrame], features: NDArray[np.float32]
    ) -> Iterator[tuple[SeenFrame | None, NDArray[np.float32]]]:
        unused = iter(features)
        for frame in frames:
            if self._last is not None:
                number, held = self._last
                yield from ((None, held) for _ in range(number + 1, frame.index))
            feature = next(unused) if frame.faces or self._last is None else self._last[1]
            self._last = (frame.index, feature)
            yield frame, feature

    def _merged(self, outputs: Outputs) -> Iterator[Rows]:
        steps = [self._waiting.popleft() for _ in range(len(next(iter(outputs.values()))))]
        kept = [k for k, frame in enumerate(steps) if frame is not None]
        frames = [frame for frame in steps if frame is not None]
        yield from self._rows(frames, {task: values[kept] for task, values in outputs.items()})

    def _rows(self, frames: Sequence[SeenFrame], outputs: Outputs | None) -> Iterator[Rows]:
        if not frames:
            return
        faces = [frame.faces[0].face if frame.faces else None for frame in frames]
        faceless = np.array([face is None for face in faces])
        predictions: Outputs = {}
        for task, names in self._labels.items():
            empty = np.full((len(frames), len(names)), np.nan, dtype=np.float32)
            predictions[task] = empty if outputs is None else np.where(faceless[:, None], empty, outputs[task])
        nowhere = (np.nan,) * 4
        tracks = [frame.faces[0].track_id if frame.faces else NO_TRACK for frame in frames]
        yield Rows(
            frame=np.array([frame.index for frame in frames], dtype=np.int64),
            timestamp_s=np.array([frame.timestamp_s for frame in frames], dtype=np.float64),
            track_id=np.array(tracks, dtype=np.int64),
            box_px=np.array([face.box_px if face else nowhere for face in faces], dtype=np.float64),
            face_score=np.array([face.score if face else np.nan for face in faces], dtype=np.float64),
            predictions=predictions,
        )
