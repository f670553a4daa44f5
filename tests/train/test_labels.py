"""The vocabulary and the annotation files: official order, invalid codes, clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affserve.train.corpus.annotations import format_annotation, read_annotation
from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Task


def test_headers_are_the_official_ones() -> None:
    assert VALENCE_AROUSAL.header == "valence,arousal"
    assert EXPRESSION.header == "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
    assert ACTION_UNITS.header == "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_annotations_survive_writing_and_reading(task: Task, tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(task.low, task.high, (50, task.columns)).astype(np.float32)
    values = values.round(0 if task.integer else 3)
    values[3] = task.invalid
    (tmp_path / "a.txt").write_text(format_annotation(task, values))
    back = read_annotation(tmp_path / "a.txt", task)
    np.testing.assert_allclose(back.values, values, atol=1e-6)
    assert np.flatnonzero(~back.valid).tolist() == [3]


@pytest.mark.parametrize(
    ("task", "row", "valid"),
    [
        pytest.param(VALENCE_AROUSAL, "-5,-5", False, id="va-missing"),
        pytest.param(VALENCE_AROUSAL, "0.25,-5", False, id="va-half-missing"),
        pytest.param(VALENCE_AROUSAL, "-1,1", True, id="va-extremes"),
        pytest.param(EXPRESSION, "-1", False, id="expression-missing"),
        pytest.param(EXPRESSION, "7", True, id="expression-other"),
        pytest.param(ACTION_UNITS, "0,1,0,0,0,0,-1,0,0,0,1,0", False, id="one-action-unit-missing"),
        pytest.param(ACTION_UNITS, "0,1,0,0,0,0,0,0,0,0,1,0", True, id="action-units"),
    ],
)
def test_invalid_codes(task: Task, row: str, valid: bool, tmp_path: Path) -> None:
    whole = ",".join(["0"] * task.columns)  # a row that has them all
    (tmp_path / "a.txt").write_text(f"{task.header}\n{row}\n{whole}\n")
    assert read_annotation(tmp_path / "a.txt", task).valid.tolist() == [valid, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "first line is 'nothing'", id="empty"),
        pytest.param("arousal,valence\n0,0\n", "expected 'valence,arousal'", id="swapped-header"),
        pytest.param("valence,arousal\n0.1\n", r"a.txt:2: found '0.1', expected 2", id="short-row"),
        pytest.param("valence,arousal\n0,0\nx,0\n", r"a.txt:3: found 'x,0'", id="not-a-number"),
    ],
)
def test_bad_files_are_named_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotation(tmp_path / "a.txt", VALENCE_AROUSAL)
