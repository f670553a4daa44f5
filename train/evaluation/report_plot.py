"""The picture of an evaluation: who is taken for whom, what is detected how well, and how valence and arousal agree.

In comes an `Evaluation`, out come the bytes of a PNG; tasks that were not scored have no panel.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: TID253 - this file is about it
from matplotlib.colors import LogNorm  # noqa: TID253
from matplotlib.figure import Figure  # noqa: TID253
from matplotlib.image import imsave  # noqa: TID253
from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: TID253
from matplotlib.ticker import FuncFormatter, PercentFormatter  # noqa: TID253

from affserve.train.evaluation.scores import Evaluation
from affserve.train.labels import EXPRESSION, TASKS, Kind, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN, DPI, PAD_IN = 13.0, 120, 0.12
EXPRESSION_HEIGHT_IN, LOWER_HEIGHT_IN = 6.6, 4.6
BAR_COLOUR, GUESS_COLOUR = "#0072B2", "#D55E00"
DENSITY_BINS = 60  # per axis


def draw_evaluation(evaluation: Evaluation) -> bytes:
    """Draw the panels of all scored tasks."""
    scored = evaluation.scores.by_task
    upper = EXPRESSION.key in scored
    lower = [TASKS[key] for key in scored if TASKS[key].kind != "one_of"]
    heights = [EXPRESSION_HEIGHT_IN] * upper + [LOWER_HEIGHT_IN] * bool(lower)
    layout = ConstrainedLayoutEngine(w_pad=PAD_IN, h_pad=PAD_IN)
    figure = Figure(figsize=(WIDTH_IN, sum(heights) or 1), dpi=DPI, layout=layout)
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0] if heights else []
    if upper:
        _draw_expressions(rows[0], evaluation)
    if lower:
        _draw_lower(rows[-1], evaluation, lower)
    return as_png(figure)


def as_png(figure: Figure) -> bytes:
    """Return a figure as a PNG, drawn once: `savefig` would draw it a second time, for its layout."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib declares no types for what follows
    image = io.BytesIO()
    canvas.draw()
    imsave(image, canvas.buffer_rgba(), format="png")
    return image.getvalue()


def _draw_expressions(figure: Any, evaluation: Evaluation) -> None:
    matrix, bars = figure.subplots(1, 2, width_ratios=(3.2, 1), sharey=True)
    _draw_confusion(matrix, evaluation)
    _draw_bars(bars, evaluation, EXPRESSION.key, f"F1 of each: mean {evaluation.scores.by_task[EXPRESSION.key]:.3f}")
    bars.tick_params(axis="y", labelleft=False)


def _draw_lower(figure: Any, evaluation: Evaluation, tasks: list[Task]) -> None:
    panels = [(task, k) for task in tasks for k in range(task.outputs if task.kind == "regression" else 1)]
    for axes, (task, k) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        LOWER_PANELS[task.kind](axes, evaluation, task, k)


def _draw_confusion(axes: Axes, evaluation: Evaluation) -> None:
    counts = evaluation.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mesh = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count:,}\n{share:.0%}" if count else "0"
        colour = "white" if share > 0.5 else "#222222" if count else "#AAAAAA"
        # The layout need not measure what lies inside.
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, in_layout=False, color=colour)
    positions = range(EXPRESSION.outputs)
    axes.set_xticks(positions, EXPRESSION.names, fontsize=9.5)
    axes.set_yticks(positions, EXPRESSION.names, fontsize=9.5)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted expression", fontsize=10)
    axes.set_ylabel("true expression", fontsize=10)
    axes.set_title("expressions: frames, and share of the true expression's frames", fontsize=11)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01, fraction=0.03, format=PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _draw_bars(axes: Axes, evaluation: Evaluation, key: str, title: str) -> None:
    """Draw one horizontal bar a class, the first on top, with what a constant guess gets as a mark."""
    parts, guess = evaluation.scores.parts[key], evaluation.constant.parts[key]
    positions = np.arange(len(parts))
    axes.barh(positions, list(parts.values()), height=0.7, color=BAR_COLOUR, alpha=0.85)
    for position, value, floor in zip(positions, parts.values(), guess.values(), strict=True):
        axes.plot([floor, floor], [position - 0.42, position + 0.42], color=GUESS_COLOUR, linewidth=2)
        axes.text(1.03, position, f"{value:.2f}", va="center", fontsize=9, in_layout=False)
    axes.set_yticks(positions, list(parts), fontsize=9.5)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"], fontsize=8.5)
    axes.set_xlabel("F1 (orange: a constant guess)", fontsize=10)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_units(axes: Axes, evaluation: Evaluation, task: Task, _: int) -> None:
    _draw_bars(axes, evaluation, task.key, f"{task.title}: mean F1 {evaluation.scores.by_task[task.key]:.3f}")


def _draw_density(axes: Axes, evaluation: Evaluation, task: Task, k: int) -> None:
    name = task.names[k]
    truth, predicted = (values[task.key][:, k] for values in (evaluation.truth, evaluation.predicted))
    frames, _, _ = np.histogram2d(truth, predicted, bins=DENSITY_BINS, range=[[-1, 1], [-1, 1]])
    mesh = axes.imshow(
        np.where(frames.T > 0, frames.T, np.nan),
        extent=(-1, 1, -1, 1),
        origin="lower",
        cmap="viridis",
        norm=LogNorm(1, max(2, frames.max())),
    )
    axes.plot([-1, 1], [-1, 1], color="#777777", linewidth=1, linestyle="--")
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    ticks = [-1, -0.5, 0, 0.5, 1]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=8.5)
    axes.set_xlabel(f"true {name}", fontsize=10)
    axes.set_ylabel(f"predicted {name}", fontsize=10)
    axes.set_title(f"{name}: CCC {evaluation.scores.parts[task.key][name]:.3f}", fontsize=11)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.045, pad=0.02, format=FuncFormatter(lambda x, _: f"{x:,.0f}"))
    bar.set_label("frames", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


LOWER_PANELS: dict[Kind, Callable[[Axes, Evaluation, Task, int], None]] = {
    "regression": _draw_density,  # one panel an output
    "any_of": _draw_units,  # one for all
}
