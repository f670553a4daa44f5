"""Thresholds and biases find what F1 wants, gain where classes are rare, and are told by people who had no part."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from affserve.train.errors import DataError
from affserve.train.evaluation.tuning import AnsweredVideo, best_biases, best_threshold, tune
from affserve.train.labels import ACTION_UNITS, EXPRESSION
from affserve.train.processing.record import Choice, Episodes


def softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32)


def videos(people: int, *, informed: bool) -> list[AnsweredVideo]:
    """A head that calls the rare too seldom: as if it had been trained on few of them; or one that knows nothing."""
    rng = np.random.default_rng(3)
    made = []
    for person in range(people):
        labels = rng.choice(8, 400, p=[0.5, 0.3, 0.02, 0.02, 0.06, 0.04, 0.03, 0.03])
        units = rng.random((400, 12)) < 0.08
        told = 2.5 * np.eye(8)[labels] if informed else np.zeros((400, 8))
        logits = told + rng.normal(0, 1, (400, 8)) + [2, 1.5, -1, -1, 0, 0, 0, 0]
        lifted = (2.0 * units if informed else 0.0) + rng.normal(-2.5, 0.7, (400, 12))
        made.append(
            AnsweredVideo(
                person=f"person {person}",
                outputs={
                    EXPRESSION.key: softmax(logits),
                    ACTION_UNITS.key: (1 / (1 + np.exp(-lifted))).astype(np.float32),
                },
                truth={EXPRESSION.key: labels[:, None].astype(np.float32), ACTION_UNITS.key: units.astype(np.float32)},
                valid=dict.fromkeys((EXPRESSION.key, ACTION_UNITS.key), rng.random(400) < 0.9),
            )
        )
    return made


def test_threshold_and_biases_are_as_good_as_a_search_finds() -> None:
    (video,) = videos(1, informed=True)
    units, probabilities = video.truth[ACTION_UNITS.key][:, 3] > 0.5, video.outputs[ACTION_UNITS.key][:, 3]
    by_search = max(f1_score(units, probabilities >= limit) for limit in np.arange(0.01, 1, 0.01))
    assert f1_score(units, probabilities >= best_threshold(probabilities, units)) > by_search - 0.05

    labels, outputs = video.truth[EXPRESSION.key][:, 0].astype(int), video.outputs[EXPRESSION.key]
    biased = (np.log(outputs) + best_biases(outputs, labels)).argmax(axis=1)
    plain = f1_score(labels, outputs.argmax(axis=1), average="macro")
    assert f1_score(labels, biased, average="macro") > plain + 0.05
    assert best_threshold(probabilities, np.zeros(400, dtype=bool)) == 0.5


def test_what_gains_on_other_people_is_declared_and_what_does_not_is_left() -> None:
    base = {ACTION_UNITS.key: Episodes(off={"AU1": 0.45}, shortest_frames={"AU1": 3})}
    declared, gains = tune(videos(8, informed=True), base, folds=4)

    assert all(gain.kept and gain.low > 0 and gain.people == 8 for gain in gains.values())
    choice, episodes = declared[EXPRESSION.key], declared[ACTION_UNITS.key]
    assert isinstance(choice, Choice)
    assert isinstance(episodes, Episodes)
    assert choice.biases["Disgust"] > choice.biases.get("Neutral", 0)
    assert all(limit < 0.45 for limit in episodes.on.values())
    assert episodes.off["AU1"] <= episodes.on["AU1"]
    assert episodes.shortest_frames == {"AU1": 3}

    chance, gains = tune(videos(6, informed=False), {}, folds=3)
    assert all(abs(gain.after - gain.before) < 0.2 for gain in gains.values())
    assert set(chance) == {task for task, gain in gains.items() if gain.kept}
    with pytest.raises(DataError, match="1 people have labels of expression; expected at least 2"):
        tune(videos(1, informed=True), {}, folds=3)
