"""Rows of a result for tests of what is made from them, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from affserve.client.results.metadata import ResultTable, metadata_path, metadata_text
from affserve.client.results.rows import NO_TRACK, Rows, Tally
from affserve.client.results.text import RowFormatter
from affserve.export.contract import default_head_description

LABELS = dict(default_head_description().labels)


def people(frames: int, tracks: Mapping[int, range], *, fps: float = 30) -> Rows:
    """Rows in which each track is seen in a range of frames, with random predictions; other frames have no face."""
    rng = np.random.default_rng(0)
    seen = [
        (frame, [track for track in sorted(tracks) if frame in tracks[track]] or [NO_TRACK]) for frame in range(frames)
    ]
    pairs = [(frame, track) for frame, here in seen for track in here]
    frame, track = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    nowhere = track == NO_TRACK
    predictions = {
        "valence_arousal": rng.uniform(-1, 1, (len(frame), 2)),
        "expression": rng.dirichlet(np.ones(8), len(frame)),
        "action_units": rng.uniform(0, 1, (len(frame), 12)),
    }
    box = np.stack(
        [10.0 + 20 * track, np.full(len(frame), 8.0), np.full(len(frame), 16.0), np.full(len(frame), 20.0)], 1
    )
    return Rows(
        frame=frame,
        timestamp_s=frame / fps,
        track_id=track,
        box_px=np.where(nowhere[:, None], np.nan, box),
        face_score=np.where(nowhere, np.nan, 0.9),
        quality=np.where(nowhere[:, None], np.nan, [[5.0, -2.0, 0.3, 1.0]]),
        predictions={
            task: np.where(nowhere[:, None], np.nan, values).astype(np.float32) for task, values in predictions.items()
        },
    )


def tallied(blocks: Iterable[Rows]) -> Tally:
    """What is counted of rows while they are made."""
    tally = Tally()
    for rows in blocks:
        tally.add(rows)
    return tally


def written(path: Path, rows: Rows, *, source: str = "talk.mp4") -> Path:
    """Write rows as `affserve infer` does, with what describes them."""
    formatter = RowFormatter(LABELS)
    about = ResultTable(name=path.name, source=source, labels=LABELS, provenance={"trained_on": "nothing"})
    path.write_text(formatter.header + formatter.text(rows))
    metadata_path(path).write_text(metadata_text(about))
    return path
