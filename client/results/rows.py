"""The rows of a result and what their columns mean: the one column table behind every format, help text and metadata.

In come blocks of rows as they are ready, out come the values of their columns; and the cells of a finished file,
whatever its format, back into blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affserve.train.labels import TASKS, Kind
from affserve.train.processing.record import PROCESSED
from affserve.train.windows import Outputs

PROBABILITY_DIGITS = 4  # after the point
INTERPOLATED = "interpolated"  # among labels, where not every frame was encoded: the column that marks the others
NO_TRACK = -1  # track_id of a row without a face
WHOLE = ("frame", "track_id")  # columns of whole numbers in a table
PROBABILITY_PREFIX = "p_"
SMOOTH_SUFFIX, ON_SUFFIX = "_smooth", "_on"  # of columns of what is made of numbers and of units
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""

ACTION_UNIT_MEANINGS = {
    "AU1": "inner brow raiser",
    "AU2": "outer brow raiser",
    "AU4": "brow lowerer",
    "AU6": "cheek raiser",
    "AU7": "lid tightener",
    "AU10": "upper lip raiser",
    "AU12": "lip corner puller",
    "AU15": "lip corner depressor",
    "AU23": "lip tightener",
    "AU24": "lip pressor",
    "AU25": "lips part",
    "AU26": "jaw drop",
}
VALENCE_AROUSAL_MEANINGS = {
    "valence": "how pleasant the expressed emotion is: -1 very unpleasant, 0 neutral, 1 very pleasant",
    "arousal": "how activated the person appears: -1 very passive, 0 neutral, 1 very active",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the result: what it holds, and how it is stored and printed."""

    name: str
    description: str
    storage: str = "float32"  # type of its numbers in typed formats: int64, float32, float64 or string
    unit: str = ""  # "" for names and numbers without a unit
    minimum: float | None = None
    maximum: float | None = None
    digits: int = PROBABILITY_DIGITS  # after the point
    always: bool = False  # filled in every row, also where there is no face

    @property
    def datatype(self) -> str:
        """The type in the words of CSV on the Web."""
        return {"int64": "integer", "string": "string"}.get(self.storage, "number")

    @property
    def template(self) -> str:
        """The printf conversion of one cell."""
        return {"integer": "%d", "string": "%s"}.get(self.datatype, f"%.{self.digits}f")

    @property
    def range(self) -> str:
        """The range as text, "" where there is none."""
        if self.minimum is None:
            return ""
        return f"{self.minimum:g} to {self.maximum:g}" if self.maximum is not None else f"{self.minimum:g} or more"


FRAME_COLUMNS = (
    Column(
        name="frame",
        description="frame number: 0, 1, 2, ... in decoding order; in a folder of images the number in the file name",
        storage="int64",
        minimum=0,
        always=True,
    ),
    Column(
        name="timestamp_s",
        description="time since the start of the video stream, as the container gives it",
        storage="float64",
        unit="s",
        digits=6,
        always=True,
    ),
    Column(
        name="track_id",
        description="number of the person, 0, 1, 2, ... in order of appearance, the same through the whole file; empty "
        "where no face was found, and then all columns after it are empty too",
        storage="int64",
        minimum=0,
    ),
    Column(name="box_x_px", description="left edge of the face box", storage="float64", unit="px", digits=1),
    Column(name="box_y_px", description="upper edge of the face box", storage="float64", unit="px", digits=1),
    Column(name="box_w_px", description="width of the face box", storage="float64", unit="px", digits=1, minimum=0),
    Column(name="box_h_px", description="height of the face box", storage="float64", unit="px", digits=1, minimum=0),
    Column(
        name="face_score",
        description="the face detector's confidence that this is a face; empty for frames that are crops and for Haar, "
        "which gives none",
        minimum=0,
        maximum=1,
    ),
    Column(
        name="yaw_deg",
        description="where the face looks, roughly: 0 into the camera, above 0 to the right side of the picture, near "
        "90 a profile; empty where no landmarks were found, for crops and with Haar",
        storage="float64",
        unit="deg",
        minimum=-180,
        maximum=180,
        digits=1,
    ),
    Column(
        name="roll_deg",
        description="turn of the head in the picture, above 0 clockwise; the crop is turned upright; empty as yaw_deg",
        storage="float64",
        unit="deg",
        minimum=-180,
        maximum=180,
        digits=1,
    ),
    Column(
        name="sharpness",
        description="detail of the face crop relative to its contrast; small, blurred and smeared faces have little",
        storage="float64",
        minimum=0,
        digits=3,
    ),
    Column(
        name="reliable",
        description="1 where face_score is 0.6 or more, yaw_deg within 45 and sharpness 0.12 or more, as far as these "
        "are there; 0 elsewhere: leave such faces out of means",
        storage="int64",
        minimum=0,
        maximum=1,
    ),
)
QUALITY_COLUMNS = ("yaw_deg", "roll_deg", "sharpness", "reliable")


