"""A frame as it waits for its rows."""

from __future__ import annotations

from dataclasses import dataclass

from affserve.client.faces.face import Face


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """A frame that has been looked at; its pixels are gone, those of its faces on their way to the encoder."""

    index: int
    timestamp_s: float
    faces: tuple[tuple[int, Face], ...]  # track_id and face, in the order of track_id
