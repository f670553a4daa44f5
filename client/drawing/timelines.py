"""A result averaged over time, person by person: what a plot of any length needs.

In come the rows block by block and what was counted when they were made, out come at most `most_bins` steps for each of
the people seen longest, so that neither memory nor the picture grows with the length of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affserve.client.results.people import STILL_S
from affserve.client.results.rows import NO_TRACK, Rows, Tally

MOST_BINS = 1200  # steps on the time axis, about one per pixel
MOST_PEOPLE = 4  # drawn; more would be no picture but a scroll


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


def read_timelines(
    blocks: Iterable[Rows],
    tally: Tally,
    labels: Mapping[str, Sequence[str]],
    *,
    most_bins: int = MOST_BINS,
    most_people: int = MOST_PEOPLE,
) -> list[Timeline]:
    """Average a result into bins of equally many frames, for the people seen in most frames, in order of appearance.

    tally: of the same rows. Where no face was found at all, there is one timeline without values.
    """
    people = sorted(sorted(tally.seen, key=lambda track: (-tally.seen[track], track))[:most_people]) or [NO_TRACK]
    per_bin = max(1, -(-tally.frames // most_bins))
    bins = max(1, -(-tally.frames // per_bin))
    starts_s = np.full(bins, tally.last_s)
    sums = {task: np.zeros((len(people), bins, len(names))) for task, names in labels.items()}
    counts = np.zeros((len(people), bins))
    for rows, ordinal in _numbered(blocks):
        bin_of = ordinal // per_bin
        np.minimum.at(starts_s, bin_of, rows.timestamp_s)
        for place, track in enumerate(people):
            mine = rows.track_id == track if track != NO_TRACK else np.zeros(len(rows), dtype=bool)
            np.add.at(counts[place], bin_of[mine], 1)
            for task, total in sums.items():
                np.add.at(total[place], bin_of[mine], rows.predictions[task][mine])
    # A damaged container may step back in time; an axis may not.
    interval_s = (tally.last_s - tally.first_s) / (tally.frames - 1) if tally.frames > 1 else STILL_S
    edges_s = np.maximum.accumulate([*starts_s, tally.last_s + interval_s])
    with np.errstate(invalid="ignore"):
        means = {task: total / counts[..., None] for task, total in sums.items()}
    return [
        Timeline(
            track_id=track,
            frames=tally.seen[track],
            edges_s=edges_s,
            values={task: values[place] for task, values in means.items()},
            faceless=counts[place] == 0,
        )
        for place, track in enumerate(people)
    ]


def _numbered(blocks: Iterable[Rows]) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
    """Yield blocks with the ordinal (n,) of the frame that each row belongs to: several rows may share one."""
    ordinal, last = -1, -1
    for rows in blocks:
        ordinals = ordinal + np.cumsum(np.diff(rows.frame, prepend=last) != 0)
        yield rows, ordinals
        ordinal, last = int(ordinals[-1]), int(rows.frame[-1])
