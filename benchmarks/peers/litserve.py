"""LitServe with batching around PyTorch's eager modules, by its documentation.

Requests of several frames are gathered to batches (`max_batch_size`, `batch_timeout`) and run one after another: on
these models a batch of 32 frames already fills the cores. Bodies are raw bytes, which spares LitServe the JSON.
Runs in the peers' environment: `python -m affserve.benchmarks.peers.litserve PORT WORKERS REQUESTS_PER_BATCH`.
"""

# No `from __future__ import annotations`: LitServe reads the annotation of `request` as an object.
import sys
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray

from affserve.benchmarks.peers.model import KEEP_ALIVE_S, PeerModel, end_with_parent, model_of_environment

BYTES = "application/octet-stream"
BATCH_TIMEOUT_S = 0.01
RawBody = Annotated[bytes, Body(media_type=BYTES)]


class _OurModel(litserve.LitAPI):  # type: ignore[misc]
    model: PeerModel

    def setup(self, device: str) -> None:
        self.model = model_of_environment()


class Encode(_OurModel):
    """Frames to features."""

    def decode_request(self, request: RawBody) -> NDArray[np.uint8]:
        """Body -> frames (N, 224, 224, 3)."""
        return self.model.frames_of(request)

    def batch(self, inputs: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], list[int]]:
        """Join the frames of several requests and remember where each begins."""
        return np.concatenate(inputs), list(np.cumsum([len(one) for one in inputs])[:-1])

    def predict(self, inputs: Any) -> Any:
        """Joined frames -> features of each request; a request alone arrives as it is."""
        if isinstance(inputs, tuple):
            frames, cuts = inputs
            return np.split(self.model.encode(frames), cuts)
        return self.model.encode(inputs)

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        """Features (N, D) -> body."""
        return Response(output.tobytes(), media_type=BYTES)


class Predict(_OurModel):
    """Features of a window to predictions."""

    def decode_request(self, request: RawBody) -> NDArray[np.float32]:
        """Body -> features (T, D)."""
        return self.model.features_of(request)

    def predict(self, features: NDArray[np.float32]) -> dict[str, list[list[float]]]:
        """Features (T, D) -> (T, K) by task."""
        return self.model.predict(features)


if __name__ == "__main__":
    end_with_parent()
    port, workers, per_batch = (int(value) for value in sys.argv[1:4])
    timeout_s = BATCH_TIMEOUT_S if per_batch > 1 else 0.0
    apis = [Encode(max_batch_size=per_batch, batch_timeout=timeout_s, api_path="/encode"), Predict(api_path="/predict")]
    # The model chooses its device itself; LitServe only counts workers with these two.
    server = litserve.LitServer(
        apis, accelerator="cpu", devices=1, workers_per_device=[workers, 1], timeout=False, fast_queue=False
    )
    server.run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S
    )
