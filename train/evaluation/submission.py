"""Submission files of the ABAW challenge: the official template of a task, filled by a model.

In comes a template (`image_location,` and the task's labels; one row a frame), out goes the same file with the model's
answers: every row, in the template's order, whether its crop exists or not. A template that cannot be filled to the
last row is refused before anything is predicted, and its rows are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError, OutputError
from affserve.train.evaluation.metrics import chosen_class, is_active
from affserve.train.files import write_file
from affserve.train.labels import TASKS, Kind, Task
from affserve.train.windows import WINDOW_FRAMES, Outputs

LOCATION_COLUMN = "image_location"
NAMED_ROWS = 5  # of a kind, in an error
_LOCATION = re.compile(r"(?P<video>[^/\\,]+)/(?P<frame>\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """An official template that has been read: R rows."""

    path: Path
    task: Task
    header: str  # first line, as it stands
    locations: tuple[str, ...]  # (R,) as they stand
    videos: tuple[str, ...]  # (R,) of each row
    frames: NDArray[np.int64]  # (R,) of each row, from 1

    def rows_of(self) -> dict[str, NDArray[np.int64]]:
        """Return the indices of each video's rows."""
        rows: dict[str, list[int]] = {}
        for index, video in enumerate(self.videos):
            rows.setdefault(video, []).append(index)
        return {video: np.array(indices) for video, indices in rows.items()}


def read_template(path: Path) -> Template:
    """Read a template; its header tells the task.

    DataError names an unknown header, and rows that are malformed or there twice. Cells after the location are
    placeholders: there may be none, one for each label or, as for expressions, one for all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a template: {error}") from error
    task = _task_of(path, lines[0] if lines else "")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [line.split(",") for line in lines[1:]]
    widths = {1, 1 + task.columns, 1 + task.outputs}
    matches = [_LOCATION.fullmatch(row[0].strip()) if len(row) in widths else None for row in rows]
    problems: dict[str, list[int]] = {"malformed": [], "there twice": []}
    seen: set[str] = set()
    for number, (row, match) in enumerate(zip(rows, matches, strict=True), start=2):
        if match is None or int(match["frame"]) < 1:
            problems["malformed"].append(number)
        elif row[0].strip() in seen:
            problems["there twice"].append(number)
        seen.add(row[0].strip())
    _refuse(path, lines, problems, f"expected rows like name/00001.jpg after {LOCATION_COLUMN},{task.header}")
    if not rows:
        raise DataError(f"{path}: has a header and no rows; there is nothing to fill")
    found = [match for match in matches if match]
    return Template(
        path=path,
        task=task,
        header=lines[0],
        locations=tuple(row[0].strip() for row in rows),
        videos=tuple(match["video"] for match in found),
        frames=np.array([int(match["frame"]) for match in found]),
    )


def _task_of(path: Path, header: str) -> Task:
    for task in TASKS.values():
        if header.replace(" ", "") == f"{LOCATION_COLUMN},{task.header}":
            return task
    expected = " | ".join(f"{LOCATION_COLUMN},{task.header}" for task in TASKS.values())
    raise DataError(f"{path}:1: found {header!r}, expected the header of a template: {expected}")


def _refuse(path: Path, lines: Sequence[str], problems: Mapping[str, Sequence[int]], advice: str) -> None:
    """Raise a DataError that names rows by line number, if there are any."""
    told = [_named(lines, what, numbers) for what, numbers in problems.items() if numbers]
    if told:
        raise DataError(f"{path}: cannot be filled: {'; '.join(told)}; {advice}")


def _named(lines: Sequence[str], what: str, numbers: Sequence[int]) -> str:
    named = ", ".join(f"line {number} {lines[number - 1]!r}" for number in numbers[:NAMED_ROWS])
    more = f" and {len(numbers) - NAMED_ROWS} more" if len(numbers) > NAMED_ROWS else ""
    return f"{len(numbers)} row{'s' if len(numbers) > 1 else ''} {what}: {named}{more}"


def check_fillable(
    template: Template, last_crop: Callable[[str], int | None], longest_tail: int = WINDOW_FRAMES
) -> None:
    """Raise a DataError that names the rows no prediction can be made for.

    last_crop: returns the number of a video's last crop, None where it has none. longest_tail: frames past it for which
    features are held, as over gaps; a later row more likely belongs to another video than to a face that never came
    back.
    """
    last = {video: last_crop(video) for video in dict.fromkeys(template.videos)}
    problems: dict[str, list[int]] = {"of videos without crops": [], "past what can be predicted": []}
    for number, (video, frame) in enumerate(zip(template.videos, template.frames.tolist(), strict=True), start=2):
        end = last[video]
        if end is None:
            problems["of videos without crops"].append(number)
        elif frame > end + longest_tail:
            problems["past what can be predicted"].append(number)
    lines = [template.header, *template.locations]
    advice = (
        f"name the folders of all crops with --image-root; rows up to {longest_tail} frames past a video's "
        "last crop are filled, --longest-tail allows more"
    )
    _refuse(template.path, lines, problems, advice)


def fill_template(template: Template, predict: Callable[[str, int], Outputs], out: Path) -> int:
    """Fill a template and write it to `out`, whole or not at all; return how many rows were filled.

    predict: returns the outputs (N, K) by task of a video's frames 1..N; called once a video with N.
    """
    values: list[str] = [""] * len(template.locations)
    for video, rows in template.rows_of().items():
        frames = template.frames[rows]
        answer = predict(video, int(frames.max()))[template.task.key]
        if not np.isfinite(answer).all():
            raise DataError(f"{video}: the model's answer is not a number; its training has diverged")
        cells = CELLS[template.task.kind](answer)
        for row, frame in zip(rows.tolist(), frames.tolist(), strict=True):
            values[row] = cells[frame - 1]
    lines = [template.header, *(f"{place},{cell}" for place, cell in zip(template.locations, values, strict=True))]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
    return len(values)


def _numbers(answer: NDArray[np.float32]) -> list[str]:
    rounded = np.clip(answer, -1, 1).round(6) + 0.0  # adding 0 turns -0 into 0
    return [",".join(f"{value:.6f}" for value in row) for row in rounded.tolist()]


def _classes(answer: NDArray[np.float32]) -> list[str]:
    return list(map(str, chosen_class(answer).tolist()))


def _units(answer: NDArray[np.float32]) -> list[str]:
    return [",".join(map(str, row)) for row in is_active(answer).astype(int).tolist()]


# How outputs (N, K) become what the challenge wants in a row of each frame.
CELLS: dict[Kind, Callable[[NDArray[np.float32]], list[str]]] = {
    "regression": _numbers,
    "one_of": _classes,
    "any_of": _units,
}
