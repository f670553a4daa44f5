"""The plots of a report, as SVG: the same results give the same bytes.

Colours are Okabe and Ito's, told apart with every common colour blindness; nothing is told by colour alone.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from affserve.benchmarks.measuring.samples import median_interval
from affserve.benchmarks.report.files import Results
from affserve.benchmarks.report.format import Measured, measured_rate, request_text
from affserve.client.drawing.palette import TRACK_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OURS_COLOUR, OTHERS_COLOUR = TRACK_COLOURS[0], "#9A9A9A"
SECOND_COLOUR = TRACK_COLOURS[1]
TEXT_COLOUR = "#333333"
LINE_COLOURS = (*TRACK_COLOURS, OTHERS_COLOUR, TEXT_COLOUR)
MARKERS = "osD^vP*X"
WIDTH_IN = 8.0
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "text.color": TEXT_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "svg.hashsalt": "affserve",  # ids inside the file, random otherwise
}


def draw_plots(results: Results) -> dict[str, bytes]:
    """Return every plot that the results fill, as SVG by file name."""
    plots: dict[str, bytes] = {}
    for prefix, draw in PLOTS.items():
        for name, measured in results.starting(prefix).items():
            if (image := _drawn(draw, measured)) is not None:
                plots[f"{prefix}-{name}.svg" if name else f"{prefix}.svg"] = image
    return plots


def _drawn(draw: Callable[[Figure, Measured], bool], measured: Measured) -> bytes | None:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_IN, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        if not draw(figure, measured):
            return None
        image = io.BytesIO()
        figure.savefig(image, format="svg", metadata={"Date": None})
        return image.getvalue()


def _title(figure: Figure, text: str) -> None:
    """Write a title from the left edge of the picture on: it may be too long for what is right of the labels."""
    figure.suptitle(text, x=0.01, ha="left", size="large", weight="bold")


def _peers(figure: Figure, measured: Measured) -> bool:
    """Rates as bars, ours in colour, with the interval of the median and what ours gains."""
    rates = {
        name: median_interval(measured_rate(measured["frames"], one["times_s"]))
        for name, one in measured["systems"].items()
    }
    ordered = sorted(rates, key=lambda name: rates[name].value)
    figure.set_size_inches(WIDTH_IN, 0.9 + 0.5 * len(ordered))
    axes = figure.subplots()
    for place, name in enumerate(ordered):
        rate = rates[name]
        colour = OURS_COLOUR if name.startswith("affserve") else OTHERS_COLOUR
        spread = [[rate.value - rate.low], [rate.high - rate.value]]
        axes.barh(place, rate.value, 0.68, color=colour)
        axes.errorbar(rate.value, place, xerr=spread, color=TEXT_COLOUR, capsize=3, linewidth=1)
        axes.annotate(f"{rate.value:.1f}", (rate.high, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(ordered)), ordered)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.12 * max(rate.high for rate in rates.values()))
    axes.set_xlabel("face crops per second (median, 95 % interval)")
    _title(figure, f"{measured['architecture']} on {_device(measured)}: the same crops, the same answers")
    return True


def _device(measured: Measured) -> str:
    threads = measured["threads"]
    return measured["device"] if measured["device"] != "cpu" else f"{threads} CPU core{'s' * (threads > 1)}"


def _length(figure: Figure, measured: Measured) -> bool:
    """Time per frame and memory, both of which should be flat."""
    rows = measured["rows"]
    if len(rows) < 2:
        return False
    frames = [row["frames"] for row in rows]
    time_axes, memory_axes = figure.subplots(1, 2)
    for row in rows:
        each = [1000 * value / row["frames"] for value in row["times_s"]]
        time_axes.plot([row["frames"]] * len(each), each, "o", color=OTHERS_COLOUR, markersize=4, alpha=0.7)
    medians = [1000 * statistics.median(row["times_s"]) / row["frames"] for row in rows]
    time_axes.plot(frames, medians, "o-", color=OURS_COLOUR, label="median")
    time_axes.set_ylim(0, 1.25 * max(1000 * max(row["times_s"]) / row["frames"] for row in rows))
    time_axes.set_title("Time per frame")
    time_axes.set_ylabel("ms per frame")
    for who, colour, marker in (("client", OURS_COLOUR, "o"), ("server", SECOND_COLOUR, "s")):
        peaks = [row[f"{who}_peak_mib"] for row in rows]
        memory_axes.plot(frames, peaks, f"{marker}-", color=colour)
        memory_axes.annotate(who, (frames[-1], peaks[-1]), (0, 7), textcoords="offset points", ha="right", color=colour)
    memory_axes.set_ylim(0, 1.25 * max(row[f"{who}_peak_mib"] for row in rows for who in ("client", "server")))
    memory_axes.set_title("Peak memory")
    memory_axes.set_ylabel("MiB")
    for axes in (time_axes, memory_axes):
        _frame_axis(axes, frames)
    return True


def _frame_axis(axes: Axes, frames: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(frames, [f"{count:,}" for count in frames])
    axes.minorticks_off()
    axes.set_xlabel("frames of the video")


def _stages(figure: Figure, measured: Measured) -> bool:
    """Where the time of a whole job goes."""
    stages = {name: one["ms_per_frame"] for name, one in measured["stages"].items()}
    figure.set_size_inches(WIDTH_IN, 0.9 + 0.42 * len(stages))
    axes = figure.subplots()
    names = list(stages)[::-1]
    # Waiting is no work: what is waited for stands in another bar.
    colours = [OTHERS_COLOUR if name.endswith("wait") else OURS_COLOUR for name in names]
    axes.barh(range(len(names)), [stages[name] for name in names], 0.66, color=colours)
    for place, name in enumerate(names):
        value = axes.annotate(f"{stages[name]:.2f}", (stages[name], place), (5, 0), textcoords="offset points")
        value.set(va="center", zorder=5, bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"})
    job_ms = 1000 / measured["frames_per_s"]
    axes.axvline(job_ms, color=SECOND_COLOUR, linestyle="--", linewidth=1.5)
    axes.annotate(
        f"the job: {job_ms:.1f} ms", (job_ms, 0), (-5, 0), textcoords="offset points", ha="right", color=SECOND_COLOUR
    )
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.12 * max(job_ms, *stages.values()))
    axes.set_xlabel("ms per frame; stages overlap")
    axes.set_title(f"Video to rows: {measured['frames_per_s']:.1f} frames per second")
    return True


def _engines(figure: Figure, measured: Measured) -> bool:
    """Rate of the encoder against the batch, a line for each engine."""
    rows = [row for row in measured["clip_encoder"] if "left_out" not in row]
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    if not engines:
        return False
    figure.set_size_inches(WIDTH_IN, 4.2)
    axes = figure.subplots()
    for place, engine in enumerate(engines):
        mine = [row for row in rows if row["engine"] == engine]
        batches, rates = [row["frames"] for row in mine], [row["frames_per_second"] for row in mine]
        axes.plot(batches, rates, f"{MARKERS[place % len(MARKERS)]}-", color=_line_colour(place), label=engine)
    sizes = sorted({row["frames"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("frames in a batch")
    axes.set_ylabel("frames per second")
    axes.set_title(f"{measured['encoder']} without a server, {_device(measured)}")
    axes.legend(frameon=False, fontsize=8)
    return True


def _line_colour(place: int) -> str:
    return LINE_COLOURS[place % len(LINE_COLOURS)]


def _load(figure: Figure, measured: Measured) -> bool:
    """Latency against throughput, a line for each model, size and transport."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for point in measured["points"]:
        if point["latency"] is not None and point["loop"] == "closed":
            latency = point["latency"]
            lines.setdefault(request_text(point), []).append(
                (point["frames_per_second"], latency["p50_ms"], latency["p99_ms"])
            )
    if not lines:
        return False
    figure.set_size_inches(WIDTH_IN, 4.2)
    axes = figure.subplots()
    for place, (name, points) in enumerate(lines.items()):
        colour, marker = _line_colour(place), MARKERS[place % len(MARKERS)]
        rates = [rate for rate, _, _ in points]
        axes.plot(rates, [p50 for _, p50, _ in points], f"{marker}-", color=colour, label=name)
        axes.plot(rates, [p99 for _, _, p99 in points], f"{marker}:", color=colour, fillstyle="none")
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("frames per second")
    axes.set_ylabel("latency, ms")
    _title(figure, "Served under load: median (full) and p99 (dotted), more callers along each line")
    axes.legend(frameon=False, fontsize=8)
    return True


