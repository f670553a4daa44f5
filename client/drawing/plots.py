"""One picture of a result: valence and arousal, expressions, action units over time.

In come the rows of a result, out come the bytes of a PNG. Several people stand below each other on one time axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.drawing.palette import PALETTE, track_colour
from affserve.client.drawing.timelines import Timeline, read_timelines
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, Rows, Tally
from affserve.export.contract import HeadDescription
from affserve.train.labels import TASKS, Kind
from affserve.train.provenance import SYNTHETIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WIDTH_IN, DPI = 12.0, 130
PANEL_HEIGHTS_IN: dict[Kind, float] = {"regression": 2.0, "one_of": 2.3, "any_of": 2.8}
MARGIN_LEFT_IN, MARGIN_RIGHT_IN, MARGIN_TOP_IN, MARGIN_BOTTOM_IN, PANEL_GAP_IN = 2.0, 1.45, 0.75, 0.55, 0.3
SEVERAL_SHRINK = 0.8  # of the panels' heights, where there are several people
NAME_IN, SET_GAP_IN = 0.4, 0.45  # height of a person's name, gap between people
LINE_COLOURS = ("#0072B2", "#D55E00")
STRIP_MIDDLE, STRIP_HALF = 1.11, 0.05  # the strip above the expressions, in units of their axis
SYNTHETIC_NOTICE = "model trained on generated faces: not for people"


def draw_result(
    blocks: Iterable[Rows],
    tally: Tally,
    description: HeadDescription,
    *,
    title: str,
    name: Callable[[int], str] = "person {}".format,
) -> bytes:
    """Draw a result as a PNG: the panels are those tasks that the head has, once for each of the people seen most.

    tally: of the same rows. name: what a person is called.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timelines = read_timelines(blocks, tally, description.labels)
    tasks = [task for task in TASKS if task in description.labels]
    several = len(timelines) > 1
    shrink = SEVERAL_SHRINK if several else 1.0
    set_in = sum(PANEL_HEIGHTS_IN[TASKS[task].kind] * shrink + PANEL_GAP_IN for task in tasks) - PANEL_GAP_IN
    set_in += NAME_IN if several else 0.0
    height = len(timelines) * (set_in + SET_GAP_IN) - SET_GAP_IN
    figure = Figure(figsize=(WIDTH_IN, height + MARGIN_TOP_IN + MARGIN_BOTTOM_IN), dpi=DPI)
    FigureCanvasAgg(figure)
    axes: list[Axes] = []
    for place, timeline in enumerate(timelines):
        top = figure.get_size_inches()[1] - MARGIN_TOP_IN - place * (set_in + SET_GAP_IN)
        if several:
            _name(figure, top, timeline, name(timeline.track_id))
            top -= NAME_IN
        panels = _panels(figure, tasks, top, shrink, axes[0] if axes else None)
        axes += _draw_set(panels, timeline, description)
    _label(figure, axes, timelines, description, title)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _draw_set(panels: dict[str, Axes], timeline: Timeline, description: HeadDescription) -> list[Axes]:
    """Draw one person's panels."""
    draw = {"regression": _draw_lines, "one_of": _draw_classes, "any_of": _draw_units}
    for task, axes in panels.items():
        draw[TASKS[task].kind](axes, timeline, task, description.labels[task])
        _shade_faceless(axes, timeline)
    return list(panels.values())


def _name(figure: Figure, top_in: float, timeline: Timeline, name: str) -> None:
    """Write whose panels follow."""
    width, height = figure.get_size_inches()
    left, line = MARGIN_LEFT_IN / width, (top_in - NAME_IN + 0.1) / height
    colour = track_colour(timeline.track_id)
    figure.text(left, line, name, fontsize=10, fontweight="bold", color=colour)
    seen = f"seen in {timeline.frames} frames"
    figure.text(1 - MARGIN_RIGHT_IN / width, line, seen, fontsize=9, color="#555555", ha="right")


def _panels(figure: Figure, tasks: list[str], top: float, shrink: float, share: Axes | None) -> dict[str, Axes]:
    """Place the panels of one person below each other from `top`, in inches; all people share one time axis."""
    width, height = figure.get_size_inches()
    panels: dict[str, Axes] = {}
    for task in tasks:
        panel = PANEL_HEIGHTS_IN[TASKS[task].kind] * shrink
        inside = width - MARGIN_LEFT_IN - MARGIN_RIGHT_IN
        place = (MARGIN_LEFT_IN / width, (top - panel) / height, inside / width, panel / height)
        panels[task] = figure.add_axes(place, sharex=share or next(iter(panels.values()), None))
        panels[task].tick_params(labelsize=8, labelbottom=task == tasks[-1])
        panels[task].spines[["top", "right"]].set_visible(False)
        top -= panel + PANEL_GAP_IN
    return panels


