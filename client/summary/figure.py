"""One figure of a summary: conditions beside each other where there are groups, else people below each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affserve.client.drawing.palette import TRACK_COLOURS
from affserve.client.results.rows import ACTION_UNIT_MEANINGS
from affserve.client.summary.comparison import Mean
from affserve.client.summary.report import CAUTION, means_by
from affserve.client.summary.statistics import Row, compared
from affserve.client.summary.summarise import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


DPI, WIDTH_IN = 130, 12.0
MOST_ROWS = 40  # people that are drawn
GREY = "#555555"
PERCENT = "_percent"


def draw_report(report: Report) -> bytes:
    """Draw a report as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = report.rows[:MOST_ROWS]
    names = compared(rows[0]) if rows else []
    shares = [name for name in names if PERCENT in name]
    units = [name for name in shares if name.split(PERCENT)[0] in ACTION_UNIT_MEANINGS]
    expressions = [name for name in shares if name not in units]
    parts = [part for part in ([name for name in names if name not in shares], expressions, units) if part]
    means = means_by(report.means)
    conditions = list(dict.fromkeys(name for one in means.values() for name in one))
    most = max(map(len, parts), default=1)
    height = 1.9 + max(2.0, 0.17 * most * len(conditions) if means else 0.3 * len(rows))
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI)
    FigureCanvasAgg(figure)
    widths = [1.3 if PERCENT in part[0] else 1.0 for part in parts] or [1.0]
    axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False, sharey=not means)[0]
    for one, part in zip(axes, parts, strict=False):
        if means:
            _draw_means(one, part, means, conditions, most)
        elif PERCENT in part[0]:
            _draw_shares(one, rows, part)
        else:
            _draw_values(one, rows, part)
    if not means:
        _name_rows(axes[0], rows)
    _label(figure, report, conditions if means else [], height)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _label(figure: Any, report: Report, conditions: Sequence[str], height: float) -> None:
    left_out = len(report.rows) - MOST_ROWS
    title = "Means over people, with 95 % intervals" if conditions else "Affect per person"
    figure.text(0.02, 1 - 0.32 / height, title, fontsize=13, fontweight="bold")
    rest = f" {left_out} more rows are in the table." if left_out > 0 and not conditions else ""
    figure.text(
        0.02,
        1 - 0.56 / height,
        " ".join([CAUTION, *(f"{note}." for note in report.notes)]) + rest,
        fontsize=9,
        color=GREY,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / height), w_pad=1.5)
    for k, condition in enumerate(conditions):
        figure.axes[0].plot([], [], "o", color=_colour(k), label=condition)
    if conditions:
        figure.legend(loc="upper right", ncols=4, fontsize=10, frameon=False, handletextpad=0.1)


def _colour(k: int) -> str:
    return TRACK_COLOURS[k % len(TRACK_COLOURS)]


def _draw_means(
    axes: Axes, names: Sequence[str], means: dict[str, dict[str, Mean]], conditions: Sequence[str], most: int
) -> None:
    """Draw a dot with its interval for each condition, a row for each measure."""
    # As far apart in each panel, whatever the number of its rows.
    reach = 0.3 * len(names) / most if len(conditions) > 1 else 0.0
    offsets = np.linspace(-reach, reach, len(conditions))
    for row, name in enumerate(names):
        for k, condition in enumerate(conditions):
            one = means.get(name, {}).get(condition)
            if one is not None:
                y = row + offsets[k]
                if one.low is not None and one.high is not None:
                    axes.plot(
                        [one.low, one.high], [y, y], color=_colour(k), linewidth=2, alpha=0.6, solid_capstyle="round"
                    )
                axes.plot(one.mean, y, "o", color=_colour(k), markersize=6)
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [_words(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#EEEEEE", linewidth=0.8, zorder=0)
    _dress(axes, names)


def _words(name: str) -> str:
    plain = name.removesuffix("_change").removesuffix("_mean").removesuffix(PERCENT)
    return f"{ACTION_UNIT_MEANINGS[plain]}  {plain}" if plain in ACTION_UNIT_MEANINGS else plain


def _dress(axes: Axes, names: Sequence[str]) -> None:
    changed = names[0].endswith("_change")
    unit = "% of time" if PERCENT in names[0] else "-1 to 1"
    axes.set_xlabel(f"change from the baseline ({unit.replace('of time', 'points')})" if changed else unit, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    people, events = (len({row[name] for row in rows}) > 1 for name in ("person", "event"))
    names = [
        "  ".join(
            [
                Path(row["video"] or row["file"]).stem,
                *([row["person"]] if people else []),
                *([row["event"]] if events else []),
            ]
        )
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _draw_values(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw each value's mean, and where it is half and nine tenths of the time."""
    for k, name in enumerate(names):
        plain = name.removesuffix("_change").removesuffix("_mean")
        for y, row in enumerate(rows):
            if row[name] is None:
                continue
            at = y + (k - (len(names) - 1) / 2) * 0.32
            if not name.endswith("_change"):
                axes.plot(
                    [row[f"{plain}_q05"], row[f"{plain}_q95"]], [at, at], color=_colour(k), linewidth=1, alpha=0.5
                )
                axes.plot(
                    [row[f"{plain}_q25"], row[f"{plain}_q75"]], [at, at], color=_colour(k), linewidth=4, alpha=0.5
                )
            axes.plot(row[name], at, "o", color=_colour(k), markersize=5, label=plain if not y else None)
    axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
    _dress(axes, names)
    if not names[0].endswith("_change"):
        axes.set_xlabel("dot: mean; thick: half of the time; thin: nine tenths", fontsize=9)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=9, frameon=False, handletextpad=0.2)


def _draw_shares(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draw shares of time as a map of colour with its numbers."""
    shares = np.array([[np.nan if row[name] is None else row[name] for name in names] for row in rows])
    changed = names[0].endswith("_change")
    axes.imshow(shares, aspect="auto", vmin=-100 if changed else 0, vmax=100, cmap="RdBu_r" if changed else "Blues")
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
    for (y, x), share in np.ndenumerate(shares):
        if not np.isnan(share):
            axes.text(x, y, f"{round(share)}", color="white" if abs(share) > 60 else "#222222", fontdict=look)
    axes.set_xticks(range(len(names)), [name.split(PERCENT)[0] for name in names], fontsize=8, rotation=45)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("change, % points" if changed else "% of time", fontsize=9)
