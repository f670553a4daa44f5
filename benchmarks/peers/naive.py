"""The service most people write first: FastAPI and uvicorn around PyTorch's eager modules, at its best settings; and
the one that an informed user writes, the same around ONNX Runtime or OpenVINO.

Bodies are raw bytes, answers come from orjson, uvicorn runs on uvloop and httptools, and the model runs in one thread
of its own, so that the event loop receives the next request meanwhile and two requests never fight for the cores.
Runs in the peers' environment: `python -m affserve.benchmarks.peers.naive PORT WORKERS`.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from affserve.benchmarks.peers.model import KEEP_ALIVE_S, end_with_parent, model_of_environment

BYTES = "application/octet-stream"


def create_app() -> FastAPI:
    """Load the model and make the application of one worker process."""
    model = model_of_environment()
    app = FastAPI()
    one_thread = ThreadPoolExecutor(max_workers=1)

    def _encode(body: bytes) -> bytes:
        return model.encode(model.frames_of(body)).tobytes()

    def _predict(body: bytes) -> bytes:
        answer: bytes = orjson.dumps(model.predict(model.features_of(body)))
        return answer

    async def encode(request: Request) -> Response:
        body = await request.body()
        return Response(await asyncio.get_running_loop().run_in_executor(one_thread, _encode, body), media_type=BYTES)

    async def predict(request: Request) -> Response:
        body = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(one_thread, _predict, body)
        return Response(answer, media_type="application/json")

    app.add_api_route("/encode", encode, methods=["POST"], response_model=None)
    app.add_api_route("/predict", predict, methods=["POST"], response_model=None)
    app.add_api_route("/health", lambda: "ok", methods=["GET"])
    return app


if __name__ == "__main__":
    end_with_parent()
    uvicorn.run(
        "affserve.benchmarks.peers.naive:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
