"""What an evaluation tells: the three numbers, what a constant guess is worth, and the report behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from affserve.train.evaluation.report import write_report
from affserve.train.evaluation.scores import constant_guess, score
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL


def test_score_ignores_unlabelled_frames_and_unlabelled_tasks() -> None:
    truth = {
        VALENCE_AROUSAL.key: np.array([[0.1, 0.2], [0.5, -0.3], [-5, -5]], np.float32),
        EXPRESSION.key: np.array([[-1], [-1], [-1]], np.float32),
    }
    valid = {VALENCE_AROUSAL.key: np.array([True, True, False]), EXPRESSION.key: np.zeros(3, bool)}
    predicted = {VALENCE_AROUSAL.key: truth[VALENCE_AROUSAL.key].clip(-1, 1), EXPRESSION.key: np.ones((3, 8))}
    scores = score(predicted, truth, valid)
    assert scores.by_task == {VALENCE_AROUSAL.key: pytest.approx(1)}
    assert scores.frames == {VALENCE_AROUSAL.key: 2}


def test_constant_guess_takes_the_most_frequent_class_and_scores_no_ccc() -> None:
    truth = {
        VALENCE_AROUSAL.key: np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32),
        EXPRESSION.key: np.array([[0]] * 20 + [[4]] * 30, np.float32),
        ACTION_UNITS.key: np.ones((50, 12), np.float32),
    }
    valid = {key: np.ones(50, bool) for key in truth}
    guess = constant_guess(truth, valid)
    scores = score(guess, truth, valid).by_task
    assert scores[VALENCE_AROUSAL.key] == pytest.approx(0, abs=1e-6)
    assert scores[EXPRESSION.key] == pytest.approx((2 * 30 / 80) / 8)
    assert scores[ACTION_UNITS.key] == 1


Arrays = dict[str, NDArray[Any]]


def judged(frames: int = 400) -> tuple[Arrays, Arrays, Arrays]:
    """Outputs, labels and validity for all three tasks."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 8, frames)
    truth = {
        VALENCE_AROUSAL.key: rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
        EXPRESSION.key: classes[:, None].astype(np.float32),
        ACTION_UNITS.key: (rng.random((frames, 12)) < 0.3).astype(np.float32),
    }
    predicted = {
        VALENCE_AROUSAL.key: (0.5 * truth[VALENCE_AROUSAL.key]).astype(np.float32),
        EXPRESSION.key: np.eye(8, dtype=np.float32)[np.where(classes == 3, 0, classes)],
        ACTION_UNITS.key: rng.random((frames, 12)).astype(np.float32),
    }
    valid = {key: rng.random(frames) < 0.8 for key in TASKS}
    truth[EXPRESSION.key][~valid[EXPRESSION.key]] = EXPRESSION.invalid
    return predicted, truth, valid


def test_report_tells_who_is_taken_for_whom(tmp_path: Path) -> None:
    predicted, truth, valid = judged()
    scores = write_report(tmp_path / "report", predicted, truth, valid)
    assert scores == score(predicted, truth, valid)
    document = json.loads((tmp_path / "report/report.json").read_text())
    frames = np.array(document["confusion"]["frames"])
    fears = int(((truth[EXPRESSION.key][:, 0] == 3) & valid[EXPRESSION.key]).sum())
    assert frames.sum() == valid[EXPRESSION.key].sum()
    assert frames[3, 0] == fears  # all fear was called neutral
    assert frames[3, 3] == 0
    assert document["expression"]["Fear"] == {
        "f1": 0, "precision": 0, "recall": 0, "frames": fears, "predicted_frames": 0
    }  # fmt: skip
    assert document["valence_arousal"]["valence"]["pearson"] == pytest.approx(1)
    assert document["valence_arousal"]["valence"]["ccc"] == pytest.approx(0.8, abs=0.01)
    assert document["scores"] == pytest.approx(scores.summary())
    table = (tmp_path / "report/report.md").read_text()
    assert f"| expressions | macro F1 | {scores.by_task[EXPRESSION.key]:.4f} |" in table
    assert f"| Fear | {fears} | 0 |" in table
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "report.png"}


@pytest.mark.parametrize("keys", [(key,) for key in TASKS] + [tuple(TASKS)], ids="+".join)
def test_picture_has_a_panel_for_every_scored_task(keys: tuple[str, ...], tmp_path: Path) -> None:
    arrays = [{key: part[key] for key in keys} for part in judged()]
    write_report(tmp_path, *arrays)
    picture = cv2.imread(str(tmp_path / "report.png"))
    height = 6.6 * (EXPRESSION.key in keys) + 4.6 * (keys != (EXPRESSION.key,))
    assert picture.shape == (round(120 * height), 13 * 120, 3)
    assert (picture < 200).mean() > 0.02  # something is drawn


@pytest.mark.parametrize("case", ["one-frame", "constant", "nothing-labelled", "diverged"])
def test_degenerate_answers_give_a_report_without_nan(case: str, tmp_path: Path) -> None:
    predicted, truth, valid = judged(1 if case == "one-frame" else 50)
    if case == "constant":
        predicted = {key: np.full_like(values, 0.5) for key, values in predicted.items()}
    if case == "diverged":
        predicted = {key: np.full_like(values, np.nan) for key, values in predicted.items()}
    valid = {key: np.full_like(values, case != "nothing-labelled") for key, values in valid.items()}
    truth[EXPRESSION.key] = truth[EXPRESSION.key].clip(0)
    scores = write_report(tmp_path, predicted, truth, valid)
    assert bool(scores.by_task) == (case != "nothing-labelled")
    assert all(math.isfinite(value) for value in scores.summary().values())
    text = (tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))


def test_intervals_over_people_are_those_of_drawing_them() -> None:
    rng = np.random.default_rng(1)
    truth = {
        key: rng.integers(0, max(task.high, 1) + 1, (90, task.columns)).astype(np.float32)
        for key, task in TASKS.items()
    }
    predicted = {key: rng.random((90, task.outputs)).astype(np.float32) for key, task in TASKS.items()}
    truth[VALENCE_AROUSAL.key] = (predicted[VALENCE_AROUSAL.key] + rng.normal(0, 0.3, (90, 2))).astype(np.float32)
    truth["action_units"][:, 3] = -1  # not labelled
    person = np.repeat([0, 1], [30, 60])
    told = score(predicted, truth, {key: np.ones(90, bool) for key in TASKS}, dict.fromkeys(TASKS, person))
    # Of two people the same one is drawn twice half of the time.
    drawn = [
        score(predicted, truth, dict.fromkeys(TASKS, rows)).summary()
        for rows in (person == 0, person == 1, person >= 0)
    ]
    for name, ends in told.intervals.items():
        values = [one[name] for one in drawn]
        assert ends == pytest.approx([min(values), max(values)], abs=1e-4)
    assert set(told.intervals) == set(told.summary())
    assert told.share("action_units") == ", 11 of 12 units"
    assert not score(predicted, truth, dict.fromkeys(TASKS, person == 0), dict.fromkeys(TASKS, person)).intervals
