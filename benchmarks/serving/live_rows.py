"""What `affserve live` answers when nothing is dropped: every frame of a film one at a time, to CSV.

The client waits for a server that is away, as `affserve infer` does. python -m affserve.benchmarks.serving.live_rows
FILM URL CSV
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, LiveFrame, now_s
from affserve.client.results.rows import RowFormatter
from affserve.client.video.source import open_source


def write_live_rows(film: Path, client: AffectClient, csv: Path) -> None:
    """Write the rows of every frame of a film, one frame at a time."""
    source = open_source(film)
    formatter = RowFormatter(client.describe().labels)
    analysis = LiveAnalysis(client, lambda: Croppers().cropper(source.already_cropped), LiveSettings(), LiveCounters())
    with csv.open("w") as file:
        file.write(formatter.header)
        for frame in source:
            live = LiveFrame(
                index=frame.index,
                timestamp_s=frame.timestamp_s,
                arrived_s=now_s(),
                rgb=partial(getattr, frame, "image"),
            )
            for answer in analysis.push([live]):
                file.write(formatter.text(answer.rows))
        for answer in analysis.answer():
            file.write(formatter.text(answer.rows))


if __name__ == "__main__":
    with AffectClient(sys.argv[2]) as connected:
        write_live_rows(Path(sys.argv[1]), connected, Path(sys.argv[3]))
