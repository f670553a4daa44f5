"""The command that loads a server: `affserve bench load`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from affserve.benchmarks.measuring.command_line import AsJson, Folder, Repository, Threads, keep, server
from affserve.train.cli import numbers, tell


def load(
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="HOST:PORT (gRPC) of a running server, or several with commas between."),
    ] = None,
    repository: Repository = None,
    model: Annotated[str, typer.Option(help="Some of clip_encoder,temporal_head,affect.")] = "clip_encoder",
    frames: Annotated[str, typer.Option(help="Frames of a request.")] = "32",
    transport: Annotated[str, typer.Option(help="Some of raw,shm,jpeg.")] = "raw",
    concurrency: Annotated[str | None, typer.Option(help="Closed loops: numbers of callers, such as 1,2,4.")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loops: requests a second, arriving at random.")] = None,
    slo: Annotated[
        str | None, typer.Option(help="Search the highest open-loop rate that keeps it, such as p99=100ms.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of each point.")] = 5.0,
    processes: Annotated[int, typer.Option(min=1, help="Of the load generator.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds; a request that takes longer is an error.")] = 30.0,
    threads: Threads = None,
    name: Annotated[str | None, typer.Option(help="Of the result file.  [default: load-MODEL]")] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Load a server and measure what its callers see: closed loops, open loops, and the rate that keeps a promise.

    Open-loop latency counts from when a request was meant to be sent: a stall of the server hits all that were meant
    to be sent meanwhile. Errors are counted by kind, never repeated. Exit code 1 when no rate keeps the promise.
    """
    from affserve.benchmarks.load.session import LoadConfig, measure_load
    from affserve.benchmarks.load.slo import Promise

    nothing_said = concurrency is None and rate is None and slo is None
    config = LoadConfig(
        models=tuple(model.split(",")),
        frames=numbers(frames, int),
        transports=tuple(transport.split(",")),
        concurrencies=numbers("1,2,4" if nothing_said else concurrency, int),
        rates_per_s=numbers(rate, float),
        promise=Promise.parse(slo) if slo else None,
        seconds=seconds,
        processes=processes,
        timeout_s=timeout,
    )
    with server(repository, url, threads) as client:
        measured = measure_load(client.url, config, tell)
    keep(name or f"load-{model.replace(',', '-')}", measured, folder, None if as_json else _lines(measured))
    if any(search["requests_per_second"] == 0 for search in measured["slo"]):
        raise typer.Exit(1)


def _lines(measured: dict[str, Any]) -> list[str]:
    from affserve.benchmarks.load.session import line

    found = [
        f"{one['model']} x{one['frames']} {one['transport']} keeps {one['slo']} up to {one['requests_per_second']:.1f} "
        f"requests/s, {one['frames_per_second']:.0f} frames/s"
        for one in measured["slo"]
    ]
    return [*(line(point) for point in measured["points"]), *found]


COMMANDS = (load,)
