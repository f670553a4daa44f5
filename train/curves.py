"""The curves of a training as a picture: `log.jsonl` in, `curves.png` out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affserve.train.atomic import write_file
from affserve.train.labels import task_by_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING_STEPS = 50  # the loss is drawn as it is and as a mean over so many steps at most

Line = dict[str, Any]


def read_log(path: Path) -> list[Line]:
    """Read the lines of a training's `log.jsonl`; one that a killed process left half-written is skipped."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def draw_curves(log: Path, target: Path) -> None:
    """Draw loss, learning rate and scores over the steps of a training."""
    from matplotlib.figure import Figure

    lines = read_log(log)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    figure = Figure(figsize=(9, 9), dpi=110, layout="constrained")
    loss, rate, scores = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.2, 3])
    _draw_loss(loss, steps, epochs)
    rate.plot([line["step"] for line in steps], [line["lr"] for line in steps], color="tab:gray")
    rate.set_ylabel("learning rate")
    _draw_scores(scores, epochs)
    scores.set_xlabel("optimiser step")
    for axes in (loss, rate, scores):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(target, picture.getvalue())


def _draw_loss(axes: Axes, steps: list[Line], epochs: list[Line]) -> None:
    x, y = [line["step"] for line in steps], [line["loss"] for line in steps]
    axes.plot(x, y, color="tab:blue", alpha=0.5, linewidth=0.8, label="of each step")
    width = min(SMOOTHING_STEPS, max(1, len(y) // 10))
    if width > 1:
        smooth = [sum(y[max(0, k - width + 1) : k + 1]) / len(y[max(0, k - width + 1) : k + 1]) for k in range(len(y))]
        axes.plot(x, smooth, color="tab:blue", label=f"mean of the last {width}")
    axes.plot(
        [line["step"] for line in epochs], [line["loss"] for line in epochs], "o", color="black", label="of each epoch"
    )
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)


def _draw_scores(axes: Axes, epochs: list[Line]) -> None:
    """Draw a line for each validator and task, and mark the epoch that was chosen."""
    styles = {"official": "-", "paper": "--"}
    x = [line["step"] for line in epochs]
    series = dict.fromkeys(
        (validator, key) for line in epochs for validator, one in line["scores"].items() for key in one["by_task"]
    )
    colours = {key: f"C{index}" for index, key in enumerate(dict.fromkeys(key for _, key in series))}
    for validator, key in series:
        y = [line["scores"].get(validator, {"by_task": {}})["by_task"].get(key, float("nan")) for line in epochs]
        label = f"{task_by_key(key).title}, {validator}"
        axes.plot(x, y, styles.get(validator, ":"), marker=".", color=colours[key], label=label)
    chosen = [line["step"] for line in epochs if line["best"]]
    if chosen:
        axes.axvline(chosen[-1], color="black", linewidth=0.8, linestyle=":", label="best epoch")
    axes.set_ylabel("score on validation videos")
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
