"""The status of servers for people: a few words and a table for each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from affserve.client.commands.server_status import ModelStatus, ServerStatus
from affserve.train.errors import printable
from affserve.train.labels import TASKS

COLUMNS = (
    ("model", "left"),
    ("version", "right"),
    ("ready", "left"),
    ("answer ms", "right"),
    ("requests", "right"),
    ("failed", "right"),
    ("inferences", "right"),
    ("per batch", "right"),
    ("request ms", "right"),
    ("queue ms", "right"),
    ("compute ms", "right"),
    ("pending", "right"),
)
UNKNOWN = "-"


def show(servers: Sequence[ServerStatus], console: Console) -> None:
    """Print the status of each server."""
    for server in servers:
        console.print(Text(printable(headline(server))), soft_wrap=True)
        if server.models:
            console.print(_table(server))
        for problem in server.problems:
            console.print(Text(printable(f"  {problem}")), soft_wrap=True)


def headline(server: ServerStatus) -> str:
    """Return what a server is in a line or two."""
    line = f"{server.url}: {'ready' if server.ready else 'NOT READY'}"
    if versions := {model.statistics.version for model in server.models if model.statistics is not None}:
        line += f", serves version {' and '.join(sorted(versions))} of its repository"
    if server.version:
        line += f", Triton {server.version}"
    if server.engine:
        line += f", {server.engine}"
    if (head := server.head) is not None:
        tasks = "; ".join(f"{task} ({', '.join(names)})" for task, names in sorted(head.labels.items(), key=_order))
        line += f"\nwindows of {head.window_frames} frames, trained on {head.trained_on}: {tasks}"
    return line


def _order(labels: tuple[str, object]) -> int:
    """Sort tasks as the project does; those unknown here come last."""
    return [*TASKS, labels[0]].index(labels[0])


def cells(model: ModelStatus) -> list[str]:
    """Return a row of the table."""
    told = model.statistics
    if told is None:
        return [model.name, UNKNOWN, _word(model.ready), *[UNKNOWN] * (len(COLUMNS) - 3)]
    return [
        model.name,
        told.version,
        _word(model.ready),
        _number(model.answer_ms),
        str(told.succeeded),
        str(told.failed),
        str(told.frames),
        _number(told.mean_batch),
        _number(told.request_ms),
        _number(told.queue_ms),
        _number(told.compute_ms),
        UNKNOWN if told.pending is None else str(told.pending),
    ]


def _word(ready: bool) -> str:
    return "yes" if ready else "NO"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _table(server: ServerStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    for title, side in COLUMNS:
        table.add_column(title, justify="right" if side == "right" else "left")
    for model in server.models:
        table.add_row(*map(printable, cells(model)), style="" if model.ready else "red")
    return table
