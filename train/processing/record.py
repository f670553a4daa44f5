"""What is declared to be made of a head's answers: a record that travels from the checkpoint to every client.

By task key: `Smoothing` of numbers, `Choice` of one class, `Episodes` of units. A task without a record is left as the
head answers it. As JSON, with only what differs from the defaults:

    {"valence_arousal": {"filter": "median", "frames": 9},
     "expression": {"frames": 40, "biases": {"Fear": 0.7}},
     "action_units": {"on": {"AU12": 0.4}, "off": 0.3, "shortest_frames": 5}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from affserve.train.errors import DataError
from affserve.train.labels import TASKS, Kind
from affserve.train.processing.filters import (
    Choose,
    Exponential,
    Hysteresis,
    Stage,
    Window,
    median,
    most_frequent,
    without_short,
)

MEDIAN, EXPONENTIAL = "median", "exponential"
MOST_FRAMES = 10_000  # of a window: a client holds it in memory
PROCESSED = ".processed"  # after a task's key: the key of what is made of its answers
ByName = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """Of numbers."""

    filter: str = MEDIAN  # or exponential, where a new frame counts 2 / (frames + 1)
    frames: int = 1  # of the window

    def check(self, names: Sequence[str]) -> None:
        """Raise a ValueError that says what is wrong."""
        if self.filter not in (MEDIAN, EXPONENTIAL):
            raise ValueError(f"filter is {self.filter!r}; expected {MEDIAN} or {EXPONENTIAL}")
        _check_frames("frames", self.frames)

    def stages(self, names: Sequence[str], *, causal: bool) -> list[Stage]:
        """Return the filters; causal: that never look ahead."""
        if self.filter == EXPONENTIAL:
            return [Exponential(2 / (self.frames + 1))]
        return [_window(median, self.frames, causal=causal)]

    def words(self) -> str:
        """Describe it."""
        return f"{self.filter} of {self.frames} frames"

    left_out: ClassVar[str] = ""  # where nothing may look ahead


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of one class: the largest log(p) + bias, then the most frequent one of the frames around."""

    frames: int = 1  # of the window
    biases: ByName = field(default_factory=dict)  # by class; 0 where none stands

    def check(self, names: Sequence[str]) -> None:
        """Raise a ValueError that says what is wrong."""
        _check_frames("frames", self.frames)
        _check_names("biases", self.biases, names, -100, 100)

    def stages(self, names: Sequence[str], *, causal: bool) -> list[Stage]:
        """Return the filters; causal: that never look ahead."""
        return [Choose(_values(self.biases, names, 0.0)), _window(most_frequent, self.frames, causal=causal)]

    def words(self) -> str:
        """Describe it."""
        told = [f"most frequent of {self.frames} frames"] if self.frames > 1 else []
        return ", ".join([*told, *(f"{name} {bias:+.2f}" for name, bias in self.biases.items())])

    left_out: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Of units: each begins at `on`, ends below `off`, and is dropped where it has fewer than `shortest_frames`."""

    on: ByName = field(default_factory=dict)  # probability, by unit; 0.5 where none stands
    off: ByName = field(default_factory=dict)  # as `on` where none stands
    shortest_frames: ByName = field(default_factory=dict)  # 1 where none stands

    def check(self, names: Sequence[str]) -> None:
        """Raise a ValueError that says what is wrong."""
        _check_names("on", self.on, names, 0, 1)
        _check_names("off", self.off, names, 0, 1)
        _check_names("shortest_frames", self.shortest_frames, names, 1, MOST_FRAMES)
        if wrong := [name for name in self.off if self.off[name] > self.on.get(name, 0.5)]:
            raise ValueError(f"off of {wrong[0]} is {self.off[wrong[0]]:g}; expected at most its on")

    def stages(self, names: Sequence[str], *, causal: bool) -> list[Stage]:
        """Return the filters; causal: without the shortest length, which is known only afterwards."""
        on = _values(self.on, names, 0.5)
        off = np.array([self.off.get(name, limit) for name, limit in zip(names, on.tolist(), strict=True)])
        shortest = _values(self.shortest_frames, names, 1).astype(np.int64)
        reach = int(shortest.max()) - 1
        drop = [] if causal or not reach else [Window(lambda active: without_short(active, shortest), reach, reach)]
        return [Hysteresis(on, off), *drop]

    def words(self) -> str:
        """Describe it."""
        told = (("on", self.on), ("off", self.off), ("shortest frames", self.shortest_frames))
        return "; ".join(f"{what} {_by_value(values)}" for what, values in told if values) or "on 0.5"

    @property
    def left_out(self) -> str:
        """What is left out where nothing may look ahead."""
        return "the shortest length of episodes" if max(self.shortest_frames.values(), default=1) > 1 else ""


Record = Smoothing | Choice | Episodes
Processing = Mapping[str, Record]
"""By task key; empty: answers are left as they are."""

KINDS: dict[Kind, type[Record]] = {"regression": Smoothing, "one_of": Choice, "any_of": Episodes}
NUMBER_FOR_ALL = ("on", "off", "shortest_frames")  # one number instead of one by name


def _check_frames(what: str, frames: object) -> None:
    if type(frames) is not int or not 1 <= frames <= MOST_FRAMES:
        raise ValueError(f"{what} is {frames!r}; expected a whole number from 1 to {MOST_FRAMES}")


def _check_names(what: str, values: ByName, names: Sequence[str], low: float, high: float) -> None:
    if unknown := sorted(values.keys() - set(names)):
        raise ValueError(f"{what} names {unknown[0]!r}; expected some of {', '.join(names)}")
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{what} of {name} is {value!r}; expected a number from {low:g} to {high:g}")


def _values(by_name: ByName, names: Sequence[str], default: float) -> NDArray[np.float64]:
    return np.array([by_name.get(name, default) for name in names], dtype=np.float64)


def _by_value(values: ByName) -> str:
    if len(values) > 1 and len(set(values.values())) == 1:
        return f"{next(iter(values.values())):g} for {len(values)} units"
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _window(apply: Any, frames: int, *, causal: bool) -> Window:
    before = frames - 1 if causal else frames // 2
    after = frames - 1 - before
    return Window(lambda values: apply(values, before, after), before, after)


def parse_processing(document: object, labels: Mapping[str, Sequence[str]], source: str) -> dict[str, Record]:
    """Read a record from JSON values; DataError, beginning with `source`, says what is wrong with it.

    labels: of the head's tasks; names are checked against them.
    """
    if not isinstance(document, Mapping):
        raise DataError(f"{source}: post-processing is {document!r}; expected an object of tasks")
    return {str(task): _parsed(str(task), values, labels, source) for task, values in document.items()}


def _parsed(task: str, values: object, labels: Mapping[str, Sequence[str]], source: str) -> Record:
    if task not in labels or task not in TASKS:
        raise DataError(f"{source}: post-processing of {task!r}; the head answers {', '.join(labels)}")
    kind = KINDS[TASKS[task].kind]
    known = [one.name for one in fields(kind)]
    if not isinstance(values, Mapping) or (set(values) - set(known)):
        raise DataError(f"{source}: post-processing of {task} is {values!r}; expected an object of {', '.join(known)}")
    spelt: dict[str, Any] = {
        name: dict.fromkeys(labels[task], value) if name in NUMBER_FOR_ALL and isinstance(value, int | float) else value
        for name, value in values.items()
    }
    try:
        record = kind(**spelt)
        record.check(labels[task])
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: post-processing of {task}: {error}") from error
    return record


def as_document(processing: Processing) -> dict[str, Any]:
    """Return a record as values for JSON, without what is as it would be anyway; `parse_processing` reads it."""
    return {
        task: {one.name: value for one in fields(record) if (value := getattr(record, one.name)) not in ({}, 1)}
        for task, record in processing.items()
    }


def read_processing(path: Path, labels: Mapping[str, Sequence[str]]) -> dict[str, Record]:
    """Read a file of a record; DataError where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    return parse_processing(document, labels, str(path))


