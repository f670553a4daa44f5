"""The plain script: everything in one process, no server; what the serving of anything can cost at most.

Reads commands from standard input, so that it can take its turn among the others: a line `PATH` of frames (.npy) and a
line `go` for each run; answers each `go` with the predictions as one line of JSON.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from affserve.benchmarks.peers.model import PeerModel

BATCH_FRAMES = 32


def run(model: PeerModel, frames: NDArray[np.uint8]) -> dict[str, list[list[float]]]:
    """Predict a window (T, 224, 224, 3)."""
    batches = [frames[start : start + BATCH_FRAMES] for start in range(0, len(frames), BATCH_FRAMES)]
    return model.predict(np.concatenate([model.encode(batch) for batch in batches]))
