"""A result averaged over time, person by person: what a plot of any length needs.

In come the rows, twice and block by block, out come at most `most_bins` steps for each of the people seen longest, so
that neither memory nor the picture grows with the length of the video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.rows import NO_TRACK, Rows

MOST_BINS = 1200  # steps on the time axis, about one per pixel
MOST_PEOPLE = 4  # drawn; more would be no picture but a scroll
STILL_S = 1.0  # width that a single frame is drawn with

ReadRows = Callable[[], Iterator[Rows]]
"""Begins to read the rows of a result, from the start."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """One person's result averaged into B consecutive bins.

    edges_s: (B + 1,) limits of the bins. values: (B, K) mean per task, NaN where no frame of a bin shows the face.
    frames: with this person's face.
    """

    track_id: int
    frames: int
    edges_s: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    faceless: NDArray[np.bool_]  # (B,)


@dataclass(frozen=True, kw_only=True)
class _Extent:
    """What the first reading finds."""

    frames: int
    first_s: float
    last_s: float
    seen: Mapping[int, int]  # track_id -> frames

    @property
    def interval_s(self) -> float:
        """Mean time from one frame to the next."""
        return (self.last_s - self.first_s) / (self.frames - 1) if self.frames > 1 else STILL_S


def read_timelines(
    read: ReadRows, labels: Mapping[str, Sequence[str]], *, most_bins: int = MOST_BINS, most_people: int = MOST_PEOPLE
) -> list[Timeline]:
    """Average a result into bins of equally many frames, for the people seen in most frames, in order of appearance.

    Where no face was found at all, there is one timeline without values.
    """
    extent = _extent(read())
    people = sorted(sorted(extent.seen, key=lambda track: (-extent.seen[track], track))[:most_people]) or [NO_TRACK]
    per_bin = max(1, -(-extent.frames // most_bins))
    bins = max(1, -(-extent.frames // per_bin))
    starts_s = np.full(bins, extent.last_s)
    sums = {task: np.zeros((len(people), bins, len(names))) for task, names in labels.items()}
    counts = np.zeros((len(people), bins))
    for rows, ordinal in _numbered(read()):
        bin_of = ordinal // per_bin
        np.minimum.at(starts_s, bin_of, rows.timestamp_s)
        for place, track in enumerate(people):
            mine = rows.track_id == track if track != NO_TRACK else np.zeros(len(rows), dtype=bool)
            np.add.at(counts[place], bin_of[mine], 1)
            for task, total in sums.items():
                np.add.at(total[place], bin_of[mine], rows.predictions[task][mine])
    # A damaged container may step back in time; an axis may not.
    edges_s = np.maximum.accumulate([*starts_s, extent.last_s + extent.interval_s])
    with np.errstate(invalid="ignore"):
        means = {task: total / counts[..., None] for task, total in sums.items()}
    return [
        Timeline(
            track_id=track,
            frames=extent.seen.get(track, 0),
            edges_s=edges_s,
            values={task: values[place] for task, values in means.items()},
            faceless=counts[place] == 0,
        )
        for place, track in enumerate(people)
    ]


def _extent(blocks: Iterator[Rows]) -> _Extent:
    frames, first_s, last_s = 0, 0.0, 0.0
    seen: Counter[int] = Counter()
    for rows, ordinal in _numbered(blocks):
        first_s = float(rows.timestamp_s[0]) if frames == 0 else first_s
        frames, last_s = int(ordinal[-1]) + 1, float(rows.timestamp_s[-1])
        seen.update(rows.track_id[rows.track_id != NO_TRACK].tolist())
    return _Extent(frames=frames, first_s=first_s, last_s=last_s, seen=seen)


def _numbered(blocks: Iterator[Rows]) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
    """Yield blocks with the ordinal (n,) of the frame that each row belongs to: several rows may share one."""
    ordinal, last = -1, -1
    for rows in blocks:
        ordinals = ordinal + np.cumsum(np.diff(rows.frame, prepend=last) != 0)
        yield rows, ordinals
        ordinal, last = int(ordinals[-1]), int(rows.frame[-1])
