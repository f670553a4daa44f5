"""The commands that load a server: `affserve bench load` and `perf-analyzer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from affserve.benchmarks.measuring.command_line import (
    FolderOption,
    JsonOption,
    NameOption,
    RepositoryOption,
    ThreadsOption,
    UrlArgument,
    finish,
    note,
    numbers,
    whole_numbers,
)

# What perf_analyzer and ours are compared at: model, frames, transport, callers.
POINTS = ("temporal_head:300:raw:1", "clip_encoder:1:raw:1", "clip_encoder:8:raw:2", "clip_encoder:8:shm:2")


def load(
    url: UrlArgument = None,
    repository: RepositoryOption = None,
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
    threads: ThreadsOption = None,
    name: NameOption = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a server and measure what its callers see: closed loops, open loops, and the rate that keeps a promise.

    Open-loop latency counts from when a request was meant to be sent: a stall of the server hits all that were meant
    to be sent meanwhile. Errors are counted by kind, never repeated. Exit code 1 when no rate keeps the promise.
    """
    from affserve.benchmarks.load.session import LoadConfig, measure_load
    from affserve.benchmarks.load.slo import Promise
    from affserve.benchmarks.measuring.record import environment
    from affserve.client.connection import Connection, connected

    environment()  # before this process loads the machine
    nothing_said = concurrency is None and rate is None and slo is None
    config = LoadConfig(
        models=tuple(model.split(",")),
        frames=whole_numbers(frames),
        transports=tuple(transport.split(",")),
        concurrencies=whole_numbers("1,2,4" if nothing_said else concurrency),
        rates_per_s=numbers(rate),
        promise=Promise.parse(slo) if slo else None,
        seconds=seconds,
        processes=processes,
        timeout_s=timeout,
    )
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        measured = measure_load(client.url, config, note)
    finish(name or f"load-{model.replace(',', '-')}", measured, _load_lines(measured), folder, as_json)
    if any(search["requests_per_second"] == 0 for search in measured["slo"]):
        raise typer.Exit(1)


def perf_analyzer(
    url: UrlArgument = None,
    repository: RepositoryOption = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help=f"MODEL:FRAMES:TRANSPORT:CALLERS, transport raw or shm.  [default: {' '.join(POINTS)}]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Of both tools, in turns.")] = 8,
    seconds: Annotated[float, typer.Option(help="Of one measurement.")] = 3.0,
    tools: Annotated[Path, typer.Option(help="Where perf_analyzer is, or is put.")] = Path("build/perf_analyzer"),
    threads: ThreadsOption = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare our load generator with NVIDIA's perf_analyzer, in turns on one server; exit code 1 beyond 10 %.

    perf_analyzer is fetched once: the wheel of tritonclient 2.41.0, CUDA's runtime, and Debian's libb64.
    """
    from affserve.benchmarks.load.perf_analyzer import measure_agreement
    from affserve.benchmarks.measuring.record import environment
    from affserve.client.connection import Connection, connected

    environment()
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        points = [_point(text, client.url) for text in point or POINTS]
        measured = measure_agreement(client.url, points, folder=tools, rounds=rounds, seconds=seconds, progress=note)
        measured["engine"] = client.engine()
    finish("perf_analyzer", measured, _agreement_lines(measured), folder, as_json)
    if not measured["agree"]:
        raise typer.Exit(1)


def _load_lines(measured: dict[str, Any]) -> list[str]:
    from affserve.benchmarks.load.session import line

    found = [
        f"{one['model']} x{one['frames']} {one['transport']} keeps {one['slo']} up to {one['requests_per_second']:.1f} "
        f"requests/s, {one['frames_per_second']:.0f} frames/s"
        for one in measured["slo"]
    ]
    return [*(line(point) for point in measured["points"]), *found]


def _agreement_lines(measured: dict[str, Any]) -> list[str]:
    from affserve.benchmarks.measuring.samples import counted

    return [
        f"{one['model']} x{one['frames']} {one['transport']}, {counted(one['concurrency'], 'caller')}: "
        "ours / perf_analyzer "
        + ", ".join(f"{name} {ratio['value']:.3f}" for name, ratio in one["ours_to_theirs"].items())
        + (": agree" if one["agree"] else f": differ by {100 * one['furthest_off']:.0f} %")
        for one in measured["points"]
    ]


def _point(text: str, url: str) -> tuple[Any, int]:
    from affserve.benchmarks.load.request import Target

    try:
        model, frames, transport, callers = text.split(":")
        return Target(url=url, model=model, frames=int(frames), transport=transport), int(callers)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected MODEL:FRAMES:TRANSPORT:CALLERS, such as {POINTS[0]}") from error


def register(app: typer.Typer) -> None:
    """Add these commands to `affserve bench`."""
    app.command()(load)
    app.command(name="perf-analyzer")(perf_analyzer)
