"""How long a person waits for `affserve --help`, and how fast the generator draws."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure_help(runs: int = 9) -> dict[str, Any]:
    """Return the wall-clock time of `affserve --help` over several runs, after one that fills the disk cache."""
    command = [sys.executable, "-m", "affserve.client", "--help"]
    times_s = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times_s.append(time.perf_counter() - started)
    counted = times_s[1:]
    return {"runs": runs, "median_s": round(statistics.median(counted), 3), "max_s": round(max(counted), 3)}


def measure_generator(videos: int, workers: int) -> dict[str, Any]:
    """Return the speed at which a corpus is drawn and written, all processes together."""
    from affserve.train.synthetic import SyntheticConfig, write_corpus

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
