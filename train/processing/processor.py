"""Answers of a head in, the same with what is made of them out; frame by frame as they come, or a whole video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from affserve.train.processing.filters import Chain, Series
from affserve.train.processing.record import PROCESSED, Processing
from affserve.train.windows import FrameAnswers, Outputs


class Processor:
    """Takes the answers of one person's frames in order and adds what is made of them, as task + PROCESSED.

    labels: of the head's tasks. causal: never look ahead: windows end at the frame, and what is known only afterwards
    is left out. Otherwise frames come out as late as the longest filter looks ahead.
    """

    def __init__(self, processing: Processing, labels: Mapping[str, Sequence[str]], *, causal: bool = False) -> None:
        self._chains = {task: Chain(record.stages(labels[task], causal=causal)) for task, record in processing.items()}
        self._waiting: dict[str, Series] = {}

    def push(self, outputs: Outputs) -> Outputs:
        """Take the next answers (n, K) by task; return those that are final, (m, K)."""
        made = {task + PROCESSED: chain.push(outputs[task]) for task, chain in self._chains.items()}
        return self._ready({**outputs, **made})

    def finish(self) -> Outputs:
        """Return what is left; the next answers are of another person."""
        left = {task + PROCESSED: chain.finish() for task, chain in self._chains.items()}
        ready = self._ready({key: values for key, values in left.items() if values is not None})
        self._waiting = {}
        return ready

    def _ready(self, new: Outputs) -> Outputs:
        for key, values in new.items():
            self._waiting[key] = np.concatenate([self._waiting[key], values]) if key in self._waiting else values
        frames = min(map(len, self._waiting.values()), default=0)
        ready = {key: values[:frames] for key, values in self._waiting.items()}
        self._waiting = {key: values[frames:] for key, values in self._waiting.items()}
        return ready


class ProcessedAnswers:
    """A sequence whose answers are processed; push and finish are those of what it wraps."""

    def __init__(self, answers: FrameAnswers, processor: Processor) -> None:
        self._answers = answers
        self._processor = processor

    def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        """Take the next features (N, D); yield the answers (n, K) that are final."""
        yield from map(self._processor.push, self._answers.push(features))

    def finish(self) -> Iterator[Outputs]:
        """Yield the answers that are still to come."""
        yield from map(self._processor.push, self._answers.finish())
        if left := self._processor.finish():
            yield left


def processed(outputs: Outputs, processing: Processing, labels: Mapping[str, Sequence[str]]) -> Outputs:
    """Return what is made of a whole video's answers (N, K) in place of the answers, by task."""
    processor = Processor(processing, labels)
    parts = processor.push(outputs), processor.finish()
    joined = {key: np.concatenate([part[key] for part in parts if key in part]) for key in parts[0]}
    return {task: joined.get(task + PROCESSED, joined[task]) for task in outputs}
