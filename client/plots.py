"""One picture of a result: valence and arousal, expressions, action units over time.

In comes a result CSV, out come the bytes of a PNG. The file is read twice and averaged into at most `MOST_BINS` steps
while it is read, so that neither memory nor the picture grows with the length of the video.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from affserve.client.results import ACTION_UNIT_MEANINGS, PROBABILITY_PREFIX
from affserve.export.contract import HeadDescription
from affserve.train.affwild2 import SYNTHETIC
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BINS = 1200  # steps on the time axis, about one per pixel
WIDTH_IN, DPI = 12.0, 130
PANEL_HEIGHTS_IN = {VALENCE_AROUSAL.key: 2.0, EXPRESSION.key: 2.3, ACTION_UNITS.key: 2.8}
MARGIN_LEFT_IN, MARGIN_RIGHT_IN, MARGIN_TOP_IN, MARGIN_BOTTOM_IN, PANEL_GAP_IN = 2.0, 1.45, 0.75, 0.55, 0.3
# Okabe and Ito's palette, told apart with every common colour blindness; black, the first, gives way to grey.
PALETTE = ("#B8B8B8", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#E69F00", "#56B4E9")
LINE_COLOURS = ("#0072B2", "#D55E00")
STRIP_MIDDLE, STRIP_HALF = 1.11, 0.05  # the strip above the expressions, in units of their axis
STILL_S = 1.0  # width that a single frame is drawn with
SYNTHETIC_NOTICE = "model trained on generated faces: not for people"


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """A result averaged into B consecutive bins.

    edges_s: (B + 1,) limits of the bins. values: (B, K) mean per task, NaN where no frame of a bin shows a face.
    """

    edges_s: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    faceless: NDArray[np.bool_]  # (B,)


def draw_result(path: Path, description: HeadDescription, *, title: str) -> bytes:
    """Draw the result CSV at `path` as a PNG; the panels are those tasks that the head has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timeline = read_timeline(path, description)
    tasks = [task for task in PANEL_HEIGHTS_IN if task in description.labels]
    height = sum(PANEL_HEIGHTS_IN[task] + PANEL_GAP_IN for task in tasks) - PANEL_GAP_IN
    figure = Figure(figsize=(WIDTH_IN, height + MARGIN_TOP_IN + MARGIN_BOTTOM_IN), dpi=DPI)
    FigureCanvasAgg(figure)
    panels = _panels(figure, tasks)
    draw = {VALENCE_AROUSAL.key: _draw_lines, EXPRESSION.key: _draw_expressions, ACTION_UNITS.key: _draw_action_units}
    for task, axes in panels.items():
        draw[task](axes, timeline, description.labels[task])
    _label(figure, list(panels.values()), timeline, description, title)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def read_timeline(path: Path, description: HeadDescription, most_bins: int = MOST_BINS) -> Timeline:
    """Average a result CSV into at most `most_bins` bins of equally many rows."""
    rows, first_s, last_s = 0, 0.0, 0.0
    for row in _rows(path):
        last_s = float(row["timestamp_s"])
        first_s = last_s if rows == 0 else first_s
        rows += 1
    per_bin = max(1, -(-rows // most_bins))
    interval_s = (last_s - first_s) / (rows - 1) if rows > 1 else STILL_S
    names = {task: _column_names(task, labels) for task, labels in description.labels.items()}
    starts: list[float] = []
    bins = -(-rows // per_bin)
    sums = {task: np.zeros((bins, len(columns))) for task, columns in names.items()}
    faces = np.zeros(bins)
    for number, row in enumerate(_rows(path)):
        if number % per_bin == 0:
            starts.append(float(row["timestamp_s"]))
        if row["track_id"]:
            faces[number // per_bin] += 1
            for task, columns in names.items():
                sums[task][number // per_bin] += [float(row[column]) for column in columns]
    with np.errstate(invalid="ignore"):
        values = {task: total / faces[:, None] for task, total in sums.items()}
    # A damaged container may step back in time; an axis may not.
    edges_s = np.maximum.accumulate([*starts, last_s + interval_s])
    return Timeline(edges_s=edges_s, values=values, faceless=faces == 0)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _column_names(task: str, labels: tuple[str, ...]) -> list[str]:
    if task == EXPRESSION.key:
        return [PROBABILITY_PREFIX + label for label in labels]
    known = task in (VALENCE_AROUSAL.key, ACTION_UNITS.key)
    return list(labels) if known else [f"{task}_{label}" for label in labels]


def _panels(figure: Figure, tasks: list[str]) -> dict[str, Axes]:
    """Place the panels below each other, in inches, with one time axis."""
    width, height = figure.get_size_inches()
    panels: dict[str, Axes] = {}
    top = height - MARGIN_TOP_IN
    for task in tasks:
        bottom = top - PANEL_HEIGHTS_IN[task]
        inside = width - MARGIN_LEFT_IN - MARGIN_RIGHT_IN
        place = (MARGIN_LEFT_IN / width, bottom / height, inside / width, PANEL_HEIGHTS_IN[task] / height)
        panels[task] = figure.add_axes(place, sharex=next(iter(panels.values()), None))
        panels[task].tick_params(labelsize=8, labelbottom=task == tasks[-1])
        panels[task].spines[["top", "right"]].set_visible(False)
        top = bottom - PANEL_GAP_IN
    return panels


def _label(figure: Figure, panels: list[Axes], timeline: Timeline, description: HeadDescription, title: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(MARGIN_LEFT_IN / width, 1 - 0.3 / height, title, fontsize=12, fontweight="bold")
    notice = SYNTHETIC_NOTICE if description.trained_on == SYNTHETIC else f"model trained on {description.trained_on}"
    colour = "#B00020" if description.trained_on == SYNTHETIC else "#555555"
    figure.text(MARGIN_LEFT_IN / width, 1 - 0.55 / height, notice, fontsize=9, color=colour)
    if timeline.faceless.any():
        figure.text(
            1 - MARGIN_RIGHT_IN / width, 1 - 0.55 / height, "hatched: no face", fontsize=9, color="#555555", ha="right"
        )
    for axes in panels:
        _shade_faceless(axes, timeline)
    panels[-1].set_xlabel("time (s)", fontsize=9)
    panels[-1].set_xlim(timeline.edges_s[0], timeline.edges_s[-1])


def _shade_faceless(axes: Axes, timeline: Timeline) -> None:
    marks = np.diff(timeline.faceless.astype(np.int8), prepend=0, append=0)
    for first, end in zip(np.flatnonzero(marks == 1), np.flatnonzero(marks == -1), strict=True):
        start_s, end_s = timeline.edges_s[first], timeline.edges_s[end]
        axes.axvspan(start_s, end_s, facecolor="#F1F1F1", edgecolor="#C4C4C4", hatch="////", linewidth=0, zorder=0.5)


def _draw_lines(axes: Axes, timeline: Timeline, labels: tuple[str, ...]) -> None:
    values = timeline.values[VALENCE_AROUSAL.key]
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    for k, label in enumerate(labels):
        colour = LINE_COLOURS[k % len(LINE_COLOURS)]
        axes.stairs(values[:, k], timeline.edges_s, baseline=None, color=colour, linewidth=1.5, label=label)
    axes.set_ylim(-1, 1)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.set_ylabel("valence, arousal", fontsize=9)
    axes.yaxis.set_label_coords(-0.05, 0.5)
    _legend(axes)


def _draw_expressions(axes: Axes, timeline: Timeline, labels: tuple[str, ...]) -> None:
    values = timeline.values[EXPRESSION.key]
    tops = np.cumsum(values, axis=1)
    for k, label in enumerate(labels):
        colour = PALETTE[k % len(PALETTE)]
        bottom = tops[:, k - 1] if k else np.zeros(len(tops))
        axes.stairs(tops[:, k], timeline.edges_s, baseline=bottom, fill=True, color=colour, linewidth=0, label=label)
    _draw_strip(axes, timeline)
    axes.set_ylim(0, STRIP_MIDDLE + STRIP_HALF + 0.01)
    axes.set_yticks([0, 0.5, 1, STRIP_MIDDLE], ["0", "0.5", "1", "most probable"])
    axes.set_ylabel("expression probability", fontsize=9)
    axes.yaxis.set_label_coords(-0.05, 0.45)
    _legend(axes, reverse=True)


def _draw_strip(axes: Axes, timeline: Timeline) -> None:
    """Draw the most probable expression of each bin as a strip of colour above the areas."""
    winners = np.where(timeline.faceless, -1, np.nan_to_num(timeline.values[EXPRESSION.key]).argmax(axis=1))
    for k in np.unique(winners[winners >= 0]):
        top = np.where(winners == k, STRIP_MIDDLE + STRIP_HALF, STRIP_MIDDLE - STRIP_HALF)
        axes.stairs(
            top,
            timeline.edges_s,
            baseline=STRIP_MIDDLE - STRIP_HALF,
            fill=True,
            color=PALETTE[k % len(PALETTE)],
            linewidth=0,
        )


def _draw_action_units(axes: Axes, timeline: Timeline, labels: tuple[str, ...]) -> None:
    values = timeline.values[ACTION_UNITS.key]
    rows = np.arange(len(labels) + 1)
    mesh = axes.pcolormesh(timeline.edges_s, rows, values.T, cmap="viridis", vmin=0, vmax=1, rasterized=True)
    names = [f"{ACTION_UNIT_MEANINGS.get(label, '')}  {label}" for label in labels]
    axes.set_yticks(rows[:-1] + 0.5, names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    scale = axes.inset_axes((1.02, 0.0, 0.018, 1.0))
    bar = axes.figure.colorbar(mesh, cax=scale, ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("probability active", fontsize=8)
    bar.outline.set_visible(False)


def _legend(axes: Axes, *, reverse: bool = False) -> None:
    axes.legend(
        reverse=reverse, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False, borderaxespad=0
    )
