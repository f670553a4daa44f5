"""The vocabulary of Aff-Wild2: tasks, the order of their labels, and invalid codes.

The order of every label list is the official index order of the ABAW challenge files; nothing else in the project
repeats it. What is done about a task follows from its kind: a new task of a known kind is trained, scored and served as
soon as it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from affserve.train.errors import DataError

Kind = Literal["regression", "one_of", "any_of"]
"""What a task asks of a frame: numbers in [-1, 1], one class out of K, or each of K units on its own."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the three ABAW tasks: what it is called, what a model puts out, what a file holds."""

    key: str  # name of the model output and of the option value
    kind: Kind
    title: str  # for tables and plots
    challenge: str  # folder below annotations/
    older_challenges: tuple[str, ...] = ()  # the same folder in older releases
    names: tuple[str, ...]  # one per model output, in index order
    invalid: float  # code of an unlabelled frame
    paper_epochs: int  # that the paper trains a head of this task

    @property
    def outputs(self) -> int:
        """K, the number of model outputs per frame."""
        return len(self.names)

    @property
    def header(self) -> str:
        """First line of an annotation file."""
        return ",".join(self.names)

    @property
    def columns(self) -> int:
        """Numbers on one line of an annotation file."""
        return 1 if self.kind == "one_of" else self.outputs

    @property
    def low(self) -> float:
        """Smallest valid value in a file."""
        return -1 if self.kind == "regression" else 0

    @property
    def high(self) -> float:
        """Largest valid value in a file."""
        return self.outputs - 1 if self.kind == "one_of" else 1

    @property
    def integer(self) -> bool:
        """Whether file values are whole numbers."""
        return self.kind != "regression"


VALENCE_AROUSAL = Task(
    key="valence_arousal",
    kind="regression",
    title="valence-arousal",
    challenge="VA_Estimation_Challenge",
    names=("valence", "arousal"),
    invalid=-5,
    paper_epochs=40,
)
EXPRESSION = Task(
    key="expression",
    kind="one_of",
    title="expressions",
    challenge="EXPR_Recognition_Challenge",
    older_challenges=("EXPR_Classification_Challenge",),
    names=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    invalid=-1,
    paper_epochs=10,
)
ACTION_UNITS = Task(
    key="action_units",
    kind="any_of",
    title="action units",
    challenge="AU_Detection_Challenge",
    names=("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"),
    invalid=-1,
    paper_epochs=30,
)
TASKS: dict[str, Task] = {task.key: task for task in (VALENCE_AROUSAL, EXPRESSION, ACTION_UNITS)}


def task_by_key(key: str) -> Task:
    """Return the task called `key`; an unknown key is a DataError that lists the known ones."""
    if key not in TASKS:
        raise DataError(f"unknown task {key!r}; expected one of {', '.join(TASKS)}")
    return TASKS[key]
