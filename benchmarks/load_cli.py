"""The commands that load a server: `affserve bench load`, `perf-analyzer` and `cameras`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

UrlArgument = Annotated[
    str | None,
    typer.Argument(metavar="[URL]", help="HOST:PORT (gRPC) of a running server, or several with commas between."),
]
RepositoryOption = Annotated[Path | None, typer.Option(help="Start a server for this model repository instead.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Of a server that is started here.")]
FolderOption = Annotated[Path | None, typer.Option(help="Where the JSON goes.")]
NameOption = Annotated[str | None, typer.Option(help="Of the result file.  [default: load-MODEL]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
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
    from affserve.benchmarks.load_session import LoadConfig, measure_load
    from affserve.benchmarks.record import environment
    from affserve.benchmarks.slo import Promise
    from affserve.client.connection import Connection, connected

    environment()  # before this process loads the machine
    nothing_said = concurrency is None and rate is None and slo is None
    config = LoadConfig(
        models=tuple(model.split(",")),
        frames=_whole(frames),
        transports=tuple(transport.split(",")),
        concurrencies=_whole("1,2,4" if nothing_said else concurrency),
        rates_per_s=_numbers(rate),
        promise=Promise.parse(slo) if slo else None,
        seconds=seconds,
        processes=processes,
        timeout_s=timeout,
    )
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        measured = measure_load(client.url, config, _told)
    _finish(name or f"load-{model.replace(',', '-')}", measured, _load_lines(measured), folder, as_json)
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
    from affserve.benchmarks.perf_analyzer import measure_agreement
    from affserve.benchmarks.record import environment
    from affserve.client.connection import Connection, connected

    environment()
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        points = [_point(text, client.url) for text in point or POINTS]
        measured = measure_agreement(client.url, points, folder=tools, rounds=rounds, seconds=seconds, progress=_told)
        measured["engine"] = client.engine()
    _finish("perf_analyzer", measured, _agreement_lines(measured), folder, as_json)
    if not measured["agree"]:
        raise typer.Exit(1)


def cameras(
    film: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="What every camera sees, over and over.  [default: a drawn film]"),
    ] = None,
    repository: RepositoryOption = None,
    url: Annotated[str | None, typer.Option(help="HOST:PORT (gRPC) of a running server.")] = None,
    delay: Annotated[float, typer.Option(help="Milliseconds that the p95 from frame to answer may take.")] = 1000.0,
    hop: Annotated[int, typer.Option(min=1, max=300, help="Frames between predictions.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="Of each number of cameras; 11 more for warming up.")] = 30.0,
    first: Annotated[int, typer.Option(min=1, help="Number to begin with.")] = 1,
    crops: Annotated[bool, typer.Option("--crops", help="The frames are face crops: find no faces.")] = False,
    face_model: Annotated[Path | None, typer.Option(help="YuNet's ONNX file.")] = None,
    threads: ThreadsOption = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find how many live cameras one machine carries: delay bounded and not growing, under 1 % of frames dropped.

    Every camera is a process of its own on this machine, as `affserve live` is.
    """
    from affserve.benchmarks.cameras import measure_cameras
    from affserve.benchmarks.record import environment
    from affserve.benchmarks.report_format import counted
    from affserve.benchmarks.scale_material import drawn_film
    from affserve.client.connection import Connection, connected

    environment()
    film = film or drawn_film()
    with connected(Connection(repository=repository, url=url, threads=threads)) as client:
        measured = measure_cameras(
            client.url,
            film,
            limit_ms=delay,
            hop=hop,
            seconds=seconds,
            first=first,
            crops=crops,
            face_model=face_model,
            progress=_told,
        )
    _finish("cameras", measured, [counted(measured["cameras"], "camera")], folder, as_json)
    if not measured["cameras"]:
        raise typer.Exit(1)


def _told(text: str) -> None:
    typer.echo(text, err=True)


def _finish(name: str, measured: dict[str, Any], lines: list[str], folder: Path | None, as_json: bool) -> None:
    from affserve.benchmarks.record import save, without_samples

    typer.echo(json.dumps(without_samples(measured), indent=2) if as_json else "\n".join(lines))
    typer.echo(f"saved {save(name, measured, folder)}", err=True)


def _load_lines(measured: dict[str, Any]) -> list[str]:
    from affserve.benchmarks.load_session import line

    found = [
        f"{one['model']} x{one['frames']} {one['transport']} keeps {one['slo']} up to {one['requests_per_second']:.1f} "
        f"requests/s, {one['frames_per_second']:.0f} frames/s"
        for one in measured["slo"]
    ]
    return [*(line(point) for point in measured["points"]), *found]


def _agreement_lines(measured: dict[str, Any]) -> list[str]:
    from affserve.benchmarks.report_format import counted

    return [
        f"{one['model']} x{one['frames']} {one['transport']}, {counted(one['concurrency'], 'caller')}: "
        "ours / perf_analyzer "
        + ", ".join(f"{name} {ratio['value']:.3f}" for name, ratio in one["ours_to_theirs"].items())
        + (": agree" if one["agree"] else f": differ by {100 * one['furthest_off']:.0f} %")
        for one in measured["points"]
    ]


def _point(text: str, url: str) -> tuple[Any, int]:
    from affserve.benchmarks.wire import Target

    try:
        model, frames, transport, callers = text.split(":")
        return Target(url=url, model=model, frames=int(frames), transport=transport), int(callers)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected MODEL:FRAMES:TRANSPORT:CALLERS, such as {POINTS[0]}") from error


def _whole(text: str | None) -> tuple[int, ...]:
    return tuple(round(value) for value in _numbers(text))


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,4") from error


def register(app: typer.Typer) -> None:
    """Add these commands to `affserve bench`."""
    app.command()(load)
    app.command(name="perf-analyzer")(perf_analyzer)
    app.command()(cameras)
