"""The vocabulary of Aff-Wild2: tasks, the order of their labels, and invalid codes.

The order of every label list is the official index order of the ABAW challenge files; nothing else in the project
repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from affserve.train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the three ABAW tasks: what it is called, what a model puts out, what a file holds."""

    key: str  # name of the model output and of the option value
    title: str  # for tables and plots
    challenge: str  # folder below annotations/
    older_challenges: tuple[str, ...] = ()  # the same folder in older releases
    names: tuple[str, ...] = field()  # one per model output, in index order
    columns: int  # numbers on one line of an annotation file
    invalid: float  # code of an unlabelled frame
    low: float  # smallest valid value in a file
    high: float  # largest valid value in a file
    integer: bool  # whether file values are whole numbers

    @property
    def outputs(self) -> int:
        """K, the number of model outputs per frame."""
        return len(self.names)

    @property
    def header(self) -> str:
        """First line of an annotation file."""
        return ",".join(self.names)


VALENCE_AROUSAL = Task(
    key="valence_arousal",
    title="valence-arousal",
    challenge="VA_Estimation_Challenge",
    names=("valence", "arousal"),
    columns=2,
    invalid=-5,
    low=-1,
    high=1,
    integer=False,
)
EXPRESSION = Task(
    key="expression",
    title="expressions",
    challenge="EXPR_Recognition_Challenge",
    older_challenges=("EXPR_Classification_Challenge",),
    names=("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"),
    columns=1,
    invalid=-1,
    low=0,
    high=7,
    integer=True,
)
ACTION_UNITS = Task(
    key="action_units",
    title="action units",
    challenge="AU_Detection_Challenge",
    names=("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"),
    columns=12,
    invalid=-1,
    low=0,
    high=1,
    integer=True,
)
TASKS: dict[str, Task] = {task.key: task for task in (VALENCE_AROUSAL, EXPRESSION, ACTION_UNITS)}


def task_by_key(key: str) -> Task:
    """Return the task called `key`; an unknown key is a DataError that lists the known ones."""
    if key not in TASKS:
        raise DataError(f"unknown task {key!r}; expected one of {', '.join(TASKS)}")
    return TASKS[key]
