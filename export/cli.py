"""The commands of the export stage: `export` checkpoints to a model repository, `serve` one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from affserve.export.contract import ONNX_CONFIG_NAME


def export(
    encoder: Annotated[Path, typer.Option(help="Checkpoint of affserve train encoder.")],
    head: Annotated[list[Path], typer.Option(help="Checkpoint of affserve train head; up to one per task.")],
    out: Annotated[Path, typer.Option(help="Model repository to write; one that affserve wrote is replaced.")],
    parity_data: Annotated[
        Path | None, typer.Option(help="Corpus whose crops the graphs are compared on.  [default: generated faces]")
    ] = None,
    parity_frames: Annotated[int, typer.Option(min=1, help="How many of its crops.")] = 64,
) -> None:
    """Export checkpoints to a Triton model repository, after proving that it computes what PyTorch computes.

    A graph outside its tolerance stops the export with a table, and what stood in the folder stays there.
    """
    from affserve.export.parity import generated_frames, sample_frames
    from affserve.export.repository import export_repository
    from affserve.train.affwild2 import open_corpus

    frames = (
        generated_frames(parity_frames)
        if parity_data is None
        else sample_frames(open_corpus(parity_data), parity_frames)
    )
    summary = export_repository(
        encoder, head, out, parity_frames=frames, progress=lambda text: typer.echo(f"{text} ...", err=True)
    )
    typer.echo(
        f"{summary.repository}: {', '.join(summary.tasks)}; {summary.bytes / 1e6:.0f} MB, trained on "
        f"{summary.trained_on}; {summary.checks} parity checks passed on {len(frames)} crops, worst feature difference "
        f"{summary.worst_feature_difference:.1e}; serve it with: affserve serve {summary.repository}"
    )


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
