"""The few figures of the README, one column per machine, and what a machine still has to measure.

A figure that no result file holds is "not yet measured"; the table's last line names the command that fills it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from affserve.benchmarks.load.request import SHM
from affserve.benchmarks.measuring.samples import counted
from affserve.benchmarks.report.files import Results
from affserve.benchmarks.report.format import interval_text, table
from affserve.export.contract import CLIP_ENCODER

NOT_YET = "not yet measured"
OURS = ("affserve INT8", "affserve FP16")
WANTED_GPU = "RTX 3090"  # the paper's
GPU_COMMAND = "affserve bench all --target gpu"
Figure = Callable[[Results], str | None]


def headline_table(machines: Sequence[Results]) -> list[str]:
    """Return the table; a machine with one and with two of the paper's GPUs has its columns before it has results."""
    columns: list[tuple[str, Results | None]] = [
        (one.machine.partition(", ")[0] if one.has_gpu else one.machine, one) for one in machines
    ]
    if not any(WANTED_GPU in name for name, _ in columns):
        columns += [(f"{count} × {WANTED_GPU}", None) for count in (1, 2)]
    rows = [(what, *(_cell(what, figure, one) for _, one in columns)) for what, figure in FIGURES.items()]
    lines = table(("", *(name for name, _ in columns)), rows)
    if any(one is None for _, one in columns):
        lines += [
            "",
            f"“{NOT_YET}”: run `{GPU_COMMAND}` on that machine, then `affserve bench report --readme README.md`.",
        ]
    return lines


def _cell(what: str, figure: Figure, results: Results | None) -> str:
    if results is None:
        return NOT_YET
    if what in GPU_ONLY and not results.has_gpu:
        return "–"
    return figure(results) or NOT_YET


def _peer(peer: str | None = None) -> Figure:
    """A served rate, or how many times a peer's it is, of ViT-B-32: in INT8, else in FP16."""

    def figure(results: Results) -> str | None:
        for system, measured in product(OURS, results.starting("peers-ViT-B-32").values()):
            found = [name for name in measured["systems"] if name.startswith(system)]
            if found and peer is None:
                system_told = measured["systems"][found[0]]
                sets = re.findall(r"set \w+", system_told["settings"])
                return ", ".join([f"{system_told['frames_per_s']:.0f} frames/s", *sets])
            if found and (ratio := measured["times_as_fast"].get(f"{found[0]} / {peer}")):
                return interval_text(ratio, " ×")
        return None

    return figure


def _e2e(results: Results) -> str | None:
    measured = results.measured("e2e")
    return f"{measured['frames_per_s']:.1f} frames/s" if measured else None


def _length(results: Results) -> str | None:
    measured = results.measured("scale-length")
    bars: Sequence[Mapping[str, Any]] = measured["bars"] if measured else []
    return ", ".join(f"{bar['what'].split(' of ')[0]} × {bar['figure']:.3f}" for bar in bars) or None


def _best_load(results: Results) -> Mapping[str, Any] | None:
    points = [
        {**point, "engine": measured["engine"].partition(", ")[2]}
        for measured in results.starting("load").values()
        for point in measured["points"]
        if point["model"] == CLIP_ENCODER.name
    ]
    return max(points, key=lambda point: float(point["frames_per_second"]), default=None)


def _load(results: Results) -> str | None:
    point = _best_load(results)
    if point is None or point["latency"] is None:
        return None
    return f"{point['frames_per_second']:.0f} frames/s, p99 {point['latency']['p99_ms']:.0f} ms, {point['engine']}"


def _promise(results: Results) -> str | None:
    found = [one for measured in results.starting("load").values() for one in measured.get("slo", [])]
    # The transport that a client on the machine chooses by itself: the best of three would be the luckiest.
    best = max(found, key=lambda one: (one["transport"] == SHM, float(one["frames_per_second"])), default=None)
    if best is None:
        return None
    rate = f"{best['requests_per_second']:.0f} requests/s of {counted(best['frames'], 'frame')}"
    return f"{rate}, {best['slo']}, {best['transport']}"


def _cameras(results: Results) -> str | None:
    measured = results.measured("cameras")
    return f"{measured['cameras']}, p95 within {measured['limit_p95_ms']:g} ms" if measured else None


def _two_gpus(results: Results) -> str | None:
    measured = results.measured("gpus")
    return f"{measured['scaling_factor']:.2f} ×" if measured and measured.get("scaling_factor") else None


def _power(results: Results) -> str | None:
    point = _best_load(results) or {}
    watts = [gpu["mean_watts"] for gpu in point.get("gpus", []) if "mean_watts" in gpu]
    return f"{max(watts):.0f} W" if watts else None  # the others of the machine are idle meanwhile


def _encoder_alone(results: Results) -> str | None:
    rows = [
        row
        for measured in results.starting("stages-ViT-B-32").values()
        for row in measured[CLIP_ENCODER.name]
        if not row.get("engine", "pytorch").startswith("pytorch") and "frames_per_second" in row
    ]
    best = max(rows, key=lambda row: float(row["frames_per_second"]), default=None)
    return f"{best['frames_per_second']:.0f} frames/s, {best['engine']}" if best else None


FIGURES: Mapping[str, Figure] = {
    "the encoder alone, its fastest engine": _encoder_alone,
    "served, INT8 (CPU) or FP16 (GPU), beside its peers": _peer(),
    "times the naive FastAPI service": _peer("naive service"),
    "times LitServe": _peer("LitServe"),
    "times FastAPI with OpenVINO": _peer("FastAPI with OpenVINO"),
    "highest load": _load,
    "highest rate that keeps a promise, Poisson arrivals": _promise,
    "live cameras of 30 frames/s": _cameras,
    "video to CSV, end to end": _e2e,
    "longest video to a short one": _length,
    "two GPUs to one": _two_gpus,
    "power under load": _power,
}
GPU_ONLY = ("two GPUs to one", "power under load")