NO_PROCESSING = "none"


def chosen_processing(
    wish: str | None, labels: Mapping[str, Sequence[str]], declared: Iterable[Processing]
) -> dict[str, Record]:
    """Return what a file named `wish` declares; nothing for "none", and what heads declare for None."""
    if wish is None:
        return {task: one for processing in declared for task, one in processing.items()}
    return {} if wish == NO_PROCESSING else read_processing(Path(wish), labels)


def words(processing: Processing, *, causal: bool = False) -> list[str]:
    """Describe a record for people, a line a task; causal: what is left out where nothing may look ahead."""
    if causal:
        return [f"{TASKS[task].title}: {one.left_out}" for task, one in processing.items() if one.left_out]
    return [f"{TASKS[task].title}: {one.words() or 'the most probable'}" for task, one in processing.items()]


def processed_labels(labels: Mapping[str, tuple[str, ...]], processing: Processing) -> dict[str, tuple[str, ...]]:
    """Return labels by the keys of all that there is then: a choice before the probabilities, others after theirs."""
    keys: dict[str, tuple[str, ...]] = {}
    for task, names in labels.items():
        made = {task + PROCESSED: names} if task in processing else {}
        keys |= {**made, task: names} if isinstance(processing.get(task), Choice) else {task: names, **made}
    return keys
