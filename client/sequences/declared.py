"""What a server declares to be made of its head's answers, as it is done: the labels of the rows, and each sequence."""

from __future__ import annotations

from dataclasses import replace

from affserve.client.results.rows import INTERPOLATED
from affserve.export.contract import HeadDescription
from affserve.train.processing.processor import ProcessedAnswers, Processor
from affserve.train.processing.record import processed_labels
from affserve.train.windows import FrameAnswers


def as_done(head: HeadDescription, *, raw: bool, every: int = 1) -> HeadDescription:
    """Return what the rows hold: a head's description with the labels of what is made of its answers.

    raw: make nothing of them. every: of how many frames one is encoded.
    """
    processing = {} if raw else head.processing
    labels = processed_labels(dict(head.labels), processing)
    marks = {INTERPOLATED: (INTERPOLATED,)} if every > 1 else {}
    return replace(head, labels={**marks, **labels}, processing=processing)


def processed_sequence(answers: FrameAnswers, head: HeadDescription, *, causal: bool = False) -> FrameAnswers:
    """Return a person's sequence with what is made of its answers; head: of `as_done`."""
    if not head.processing:
        return answers
    return ProcessedAnswers(answers, Processor(head.processing, head.labels, causal=causal))
