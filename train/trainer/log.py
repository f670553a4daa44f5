"""What a training tells while it runs: lines or a bar for people, `log.jsonl` for scripts, TensorBoard.

Each line of `log.jsonl` is one JSON object; `kind` says which:

    step    step (optimiser steps so far), epoch (from 1), loss (of the global batch), lr, frames_per_s
    epoch   step, epoch, loss (mean over the epoch), seconds (of its steps), selected (the number that chooses the
            best), best (whether it is the best so far), scores: by validator, each with by_task, parts and frames

All have `time`, UTC in ISO 8601. Lines are flushed one by one; after a restart the file is cut back to the state's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affserve.train.evaluation.scores import Scores
from affserve.train.files import write_file
from affserve.train.labels import task_by_key
from affserve.train.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.progress import Progress
    from torch.utils.tensorboard import SummaryWriter


LINE_EVERY_S = 30.0  # between lines about steps where there is no terminal

Log = Callable[[str], None]
Line = dict[str, Any]  # of log.jsonl


class TrainingLog:
    """Writes for the first rank."""

    def __init__(self, run: RunFolder, name: str, log: Log, *, steps: int, done: int, size_bytes: int) -> None:
        """Go on at `done` of `steps` steps, where the JSONL file had `size_bytes` bytes."""
        from torch.utils.tensorboard import SummaryWriter

        self._name = name
        self._log = log
        self._steps = steps
        self._file = run.log.open("ab")
        if self._file.tell() > size_bytes:
            os.truncate(run.log, size_bytes)
        self._board: SummaryWriter = SummaryWriter(str(run.tensorboard), purge_step=done + 1)
        self._done, self._started = done, time.monotonic()  # of this process
        self._bar = _bar(name, steps, done)
        self._last_line = time.monotonic()

    def size_bytes(self) -> int:
        """Return the length of the JSONL file, all of it flushed."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def step(self, step: int, epoch: int, loss: float, lr: float, frames_per_s: float) -> None:
        """Note an optimiser step."""
        self._write(kind="step", step=step, epoch=epoch, loss=loss, lr=lr, frames_per_s=round(frames_per_s, 2))
        for tag, value in (("loss", loss), ("lr", lr), ("frames_per_s", frames_per_s)):
            self._board.add_scalar(f"train/{tag}", value, step)
        text = f"loss {loss:.3f}, {frames_per_s:.0f} frames/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, told=f"{text}, {self._left(step)} left")
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._log(f"{self._name} step {step}/{self._steps}: {text}, {self._left(step)} left")

    def epoch(self, line: Line, scores: Mapping[str, Scores], *, epochs: int, speed: float) -> None:
        """Note a finished epoch, of `epochs`, with the scores of each validator; speed: frames/s of its steps."""
        step = line["step"]
        self._write(kind="epoch", **line, scores={validator: asdict(one) for validator, one in scores.items()})
        for tag, value in _scalars(scores):
            self._board.add_scalar(tag, value, step)
        self._board.flush()
        left = f", {self._left(step)} left" if step < self._steps else ""
        told = f"loss {line['loss']:.3f}, {_told(scores)}, {speed:.0f} frames/s{left}"
        self._log(f"{self._name} epoch {line['epoch']}/{epochs}: {told}")

    def close(self) -> None:
        """End the bar and the files."""
        if self._bar is not None:
            self._bar.stop()
        self._board.close()
        self._file.close()

    def _left(self, step: int) -> str:
        """Say how long the rest takes at the pace since this process started; validations are in it."""
        each_s = (time.monotonic() - self._started) / (step - self._done) if step > self._done else 0.0
        return readable_s(each_s * (self._steps - step))

    def _write(self, **line: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._file.write((json.dumps({**line, "time": now}) + "\n").encode())
        self._file.flush()


def readable_s(seconds: float) -> str:
    """Say a duration as a person would: 40 s, 12 min, 3 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _told(scores: Mapping[str, Scores]) -> str:
    """Return one clause per validator that scored anything; the first needs no name."""
    clauses: list[str] = []
    for validator, one in scores.items():
        figures = ", ".join(f"{task_by_key(key).title} {value:.3f}" for key, value in one.by_task.items())
        if figures:
            clauses.append(f"{validator}: {figures}" if clauses else figures)
    return "; ".join(clauses) or "nothing to score"


def _scalars(scores: Mapping[str, Scores]) -> list[tuple[str, float]]:
    """Return TensorBoard's tags and values: each task, and each of its parts."""
    tags = []
    for validator, one in scores.items():
        for key, value in one.by_task.items():
            tags.append((f"{validator}/{key}", value))
            tags += [(f"{validator}_{key}/{part}", number) for part, number in one.parts[key].items()]
    return tags


def _bar(name: str, steps: int, done: int) -> Progress | None:
    """Start a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=steps, completed=done, told="")
    bar.start()
    return bar


SMOOTHING_STEPS = 50  # the loss is drawn as it is and as a mean over so many steps at most


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

    from affserve.train.evaluation.report_plot import as_png

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
    write_file(target, as_png(figure))


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
