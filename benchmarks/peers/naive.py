"""The service most people write first: FastAPI and uvicorn around PyTorch's eager modules, at its best settings; and
the one that an informed user writes, the same around ONNX Runtime or OpenVINO.

Bodies are raw bytes, answers come from orjson, uvicorn runs on uvloop and httptools, and the model runs in one thread
of its own, so that the event loop receives the next request meanwhile and two requests never fight for the cores.
Runs in the peers' environment: `python -m affserve.benchmarks.peers.naive PORT WORKERS`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from affserve.benchmarks.peers.model import KEEP_ALIVE_S, end_with_parent, model_of_environment


def create_app() -> FastAPI:
    """Load the model and make the application of one worker process."""
    model = model_of_environment()
    app = FastAPI()
    one_thread = ThreadPoolExecutor(max_workers=1)

    def serve(path: str, work: Callable[[bytes], bytes], media_type: str) -> None:
        async def answer(request: Request) -> Response:
            body = await request.body()
            done = await asyncio.get_running_loop().run_in_executor(one_thread, work, body)
            return Response(done, media_type=media_type)

        app.add_api_route(path, answer, methods=["POST"], response_model=None)

    serve("/encode", lambda body: model.encode(model.frames_of(body)).tobytes(), "application/octet-stream")
    serve("/predict", lambda body: orjson.dumps(model.predict(model.features_of(body))), "application/json")
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
