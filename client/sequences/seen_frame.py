"""A frame as it waits for its rows, and what its rows are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from affserve.client.faces.face import Face
from affserve.client.results.rows import FaceRow
from affserve.train.windows import Outputs


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """A frame that has been looked at; its pixels are gone, those of its faces on their way to the encoder."""

    index: int
    timestamp_s: float
    faces: tuple[tuple[int, Face], ...]  # track_id and face, in the order of track_id
    skipped: frozenset[int] = frozenset()  # of these people no crop is encoded: their features are interpolated

    @property
    def encoded(self) -> int:
        """How many of the faces are encoded."""
        return len(self.faces) - len(self.skipped)

    def rows(self, answers: Iterable[tuple[Outputs, int] | None]) -> Iterator[FaceRow]:
        """Yield a row for each face, or one without; answers: of each face a block of predictions and the row in it."""
        if not self.faces:
            yield FaceRow(self.index, self.timestamp_s)
        for (track_id, face), answer in zip(self.faces, answers, strict=True):
            seen = face.quality
            quality = (seen.yaw_deg, seen.roll_deg, seen.sharpness, seen.is_reliable(face.score))
            yield FaceRow(
                self.index,
                self.timestamp_s,
                track_id,
                face.box_px,
                face.score,
                quality,
                answer,
                track_id in self.skipped,
            )