def columns_of(labels: Mapping[str, Sequence[str]]) -> list[Column]:
    """Return the columns of a result with these labels, in order.

    labels: by task as the head gives them, by task + PROCESSED what is made of its answers, and INTERPOLATED.
    """
    columns = (_task_columns(task, names, task + PROCESSED in labels) for task, names in labels.items())
    return [*FRAME_COLUMNS, *(column for some in columns for column in some)]


def _task_columns(task: str, names: Sequence[str], is_processed: bool) -> Iterator[Column]:
    kind = kind_of(task)
    if task == INTERPOLATED:
        yield _flag(task, "1 where the frame was not encoded: its features lie between those of the frames around it")
    elif task.endswith(PROCESSED):
        yield from _processed_columns(task.removesuffix(PROCESSED), names)
    elif kind == "regression":
        for name in names:
            yield Column(name=name, description=VALENCE_AROUSAL_MEANINGS.get(name, name), minimum=-1, maximum=1)
    elif kind == "one_of":
        if not is_processed:
            yield Column(name=task, description=f"the most probable {task}", storage="string")
        for name, column in zip(names, prediction_columns(task, names), strict=True):
            yield _probability(column, f"probability of the {task} {name}; they sum to 1")
    elif kind == "any_of":
        for name in names:
            yield _probability(name, f"probability that {name} ({ACTION_UNIT_MEANINGS.get(name, name)}) is active")
    else:
        # A head may be newer than this client: its numbers are passed on under the names that it gives.
        for name, column in zip(names, prediction_columns(task, names), strict=True):
            yield Column(name=column, description=f"output {name} of task {task}")


def _processed_columns(task: str, names: Sequence[str]) -> Iterator[Column]:
    kind = kind_of(task)
    if kind == "one_of":
        yield Column(name=task, description=f"the {task} after the declared post-processing", storage="string")
        return
    for name, column in zip(names, prediction_columns(task + PROCESSED, names), strict=True):
        if kind == "any_of":
            yield _flag(column, f"1 while {name} ({ACTION_UNIT_MEANINGS.get(name, name)}) is active, by its thresholds")
        else:
            yield Column(name=column, description=f"{name}, smoothed as declared", minimum=-1, maximum=1)


def _flag(name: str, description: str) -> Column:
    return Column(name=name, description=description, storage="int64", minimum=0, maximum=1)


def prediction_columns(task: str, names: Sequence[str]) -> list[str]:
    """Return the names of the columns that hold the numbers of a task, in the order of its labels."""
    if task == INTERPOLATED:
        return [task]
    if task.endswith(PROCESSED):
        return [
            name + (SMOOTH_SUFFIX if kind_of(task.removesuffix(PROCESSED)) == "regression" else ON_SUFFIX)
            for name in names
        ]
    prefix = {"regression": "", "any_of": "", "one_of": PROBABILITY_PREFIX, None: f"{task}_"}[kind_of(task)]
    return [prefix + name for name in names]


