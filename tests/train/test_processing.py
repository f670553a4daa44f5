"""Filters against brute force, in any cut into blocks; records that say what is wrong with them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL
from affserve.train.processing.processor import Processor, processed
from affserve.train.processing.record import (
    PROCESSED,
    Processing,
    as_document,
    parse_processing,
    processed_labels,
    words,
)
from affserve.train.windows import Outputs

LABELS = {key: task.names for key, task in TASKS.items()}


def answers(frames: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return {
        VALENCE_AROUSAL.key: rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
        EXPRESSION.key: rng.dirichlet(np.full(8, 0.3), frames).astype(np.float32),
        ACTION_UNITS.key: rng.uniform(0, 1, (frames, 12)).astype(np.float32),
    }


def record(document: dict[str, Any]) -> Processing:
    return parse_processing(document, LABELS, "test")


def around(values: NDArray[Any], k: int, frames: int, *, causal: bool) -> NDArray[Any]:
    first = k - frames + 1 if causal else k - frames // 2
    return values[max(first, 0) : first + frames]


def brute_force(outputs: Outputs, document: dict[str, Any], *, causal: bool) -> Outputs:
    """The definitions, a frame at a time."""
    made: Outputs = {}
    numbers = outputs[VALENCE_AROUSAL.key]
    wish = document[VALENCE_AROUSAL.key]
    if wish["filter"] == "median":
        rows = [np.median(around(numbers, k, wish["frames"], causal=causal), axis=0) for k in range(len(numbers))]
    else:
        rows, share = [numbers[0].astype(np.float64)], 2 / (wish["frames"] + 1)
        for row in numbers[1:]:
            rows.append(share * row + (1 - share) * rows[-1])
    made[VALENCE_AROUSAL.key] = np.array(rows, dtype=np.float32)

    wish = document[EXPRESSION.key]
    biases = np.array([wish["biases"].get(name, 0) for name in EXPRESSION.names])
    own = (np.log(outputs[EXPRESSION.key].astype(np.float64)) + biases).argmax(axis=1)
    classes = []
    for k, mine in enumerate(own.tolist()):
        votes = Counter(around(own, k, wish["frames"], causal=causal).tolist())
        classes.append(mine if votes[mine] == max(votes.values()) else min(votes, key=lambda c: (-votes[c], c)))
    made[EXPRESSION.key] = np.eye(8, dtype=np.float32)[classes]

    wish = document[ACTION_UNITS.key]
    units = np.zeros_like(outputs[ACTION_UNITS.key])
    for column, name in enumerate(ACTION_UNITS.names):
        active = False
        for k, value in enumerate(outputs[ACTION_UNITS.key][:, column].tolist()):
            active = value >= (wish["off"] if active else wish["on"].get(name, 0.5))
            units[k, column] = active
        runs = np.flatnonzero(np.diff(units[:, column], prepend=0, append=0)).reshape(-1, 2)
        for start, end in runs.tolist() if not causal else []:
            if end - start < wish["shortest_frames"].get(name, 1):
                units[start:end, column] = 0
    made[ACTION_UNITS.key] = units
    return made


def pushed(processor: Processor, outputs: Outputs, cuts: list[int]) -> Outputs:
    frames = len(outputs[EXPRESSION.key])
    edges = [0, *sorted(min(cut, frames) for cut in cuts), frames]
    blocks = [{key: v[a:b] for key, v in outputs.items()} for a, b in itertools.pairwise(edges)]
    parts = [*map(processor.push, blocks), processor.finish()]
    return {key: np.concatenate([part[key] for part in parts if key in part]) for key in parts[0]}


@given(
    frames=st.integers(1, 60),
    seed=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    window=st.integers(1, 12),
    numbers=st.sampled_from(["median", "exponential"]),
    shortest=st.integers(1, 6),
    causal=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_blocks_of_any_size_give_what_the_definitions_say(
    frames: int, seed: int, cuts: list[int], window: int, numbers: str, shortest: int, causal: bool
) -> None:
    outputs = answers(frames, seed)
    document = {
        VALENCE_AROUSAL.key: {"filter": numbers, "frames": window},
        EXPRESSION.key: {"frames": window, "biases": {"Fear": 1.5, "Neutral": -1.0}},
        ACTION_UNITS.key: {"on": {"AU12": 0.7, "AU25": 0.4}, "off": 0.3, "shortest_frames": {"AU4": shortest}},
    }
    processor = Processor(record(document), LABELS, causal=causal)

    made = pushed(processor, outputs, cuts)
    again = pushed(processor, outputs, [])  # of the next person, whom nothing reminds of the last

    expected = brute_force(outputs, document, causal=causal)
    for task, values in expected.items():
        np.testing.assert_allclose(made[task + PROCESSED], values, atol=1e-6)
        np.testing.assert_array_equal(made[task], outputs[task])
        np.testing.assert_array_equal(again[task + PROCESSED], made[task + PROCESSED])


def test_causal_answers_are_there_at_once() -> None:
    document = {EXPRESSION.key: {"frames": 40}, ACTION_UNITS.key: {"shortest_frames": 5}}
    live, file = (Processor(record(document), LABELS, causal=causal) for causal in (True, False))
    one = answers(1)
    assert len(live.push(one)[EXPRESSION.key]) == 1
    assert not len(file.push(one)[EXPRESSION.key])
    assert words(record(document), causal=True) == ["action units: the shortest length of episodes"]


def test_what_is_not_a_number_stays_none() -> None:
    outputs = answers(9)
    outputs[EXPRESSION.key][4] = np.nan
    made = processed(outputs, record({EXPRESSION.key: {"frames": 5}}), LABELS)
    assert np.isnan(made[EXPRESSION.key]).all(axis=1).tolist() == [k == 4 for k in range(9)]
    assert made[VALENCE_AROUSAL.key] is not None


def test_a_record_is_written_as_it_is_read_and_told_in_words() -> None:
    document = {
        "valence_arousal": {"filter": "exponential", "frames": 9},
        "expression": {"frames": 40, "biases": {"Fear": 0.7}},
        "action_units": {"on": {"AU12": 0.4}, "shortest_frames": 5},
    }
    read = record(document)
    assert record(as_document(read)) == read
    assert as_document(read)["expression"] == document["expression"]
    assert words(read) == [
        "valence-arousal: exponential of 9 frames",
        "expressions: most frequent of 40 frames, Fear +0.70",
        "action units: on AU12 0.4; shortest frames 5 for 12 units",
    ]
    assert list(processed_labels(LABELS, read)) == [
        *("valence_arousal", "valence_arousal.processed", "expression.processed", "expression"),
        *("action_units", "action_units.processed"),
    ]
    assert processed_labels(LABELS, {}) == LABELS


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([1], "expected an object of tasks"),
        ({"pain": {}}, "'pain'; the head answers valence_arousal, expression, action_units"),
        ({"expression": {"window": 3}}, "expected an object of frames, biases"),
        ({"expression": {"frames": 0}}, "frames is 0; expected a whole number from 1"),
        ({"expression": {"frames": True}}, "frames is True"),
        ({"expression": {"biases": {"Contempt": 1}}}, "biases names 'Contempt'; expected some of Neutral"),
        ({"expression": {"biases": [1]}}, "post-processing of expression: "),
        ({"valence_arousal": {"filter": "mean"}}, "filter is 'mean'; expected median or exponential"),
        ({"action_units": {"on": {"AU1": 1.5}}}, "on of AU1 is 1.5; expected a number from 0 to 1"),
        ({"action_units": {"on": 0.4, "off": 0.6}}, "off of AU1 is 0.6; expected at most its on"),
    ],
)
def test_a_bad_record_says_what_is_wrong(document: Any, told: str) -> None:
    with pytest.raises(DataError, match=r"talk\.json: ") as caught:
        parse_processing(document, LABELS, "talk.json")
    assert told in str(caught.value)
