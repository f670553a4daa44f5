"""One kill of a worker on a small cluster, in a process of its own: Ray leaves threads in the one that makes a cluster.

Usage: kill_case.py REPOSITORY FILM FOLDER; the last line of the output is what was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from affserve.benchmarks.video import cluster, kills

if __name__ == "__main__":
    kills.KINDS, kills.ROUNDS = ("worker",), 1
    kills.CLIPS = cluster.CLIPS = 6
    kills.CLIP_FRAMES, kills.LATER_S = 200, 0.1
    print(json.dumps(kills.measure_kills(*map(Path, sys.argv[1:]), progress=lambda _: None)))
