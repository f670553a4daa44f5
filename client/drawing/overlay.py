"""The source once more, with what the rows say drawn on it: same frames, same times, same sound.

The rows are read from the finished file in step with decoding, so memory stays flat; the video appears only when whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.drawing.canvas import Canvas
from affserve.client.drawing.overlay_marks import Marks, draw_notice
from affserve.client.drawing.plots import SYNTHETIC_NOTICE
from affserve.client.results.output_file import staged, write_whole
from affserve.client.results.rows import NO_TRACK, Rows, SeenPerson
from affserve.client.video.source import Frame, FrameSource, ImageSource, Progress
from affserve.client.video.writer import VideoWriter
from affserve.export.contract import HeadDescription
from affserve.train.errors import OutputError, VideoError
from affserve.train.provenance import SYNTHETIC


def draw_overlay(
    source: FrameSource,
    rows: Iterator[Rows],
    description: HeadDescription,
    path: Path,
    *,
    names: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write the overlay of a source, of which `rows` is the finished result; return what a user should know about it.

    An image becomes an image, everything else a video. names: of people who are not to be called by their numbers.
    OutputError: it cannot be written.
    """
    marks = Marks(description.labels, names)
    frames = _drawn(source, rows, description, marks, progress)
    if isinstance(source, ImageSource):
        for frame in frames:
            write_whole(path, _encoded(frame.image, path))
        return ()
    with staged(path) as part, VideoWriter(part, path.suffix, source) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.notices


def _drawn(
    source: FrameSource, rows: Iterator[Rows], description: HeadDescription, marks: Marks, progress: Progress | None
) -> Iterator[Frame]:
    """Yield the frames with everything drawn; a source that breaks off ends here as it did in the rows."""
    people = _PeopleInStep(rows)
    try:
        for done, frame in enumerate(source, start=1):
            canvas = Canvas(np.array(frame.image))
            marks.draw(canvas, people.of(frame.index))
            if description.trained_on == SYNTHETIC:
                draw_notice(canvas, SYNTHETIC_NOTICE)
            if progress is not None:
                progress(done, source.frames_hint)
            yield Frame(index=frame.index, timestamp_s=frame.timestamp_s, image=canvas.image)
    except VideoError:
        return


class _PeopleInStep:
    """The rows of one frame after the other, read as they are needed."""

    def __init__(self, blocks: Iterator[Rows]) -> None:
        self._rows = ((rows, k) for rows in blocks for k in range(len(rows)))
        self._next = next(self._rows, None)

    def of(self, frame: int) -> Sequence[SeenPerson]:
        """Return the people in a frame; frames are asked for in order."""
        people = []
        while self._next is not None and (place := self._next)[0].frame[place[1]] <= frame:
            block, k = place
            if block.frame[k] == frame and block.track_id[k] != NO_TRACK:
                people.append(block.person(k))
            self._next = next(self._rows, None)
        return people


def _encoded(image: NDArray[np.uint8], path: Path) -> bytes:
    good, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not good:
        raise OutputError(f"{path} cannot be written as an image of {image.shape[1]}x{image.shape[0]} pixels")
    return content.tobytes()
