"""The command that compares with other systems: `affserve bench peers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import VIT, Architecture, Cores, Folder, keep
from affserve.train.cli import picked, tell


def peers(
    architecture: Architecture = VIT,
    encoder: Annotated[Path | None, typer.Option(help="Checkpoint to serve instead, with --head.")] = None,
    head: Annotated[Path | None, typer.Option(help="Checkpoint of a head for that encoder.")] = None,
    frames: Annotated[int, typer.Option(min=1, max=300, help="Crops of one job.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Jobs of each system; medians are compared.")] = 3,
    trial_frames: Annotated[int, typer.Option(min=1, help="Crops by which each one's settings are chosen.")] = 128,
    threads: Cores = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... of PyTorch.")] = "cpu",
    engine: Annotated[
        str | None, typer.Option(help="Of our server.  [default: cpu, on a GPU tensorrt or cuda]")
    ] = None,
    transport: Annotated[str, typer.Option(help="Of our client: shm, raw or auto.")] = "shm",
    quick: Annotated[bool, typer.Option("--quick", help="Try only the first settings of each system.")] = False,
    folder: Folder = None,
) -> None:
    """Compare with a FastAPI service, LitServe and a plain script, all in one run.

    The peers are installed once into build/peers and run in their own processes. Each system is used at the fastest of
    its settings, and each must give the same answers.
    """
    from affserve.benchmarks.measuring.random_models import Checkpoints
    from affserve.benchmarks.peers.comparison import PeerOptions, measure_peers
    from affserve.export.machine.cores import usable_cores

    if (encoder is None) != (head is None):
        raise typer.BadParameter("give --encoder and --head, or neither")
    checkpoints = None
    if encoder and head:
        checkpoints, architecture = Checkpoints(encoder=encoder, head=head, weights="given"), encoder.name
    threads = threads or usable_cores()
    measured = measure_peers(PeerOptions(**picked(locals(), PeerOptions)), tell)
    name = f"peers-{measured['architecture']}"
    keep(name if device == "cpu" else f"{name}-{device.replace(':', '')}", measured, folder)


COMMANDS = (peers,)