def _label(
    figure: Figure, panels: list[Axes], timelines: list[Timeline], description: HeadDescription, title: str
) -> None:
    width, height = figure.get_size_inches()
    figure.text(MARGIN_LEFT_IN / width, 1 - 0.3 / height, title, fontsize=12, fontweight="bold")
    notice = SYNTHETIC_NOTICE if description.trained_on == SYNTHETIC else f"model trained on {description.trained_on}"
    colour = "#B00020" if description.trained_on == SYNTHETIC else "#555555"
    figure.text(MARGIN_LEFT_IN / width, 1 - 0.55 / height, notice, fontsize=9, color=colour)
    if any(timeline.faceless.any() for timeline in timelines):
        figure.text(
            1 - MARGIN_RIGHT_IN / width, 1 - 0.55 / height, "hatched: no face", fontsize=9, color="#555555", ha="right"
        )
    panels[-1].set_xlabel("time (s)", fontsize=9)
    panels[-1].set_xlim(timelines[0].edges_s[0], timelines[0].edges_s[-1])


def _shade_faceless(axes: Axes, timeline: Timeline) -> None:
    marks = np.diff(timeline.faceless.astype(np.int8), prepend=0, append=0)
    for first, end in zip(np.flatnonzero(marks == 1), np.flatnonzero(marks == -1), strict=True):
        start_s, end_s = timeline.edges_s[first], timeline.edges_s[end]
        axes.axvspan(start_s, end_s, facecolor="#F1F1F1", edgecolor="#C4C4C4", hatch="////", linewidth=0, zorder=0.5)


def _draw_lines(axes: Axes, timeline: Timeline, task: str, labels: tuple[str, ...]) -> None:
    values = timeline.values[task]
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    for k, label in enumerate(labels):
        colour = LINE_COLOURS[k % len(LINE_COLOURS)]
        _steps(axes, timeline, values[:, k], baseline=None, edgecolor=colour, linewidth=1.5, label=label)
    axes.set_ylim(-1.04, 1.04)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes.set_ylabel(", ".join(labels), fontsize=9)
    axes.yaxis.set_label_coords(-0.05, 0.5)
    _legend(axes)


def _draw_classes(axes: Axes, timeline: Timeline, task: str, labels: tuple[str, ...]) -> None:
    values = timeline.values[task]
    tops = np.cumsum(values, axis=1)
    for k, label in enumerate(labels):
        colour = PALETTE[k % len(PALETTE)]
        bottom = tops[:, k - 1] if k else np.zeros(len(tops))
        _steps(axes, timeline, tops[:, k], baseline=bottom, fill=True, facecolor=colour, linewidth=0, label=label)
    _draw_strip(axes, timeline, values)
    axes.set_ylim(0, STRIP_MIDDLE + STRIP_HALF + 0.01)
    axes.set_yticks([0, 0.5, 1, STRIP_MIDDLE], ["0", "0.5", "1", "most probable"])
    axes.set_ylabel(f"{task} probability", fontsize=9)
    axes.yaxis.set_label_coords(-0.05, 0.45)
    _legend(axes, reverse=True)


def _draw_strip(axes: Axes, timeline: Timeline, values: NDArray[np.float64]) -> None:
    """Draw the most probable class of each bin as a strip of colour above the areas."""
    winners = np.where(timeline.faceless, -1, np.nan_to_num(values).argmax(axis=1))
    for k in np.unique(winners[winners >= 0]):
        top = np.where(winners == k, STRIP_MIDDLE + STRIP_HALF, STRIP_MIDDLE - STRIP_HALF)
        _steps(
            axes,
            timeline,
            top,
            baseline=STRIP_MIDDLE - STRIP_HALF,
            fill=True,
            facecolor=PALETTE[k % len(PALETTE)],
            linewidth=0,
        )


def _steps(axes: Axes, timeline: Timeline, values: NDArray[np.float64], *, fill: bool = False, **looks: Any) -> None:
    """Draw steps over time as `axes.stairs` does, without its search for limits, which takes longer than drawing."""
    from matplotlib.patches import StepPatch

    axes.add_artist(StepPatch(values, timeline.edges_s, fill=fill, **looks))


def _draw_units(axes: Axes, timeline: Timeline, task: str, labels: tuple[str, ...]) -> None:
    values = timeline.values[task]
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