def _scaled(work: str, label: str) -> Callable[[Figure, Measured], bool]:
    """A plot of cost against work with its fitted line."""

    def draw(figure: Figure, measured: Measured) -> bool:
        rows, fit = measured["rows"], measured.get("fit")
        if fit is None or len(rows) < 2:
            return False
        figure.set_size_inches(WIDTH_IN / 2 + 0.8, 3.2)
        axes = figure.subplots()
        amounts = [row[work] for row in rows]
        costs = [_cost(row) for row in rows]
        ends = [0.0, max(amounts)]
        axes.plot(ends, [fit["intercept"] + fit["slope"] * end for end in ends], "--", color=OTHERS_COLOUR, zorder=1)
        axes.plot(amounts, costs, "o", color=OURS_COLOUR, zorder=2)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("ms per frame" if "ms_per_frame" in rows[0] else "seconds")
        axes.set_title(f"Cost grows with the power {measured['exponent']:.2f}")
        return True

    return draw


def _cost(row: Mapping[str, Any]) -> float:
    return float(row["ms_per_frame"]) if "ms_per_frame" in row else statistics.median(row["times_s"])


PLOTS: Mapping[str, Callable[[Figure, Measured], bool]] = {
    "peers": _peers,
    "stages": _engines,
    "e2e": _stages,
    "load": _load,
    "scale-length": _length,
    "scale-clients": _scaled("clients", "clients at the same time"),
    "scale-faces": _scaled("rows_per_frame", "faces in a frame"),
}