def kind_of(task: str) -> Kind | None:
    """Return the kind of a task; None for one that this client does not know."""
    return TASKS[task].kind if task in TASKS else None


def _probability(name: str, description: str) -> Column:
    return Column(name=name, description=description, minimum=0, maximum=1)


def described_columns(labels: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return name and description, with unit and range, of every column: for help texts and documents."""
    lines = []
    for column in columns_of(labels):
        notes = ", ".join(note for note in (column.unit, column.range) if note)
        lines.append((column.name, f"{column.description} [{notes}]" if notes else column.description))
    return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A block of n consecutive rows of the result; NaN where a frame has no face, or its face no score.

    frame: (n,) int64. timestamp_s: (n,) float64. track_id: (n,) int64, NO_TRACK where a frame has no face.
    box_px: (n, 4) float64: x, y, width, height. face_score: (n,) float64. quality: (n, 4) float64: QUALITY_COLUMNS.
    predictions: (n, K) float32 per task.
    Ordered by frame, then track_id. A frame has a row for each of its faces, or one row without a face.
    """

    frame: NDArray[np.int64]
    timestamp_s: NDArray[np.float64]
    track_id: NDArray[np.int64]
    box_px: NDArray[np.float64]
    face_score: NDArray[np.float64]
    quality: NDArray[np.float64]
    predictions: Outputs

    def __len__(self) -> int:
        return len(self.frame)

    def person(self, k: int) -> SeenPerson:
        """Return who is seen in a row with a face."""
        x, y, width, height = self.box_px[k].tolist()
        predictions = {task: values[k] for task, values in self.predictions.items()}
        return SeenPerson(track_id=int(self.track_id[k]), box_px=(x, y, width, height), predictions=predictions)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenPerson:
    """One face of a frame with what the model says; predictions: (K,) per task."""

    track_id: int
    box_px: Box
    predictions: Mapping[str, NDArray[np.float32]]

    def decided(self, task: str) -> NDArray[np.float32]:
        """Return what was decided of a task (K,): what is made of the answers as declared, else the answers."""
        return self.predictions.get(task + PROCESSED, self.predictions[task])


class Tally:
    """What is counted while the rows of a result go by."""

    def __init__(self) -> None:
        self.rows = 0
        self.frames = 0
        self.frames_with_face = 0
        self.seen: Counter[int] = Counter()  # track_id -> frames
        self.first_s = 0.0  # timestamp
        self.last_s = 0.0
        self._last_frame = -1

    def add(self, rows: Rows) -> None:
        """Count a block; the rows of a frame are in one block or in two that follow each other."""
        faces = rows.track_id != NO_TRACK
        if not self.rows:
            self.first_s = float(rows.timestamp_s[0])
        self.rows += len(rows)
        self.frames += self._new_frames(rows.frame)
        self.frames_with_face += self._new_frames(rows.frame[faces])
        self.seen.update(rows.track_id[faces].tolist())
        self.last_s = float(rows.timestamp_s[-1])
        self._last_frame = int(rows.frame[-1])

    def _new_frames(self, frames: NDArray[np.int64]) -> int:
        return len(set(frames.tolist()) - {self._last_frame})


class FaceRow(NamedTuple):
    """One row to be: a face of a frame, or a frame without one."""

    frame: int
    timestamp_s: float
    track_id: int = NO_TRACK
    box_px: Box = (np.nan,) * 4
    face_score: float = np.nan
    quality: tuple[float, float, float, float] = (np.nan,) * 4  # in the order of QUALITY_COLUMNS
    answer: tuple[Outputs, int] | None = None  # a block of predictions, and the row in it
    interpolated: bool = False


def rows_of_faces(faces: Sequence[FaceRow], labels: Mapping[str, Sequence[str]]) -> Rows:
    """Make a block of rows; a row without an answer has NaN for predictions."""
    frame, timestamp_s, track_id, box_px, face_score, quality, answers, interpolated = zip(*faces, strict=True)
    predictions = {task: np.full((len(faces), len(names)), np.nan, dtype=np.float32) for task, names in labels.items()}
    for k, answer in enumerate(answers):
        if answer is not None:
            outputs, row = answer
            for task, values in predictions.items():
                values[k] = outputs[task][row] if task != INTERPOLATED else interpolated[k]
    return Rows(
        frame=np.array(frame, dtype=np.int64),
        timestamp_s=np.array(timestamp_s, dtype=np.float64),
        track_id=np.array(track_id, dtype=np.int64),
        box_px=np.array(box_px, dtype=np.float64),
        face_score=np.array(face_score, dtype=np.float64),
        quality=np.array(quality, dtype=np.float64),
        predictions=predictions,
    )


def column_values(rows: Rows, labels: Mapping[str, Sequence[str]]) -> Iterator[NDArray[Any]]:
    """Yield the values (n,) of every column, in the order of `columns_of`, as the model gave them.

    Where a frame has no face, what stands in a column that is not `always` filled means nothing.
    """
    yield rows.frame
    yield rows.timestamp_s
    yield rows.track_id
    yield from rows.box_px.T
    yield rows.face_score
    yield from rows.quality.T
    for task, names in labels.items():
        values, made = rows.predictions[task], task.endswith(PROCESSED)
        kind = kind_of(task.removesuffix(PROCESSED))
        if kind == "one_of" and task + PROCESSED not in labels:
            yield np.array(names, dtype=object)[values.argmax(axis=1)]
        if kind != "one_of" or not made:
            yield from values.T


BLOCK_ROWS = 1024
BOX_COLUMNS = ("box_x_px", "box_y_px", "box_w_px", "box_h_px")


def columns_in(cells: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    """Return n rows as a file holds them, cells by column, None where one is empty, as arrays (n,): see Table."""
    return {name: _array(name, column) for name, column in cells.items()}


def _array(name: str, cells: Sequence[Any]) -> NDArray[Any]:
    if name in WHOLE:
        numbers = np.array(
            [NO_TRACK if cell is None else cell for cell in cells], dtype=np.float64
        )  # pandas writes 3.0
        if (numbers % 1).any():
            raise ValueError(f"{name} holds numbers that are not whole")
        return numbers.astype(np.int64)
    if kind_of(name) == "one_of":
        return np.array(cells, dtype=object)
    try:
        return np.array(cells, dtype=np.float64)  # None becomes NaN
    except (ValueError, TypeError):  # what somebody added, or what stands where it must not: see reading.py
        return np.array([None if cell is None else str(cell) for cell in cells], dtype=object)


def rows_of(columns: Mapping[str, NDArray[Any]], labels: Mapping[str, Sequence[str]]) -> Rows:
    """Turn the columns of a file back into a block of rows."""
    return Rows(
        frame=columns["frame"],
        timestamp_s=columns["timestamp_s"],
        track_id=columns["track_id"],
        box_px=np.stack([columns[name] for name in BOX_COLUMNS], axis=1),
        face_score=columns["face_score"],
        quality=np.stack([columns[name] for name in QUALITY_COLUMNS], axis=1),
        predictions={task: _numbers(columns, task, names) for task, names in labels.items()},
    )


def _numbers(columns: Mapping[str, NDArray[Any]], task: str, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the numbers of a task (n, K); of a choice 1 for the class that is chosen, 0 for the others."""
    if task.endswith(PROCESSED) and kind_of(raw := task.removesuffix(PROCESSED)) == "one_of":
        numbers = columns[raw][:, None] == np.array(names, dtype=object)
    else:
        numbers = np.stack([columns[name] for name in prediction_columns(task, names)], axis=1)
    return np.asarray(numbers, dtype=np.float32)
