"""What `affserve live` answers when nothing is dropped: every frame of a film, one at a time or some together, to CSV.

The client waits for a server that is away, as `affserve infer` does. python -m affserve.benchmarks.serving.live_rows
FILM URL CSV
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, LiveFrame, now_s
from affserve.client.results.text import RowFormatter
from affserve.client.video.source import Frame, open_source


def write_live_rows(film: Path, client: AffectClient, csv: Path, together: Sequence[int] = (1,)) -> None:
    """Write the rows of every frame of a film; together: so many frames at once, over and over."""
    source = open_source(film)
    formatter = RowFormatter(client.describe().labels)
    analysis = LiveAnalysis(client, lambda: Croppers().cropper(source.already_cropped), LiveSettings(), LiveCounters())
    frames, sizes = iter(source), itertools.cycle(together)
    with csv.open("w") as file:
        file.write(formatter.header)
        while batch := [_arrived(frame) for frame in itertools.islice(frames, next(sizes))]:
            for answer in analysis.push(batch):
                file.write(formatter.text(answer.rows))
        for answer in analysis.answer():
            file.write(formatter.text(answer.rows))


def _arrived(frame: Frame) -> LiveFrame:
    rgb = partial(getattr, frame, "image")
    return LiveFrame(index=frame.index, timestamp_s=frame.timestamp_s, arrived_s=now_s(), rgb=rgb)


if __name__ == "__main__":
    with AffectClient(sys.argv[2]) as connected:
        write_live_rows(Path(sys.argv[1]), connected, Path(sys.argv[3]))
