"""The tables of how cost grows with work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from statistics import median

from affserve.benchmarks.measuring.samples import counted
from affserve.benchmarks.report.files import Results
from affserve.benchmarks.report.format import (
    Measured,
    bar_lines,
    fit_lines,
    interval_text,
    measured_rate,
    median_text,
    request_text,
    rows_table,
    table,
)


def length_section(measured: Measured) -> Iterator[str]:
    """Time and memory by length of the video."""
    yield from _detector(measured)
    yield from rows_table(
        "frames of the video | seconds [95 %] | ms per frame | client peak, MiB | server peak, MiB",
        "{frames} | {seconds} | {ms_per_frame:.2f} | {client_peak_mib} | {server_peak_mib}",
        [{**row, "seconds": median_text(row["times_s"])} for row in measured["rows"]],
    )
    yield from fit_lines(measured, "a frame", "s", 1000, "ms")
    yield from bar_lines(measured)


def _detector(measured: Measured) -> Iterator[str]:
    """Write what found the faces; earlier results do not tell."""
    if detector := measured.get("detector"):
        yield f"Faces found with {detector}."
        yield ""


def clients_section(measured: Measured) -> Iterator[str]:
    """One server and many clients."""
    yield from rows_table(
        "clients | seconds until all are done [95 %] | frames/s together | slowest / median client",
        "{clients} | {seconds} | {frames_per_s} | {slowest_to_median_client}",
        [{**row, "seconds": median_text(row["times_s"])} for row in measured["rows"]],
    )
    yield from fit_lines(measured, f"a client of {measured['frames_each']} frames", "s", 1, "s")


def faces_section(measured: Measured) -> Iterator[str]:
    """More faces in a frame."""
    columns = "{faces} | {rows_per_frame} | {people} | {ms_per_frame:.2f}"
    yield from _detector(measured)
    yield from rows_table("faces drawn | rows per frame | people | ms per frame", columns, measured["rows"])
    yield from fit_lines(measured, "a face", "ms", 1, "ms")


def peers_section(measured: Measured) -> Iterator[str]:
    """The systems side by side, fastest first, and what ours gains."""
    count, systems = measured["frames"], measured["systems"]
    rates = {name: measured_rate(count, one["times_s"]) for name, one in systems.items()}
    yield (
        f"{measured['architecture']}, {measured['weights']} weights: {count} face crops to the predictions of their "
        f"window, requests of {measured['frames_per_request']}, medians of {measured['rounds']} rounds in turns, each "
        "at the fastest of its settings."
    )
    yield ""
    yield from rows_table(
        "system | frames/s [95 %] | settings | in flight | answers",
        "{name} | {rate} | {settings} | {in_flight} | {told}",
        [
            {"name": name, "rate": median_text(rates[name]), "told": _answers(one["answers"]), **one}
            for name, one in sorted(systems.items(), key=lambda item: -median(rates[item[0]]))
        ],
    )
    yield ""
    pairs = measured["times_as_fast"].items()
    yield from table(("ratio", "times as fast [95 %]"), [(name, interval_text(value)) for name, value in pairs])
    yield from bar_lines(measured)


def _answers(answers: Measured) -> str:
    return (
        "within {largest_difference:.1g}, CCC {lowest_ccc:.4f}".format_map(answers) if answers["equal"] else "DIFFERENT"
    )


def e2e_section(measured: Measured) -> Iterator[str]:
    """One whole job and its stages, beside published figures."""
    low, high = measured["seconds"]["low"], measured["seconds"]["high"]
    count = measured["frames"]
    yield (
        f"`affserve infer`, {measured['width_px']}x{measured['height_px']} at {measured['fps']:g} frames/s, {count} "
        f"frames, {measured['detector']}, {measured['engine']}: **{measured['frames_per_s']} frames/s** "
        f"[{count / high:.1f}, {count / low:.1f}], {measured['times_real_time']} times real time. Stages overlap."
    )
    yield ""
    rows = [
        (name.replace("_", " "), f"{one['ms_per_frame']:.2f}", one.get("frames_per_s", ""))
        for name, one in measured["stages"].items()
    ]
    yield from table(("stage", "ms per frame", "frames/s alone"), rows)
    yield ""
    others = [
        (one["what"], one["frames_per_s"], one.get("times_as_fast", f"not comparable: {one['hardware']}"))
        for one in measured["published"]
    ]
    yield from table(("published end to end", "frames/s", "affserve is times as fast"), others)
    yield from bar_lines(measured)


def stages_section(measured: Measured) -> Iterator[str]:
    """Encoder and head without a server, per engine and size, beside what the machine allows."""
    peaks = ", ".join(f"{name} {peak['gflops']:.0f}" for name, peak in measured["limits"]["peaks"].items())
    yield f"{measured['encoder']}, {measured['weights']} weights. Peaks of matrix products, GFLOP/s: {peaks}."
    yield ""
    yield from rows_table(
        "model | engine | frames | frames/s | median ms | p99 ms | MiB | of peak | times eager [95 %]",
        "{model} | {engine} | {frames} | {frames_per_second} | {latency[p50_ms]:.2f} | {latency[p99_ms]:.2f} | "
        "{memory_mib:.0f} | {of_peak:.2f} | {eager}",
        [
            {"model": model, "eager": interval_text(row.get("times_as_fast_as_eager")), **row}
            for model in ("clip_encoder", "temporal_head")
            for row in measured[model]
            if "left_out" not in row
        ],
    )


def served_section(measured: Measured) -> Iterator[str]:
    """What the server costs."""
    rows = [
        (name, rate, measured["of_in_process"].get(name, "")) for name, rate in measured["frames_per_second"].items()
    ]
    yield from table(("way", "frames/s", "of in-process"), rows)


def gpus_section(measured: Measured) -> Iterator[str]:
    """One GPU and several."""
    rows = [(name, one["frames_per_s"], _watts(one)) for name, one in measured["gpus"].items()]
    yield from table(("GPU", "frames/s", "watts of each GPU"), rows)
    if factor := measured.get("scaling_factor"):
        yield ""
        yield f"All together are {factor} times as fast as one of them."


def _watts(one: Measured) -> str:
    return ", ".join(str(gpu["mean_watts"]) for gpu in one.get("watched", []) if "mean_watts" in gpu) or "not told"


def load_section(measured: Measured) -> Iterator[str]:
    """The served path under load."""
    yield (
        f"{measured.get('engine', '')}. In an open loop times count from when a request was meant to be sent. Queue, "
        "compute and batch are the server's own."
    )
    yield ""
    yield from rows_table(
        "request | load | answers | frames/s | p50 ms | p90 ms | p95 ms | p99 ms | queue ms | compute ms | batch | "
        "server cores | GPU busy, watts | errors",
        "{request} | {load} | {answers} | {frames_per_second} | {p50_ms} | {p90_ms} | {p95_ms} | {p99_ms} | "
        "{queue_ms} | {compute_infer_ms} | {batch} | {server_cores} | {busy} | {failed}",
        map(_load_row, measured["points"]),
    )
    if found := measured.get("slo"):
        yield ""
        yield from rows_table(
            "request | promise | requests/s that keep it | frames/s",
            "{request} | {slo} | {requests_per_second} | {frames_per_second}",
            [{"request": request_text(one), **one} for one in found],
        )


def _load_row(point: Measured) -> Measured:
    closed = point["loop"] == "closed"
    times = {**(point["latency"] or {}), **point.get("server", {}).get(point["model"], {})}
    errors = sum(point["errors"].values())
    return defaultdict(
        str,
        {
            **{name: f"{value:.1f}" for name, value in times.items()},
            "request": request_text(point),
            "load": counted(point["concurrency"], "caller") if closed else f"{point['rate_per_second']:.4g}/s, Poisson",
            "answers": point["requests"] - errors,
            "frames_per_second": point["frames_per_second"],
            **point.get("cpu", {}),
            "busy": ", ".join(map(_busy, point.get("gpus", []))) or "no GPU",
            "failed": errors,
        },
    )


def _busy(gpu: Mapping[str, float]) -> str:
    watts = f", {gpu['mean_watts']:.0f} W" if "mean_watts" in gpu else ""
    return f"{gpu['mean_percent']:.0f} %{watts}"


def cameras_section(measured: Measured) -> Iterator[str]:
    """Live streams added until they come late."""
    engine, cameras, hop = measured["runs"][0]["engine"], counted(measured["cameras"], "camera"), measured["hop_frames"]
    yield (
        f"{cameras} of 30 frames/s each, {f'a prediction every {hop} frames' if hop else 'every frame answered'}, "
        f"{engine}: p95 from frame to answer within {measured['limit_p95_ms']:g} ms, under "
        f"{100 * measured['limit_dropped']:g} % of frames dropped."
    )
    yield ""
    yield from rows_table(
        "cameras | p50 ms | p95 ms | p99 ms | % dropped | carried",
        "{streams} | {p50_ms} | {p95_ms} | {p99_ms} | {dropped:.2f} | {carried}",
        [
            defaultdict(
                str,
                one | one["delay"],
                dropped=100 * one["dropped_share"],
                carried="yes" if one["within_limit"] else "no",
            )
            for one in measured["runs"]
        ],
    )


SECTIONS: Mapping[str, tuple[str, Callable[[Measured], Iterator[str]]]] = {
    # prefix of the result's name -> heading and what renders it
    "peers": ("What a user would run instead", peers_section),
    "stages": ("Encoder and head, without a server", stages_section),
    "served": ("What the server costs", served_section),
    "load": ("Served, under load", load_section),
    "cameras": ("Live cameras", cameras_section),
    "gpus": ("One GPU and several", gpus_section),
    "e2e": ("Whole jobs", e2e_section),
    "scale-length": ("Longer videos", length_section),
    "scale-clients": ("More clients", clients_section),
    "scale-faces": ("More faces", faces_section),
}


def sections(results: Results) -> Iterator[str]:
    """Yield every section that the results fill."""
    for prefix, (heading, render) in SECTIONS.items():
        for name, measured in results.starting(prefix).items():
            yield ""
            yield f"## {heading}{f' ({name})' if name else ''}"
            yield ""
            yield from render(measured)
            yield ""
            full = f"{prefix}-{name}" if name else prefix
            yield f"`{results.documents[full]['command']}` → `{full}.json`"
