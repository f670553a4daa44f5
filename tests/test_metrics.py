"""Metrics and losses against their definitions, on random and on degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from affserve.train.evaluation import constant_guess, score
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.losses import LOSSES, ccc_loss, task_losses
from affserve.train.metrics import action_unit_f1, binary_f1, ccc, expression_f1


def test_ccc_equals_its_textbook_form() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    y = 0.5 * x + 0.2 + 0.3 * rng.normal(size=1000)
    pearson = np.corrcoef(x, y)[0, 1]
    expected = 2 * pearson * x.std() * y.std() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert ccc(x, y) == pytest.approx(expected, abs=1e-12)
    assert ccc(x, x) == pytest.approx(1)
    assert ccc(x, -x) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param([], [], id="empty"),
        pytest.param([0.3, 0.3], [0.3, 0.3], id="equal-constants"),
        pytest.param([0.1, 0.5], [0.3, 0.3], id="constant-guess"),
    ],
)
def test_ccc_of_no_information_is_zero(x: list[float], y: list[float]) -> None:
    assert ccc(x, y) == 0


def test_f1_counts_by_hand() -> None:
    truth = [1, 1, 1, 0, 0, 0]
    prediction = [1, 1, 0, 1, 0, 0]
    assert binary_f1(truth, prediction) == pytest.approx(2 * 2 / (3 + 3))
    assert binary_f1([0, 0], [0, 0]) == 0
    np.testing.assert_allclose(
        expression_f1(np.array([0, 0, 4, 4]), np.array([0, 4, 4, 4])), [2 / 3, 0, 0, 0, 0.8, 0, 0, 0]
    )


def test_action_unit_threshold_is_one_half_inclusive() -> None:
    truth = np.ones((2, 12), np.float32)
    np.testing.assert_allclose(action_unit_f1(truth, np.full((2, 12), 0.5, np.float32)), 1)
    np.testing.assert_allclose(action_unit_f1(truth, np.full((2, 12), 0.499, np.float32)), 0)


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


def test_ccc_loss_is_one_minus_the_metric() -> None:
    rng = np.random.default_rng(1)
    truth, raw = rng.uniform(-1, 1, (2, 200, 2))
    loss = float(ccc_loss(torch.from_numpy(raw), torch.from_numpy(truth)))
    assert loss == pytest.approx(1 - (ccc(truth[:, 0], raw[:, 0]) + ccc(truth[:, 1], raw[:, 1])) / 2, abs=1e-6)


@pytest.mark.parametrize("key", list(LOSSES))
@pytest.mark.parametrize("labelled", [0, 1, 6], ids=["none-labelled", "one", "constant"])
def test_losses_have_finite_gradients_on_degenerate_batches(key: str, labelled: int) -> None:
    outputs = {VALENCE_AROUSAL.key: 2, EXPRESSION.key: 8, ACTION_UNITS.key: 12}[key]
    columns = {VALENCE_AROUSAL.key: 2, EXPRESSION.key: 1, ACTION_UNITS.key: 12}[key]
    raw = torch.zeros(2, 3, outputs, requires_grad=True)
    valid = torch.arange(6).reshape(2, 3) < labelled
    loss = task_losses({key: raw}, {key: torch.zeros(2, 3, columns)}, {key: valid})[key]
    loss.backward()
    assert torch.isfinite(loss)
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert (raw.grad[~valid] == 0).all()
