"""The plain script: everything in one process, no server; what the serving of anything can cost at most.

Reads commands from standard input, so that it can take its turn among the others: a line `PATH` of frames (.npy) and a
line `go` for each run; answers each `go` with the predictions as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.peers.model import PeerModel, model_of_environment

BATCH_FRAMES = 32


def run(model: PeerModel, frames: NDArray[np.uint8]) -> dict[str, list[list[float]]]:
    """Predict a window (T, 224, 224, 3)."""
    batches = [frames[start : start + BATCH_FRAMES] for start in range(0, len(frames), BATCH_FRAMES)]
    return model.predict(np.concatenate([model.encode(batch) for batch in batches]))


if __name__ == "__main__":
    model, frames = model_of_environment(), np.empty((0, 224, 224, 3), np.uint8)
    print("ready", flush=True)
    for line in map(str.strip, sys.stdin):
        if line != "go":
            frames = np.load(Path(line))
            print("loaded", flush=True)
        else:
            print(json.dumps(run(model, frames)), flush=True)
