"""How fast the generator of faces draws."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


def measure_generator(videos: int, workers: int) -> dict[str, Any]:
    """Return the speed at which a corpus is drawn and written, all processes together."""
    from affserve.train.synthetic.corpus import write_corpus
    from affserve.train.synthetic.plan import SyntheticConfig

    config = SyntheticConfig(videos=videos, whole_frame_videos=0)
    with tempfile.TemporaryDirectory() as folder:
        summary = write_corpus(Path(folder) / "corpus", config, workers=workers)
    return {
        "videos": videos,
        "workers": workers,
        "crops": summary.crops,
        "seconds": round(summary.seconds, 1),
        "frames_per_s": round(summary.frames_per_second, 1),
    }
