"""The command `affserve serve`: serves a model repository until it is interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from affserve.export.contract import ONNX_CONFIG_NAME


def serve(
    repository: Annotated[Path, typer.Argument(help="Model repository, as written by affserve export.")],
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8001,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    threads: Annotated[int | None, typer.Option(min=1, help="Per model on a CPU.  [default: physical cores]")] = None,
    config_name: Annotated[str, typer.Option(help="Which configs/NAME.pbtxt of each model.")] = ONNX_CONFIG_NAME,
) -> None:
    """Serve a model repository with Triton until interrupted; restart it when it fails.

    Prints one line when every model answers. Events after that are JSON lines on stderr.
    """
    from affserve.export.supervisor import SupervisedServer
    from affserve.export.triton import ServerConfig

    config = ServerConfig(
        repository=repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        config_name=config_name,
        threads=threads,
    )
    with _until_interrupted(), SupervisedServer(config) as server:
        typer.echo(server.describe())
        server.wait()


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """Leave the block at the first SIGINT or SIGTERM, its clean-up undisturbed by further ones."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
