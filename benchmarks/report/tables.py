"""The tables of how cost grows with work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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
    table,
)


def length_section(measured: Measured) -> Iterator[str]:
    """Time and memory by length of the video."""
    rows = [
        (
            row["frames"],
            median_text(row["times_s"]),
            f"{row['ms_per_frame']:.2f}",
            row["client_peak_mib"],
            row["server_peak_mib"],
        )
        for row in measured["rows"]
    ]
    yield from _detector(measured)
    header = ("frames of the video", "seconds [95 %]", "ms per frame", "client peak, MiB", "server peak, MiB")
    yield from table(header, rows)
    yield from fit_lines(measured, "a frame", "s", 1000, "ms")
    yield from bar_lines(measured)


def _detector(measured: Measured) -> Iterator[str]:
    """Write what found the faces; earlier results do not tell."""
    if detector := measured.get("detector"):
        yield f"Faces found with {detector}."
        yield ""


def clients_section(measured: Measured) -> Iterator[str]:
    """One server and many clients."""
    rows = [
        (row["clients"], median_text(row["times_s"]), row["frames_per_s"], row["slowest_to_median_client"])
        for row in measured["rows"]
    ]
    header = ("clients", "seconds until all are done [95 %]", "frames/s together", "slowest / median client")
    yield from table(header, rows)
    yield from fit_lines(measured, f"a client of {measured['frames_each']} frames", "s", 1, "s")


def faces_section(measured: Measured) -> Iterator[str]:
    """More faces in a frame."""
    rows = [
        (row["faces"], row["rows_per_frame"], row["people"], f"{row['ms_per_frame']:.2f}") for row in measured["rows"]
    ]
    yield from _detector(measured)
    yield from table(("faces drawn", "rows per frame", "people", "ms per frame"), rows)
    yield from fit_lines(measured, "a face", "ms", 1, "ms")


def peers_section(measured: Measured) -> Iterator[str]:
    """The systems side by side, fastest first, and what ours gains."""
    count = measured["frames"]
    rows = [
        (
            name,
            median_text(measured_rate(count, one["times_s"])),
            one["settings"],
            f"{one['in_flight']}",
            _answers(one["answers"]),
        )
        for name, one in measured["systems"].items()
    ]
    rows.sort(key=lambda row: -float(row[1].split()[0]))
    yield (
        f"{measured['architecture']}, {measured['weights']} weights: {count} face crops to the predictions of their "
        f"window, requests of {measured['frames_per_request']}, medians of {measured['rounds']} rounds in turns, each "
        "at the fastest of its settings."
    )
    yield ""
    yield from table(("system", "frames/s [95 %]", "settings", "in flight", "answers"), rows)
    yield ""
    pairs = measured["times_as_fast"].items()
    yield from table(("ratio", "times as fast [95 %]"), [(name, interval_text(value)) for name, value in pairs])
    yield from bar_lines(measured)


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
    header = ("model", "engine", "frames", "frames/s", "median ms", "p99 ms", "MiB", "of peak", "times eager [95 %]")
    rows = [
        (
            model,
            row["engine"],
            row["frames"],
            row["frames_per_second"],
            f"{row['latency']['p50_ms']:.2f}",
            f"{row['latency']['p99_ms']:.2f}",
            f"{row['memory_mib']:.0f}",
            f"{row['of_peak']:.2f}",
            interval_text(row["times_as_fast_as_eager"]) if "times_as_fast_as_eager" in row else "",
        )
        for model in ("clip_encoder", "temporal_head")
        for row in measured[model]
        if "left_out" not in row
    ]
    yield ""
    yield from table(header, rows)


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
    rows = [_load_row(point) for point in measured["points"]]
    header = (
        "request",
        "load",
        "answers",
        "frames/s",
        *("p50 ms", "p90 ms", "p95 ms", "p99 ms"),
        *("queue ms", "compute ms", "batch"),
        "server cores",
        "GPU busy, watts",
        "errors",
    )
    yield (
        f"{measured.get('engine', '')}. In an open loop times count from when a request was meant to be sent. Queue, "
        "compute and batch are the server's own."
    )
    yield ""
    yield from table(header, rows)
    found = [
        (request_text(one), one["slo"], one["requests_per_second"], one["frames_per_second"])
        for one in measured.get("slo", [])
    ]
    if found:
        yield ""
        yield from table(("request", "promise", "requests/s that keep it", "frames/s"), found)


def _load_row(point: Measured) -> tuple[object, ...]:
    closed = point["loop"] == "closed"
    load = counted(point["concurrency"], "caller") if closed else f"{point['rate_per_second']:.4g}/s, Poisson"
    latency = point["latency"] or {}
    times = [f"{latency[name]:.1f}" if name in latency else "" for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")]
    errors = sum(point["errors"].values())
    server = point.get("server", {}).get(point["model"], {})
    inside = [f"{server[name]:.1f}" if name in server else "" for name in ("queue_ms", "compute_infer_ms", "batch")]
    return (
        request_text(point),
        load,
        point["requests"] - errors,
        point["frames_per_second"],
        *times,
        *inside,
        point.get("cpu", {}).get("server_cores", ""),
        ", ".join(_busy(gpu) for gpu in point.get("gpus", [])) or "no GPU",
        errors,
    )


def _busy(gpu: Mapping[str, float]) -> str:
    watts = f", {gpu['mean_watts']:.0f} W" if "mean_watts" in gpu else ""
    return f"{gpu['mean_percent']:.0f} %{watts}"


def _how_often(hop: int | None) -> str:
    return "every frame answered" if hop is None else f"a prediction every {hop} frames"


def cameras_section(measured: Measured) -> Iterator[str]:
    """Live streams added until they come late."""
    engine, cameras = measured["runs"][0]["engine"], counted(measured["cameras"], "camera")
    yield (
        f"{cameras} of 30 frames/s each, {_how_often(measured['hop_frames'])}, {engine}: "
        f"p95 from frame to answer within {measured['limit_p95_ms']:g} ms, under "
        f"{100 * measured['limit_dropped']:g} % of frames dropped."
    )
    rows = [
        (
            one["streams"],
            *(one["delay"].get(name, "") for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{100 * one['dropped_share']:.2f}",
            "yes" if one["within_limit"] else "no",
        )
        for one in measured["runs"]
    ]
    yield ""
    yield from table(("cameras", "p50 ms", "p95 ms", "p99 ms", "% dropped", "carried"), rows)


def _answers(answers: Measured) -> str:
    if not answers["equal"]:
        return "DIFFERENT"
    return f"within {answers['largest_difference']:.1g}, CCC {answers['lowest_ccc']:.4f}"


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
