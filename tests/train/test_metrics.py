"""The metrics against independent libraries and by hand, on random and on degenerate input.

The references are torchmetrics for the CCC and scikit-learn for F1, called as a user of those libraries would.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score
from torchmetrics.functional.regression import concordance_corrcoef, pearson_corrcoef

from affserve.train.evaluation.metrics import ccc, chosen_class, confusion_counts, pearson, score_each
from affserve.train.evaluation.scores import score
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL


@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param([], [], id="empty"),
        pytest.param([0.3, 0.3], [0.3, 0.3], id="equal-constants"),
        pytest.param([0.1] * 1000, [0.1] * 1000, id="equal-constants-that-binary-numbers-only-approach"),
        pytest.param([0.1, 0.5], [0.3, 0.3], id="constant-guess"),
        pytest.param([0.7] * 1000, list(np.linspace(-1, 1, 1000)), id="constant-truth"),
        pytest.param([0.4], [0.4], id="one-frame"),
        pytest.param([0.1, 0.5], [float("nan"), 0.5], id="diverged"),
    ],
)
def test_ccc_of_no_information_is_zero(x: list[float], y: list[float]) -> None:
    assert ccc(x, y) == 0


def torchmetrics_ccc(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> float:
    """The CCC of torchmetrics, made to mean population variances.

    It divides both variances and the covariance by n - 1 and leaves the squared distance of the means as it is. With
    that distance stretched by sqrt(n / (n - 1)) the factors cancel and its number is the population's.
    """
    n, distance = len(truth), prediction.mean() - truth.mean()
    moved = prediction + distance * (np.sqrt(n / (n - 1)) - 1)
    return float(concordance_corrcoef(torch.from_numpy(moved), torch.from_numpy(truth)))


def affect_series(seed: int, frames: int, likeness: float, offset: float) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    truth = np.tanh(np.cumsum(rng.normal(size=frames)) / np.sqrt(frames))
    return truth, likeness * truth + offset + 0.3 * rng.normal(size=frames)


@pytest.mark.parametrize(
    ("frames", "likeness", "offset"),
    [
        pytest.param(50_000, 0.7, 0.1, id="corpus"),
        pytest.param(300, 0.5, -0.4, id="window"),
        pytest.param(300, -0.8, 0.0, id="opposite"),
        pytest.param(300, 0.0, 0.9, id="unrelated-and-far"),
        pytest.param(2, 1.0, 0.2, id="two-frames"),
    ],
)
def test_valence_and_arousal_equal_torchmetrics(frames: int, likeness: float, offset: float) -> None:
    valence, arousal = (affect_series(seed, frames, likeness, offset) for seed in (0, 1))
    for truth, predicted in (valence, arousal):
        reference = pearson_corrcoef(torch.from_numpy(predicted), torch.from_numpy(truth))
        assert pearson(truth, predicted) == pytest.approx(float(reference), abs=1e-6)
    truth, predicted = (np.stack(pair, axis=1) for pair in zip(valence, arousal, strict=True))
    key = VALENCE_AROUSAL.key
    expected = [torchmetrics_ccc(truth[:, k], predicted[:, k]) for k in range(2)]
    assert score({key: predicted}, {key: truth}, {key: np.ones(frames, bool)}).summary() == {
        key: pytest.approx(np.mean(expected), abs=1e-6),
        "valence": pytest.approx(expected[0], abs=1e-6),
        "arousal": pytest.approx(expected[1], abs=1e-6),
    }


def class_labels(case: str, frames: int = 2000) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """True classes (N,) and probabilities (N, 8)."""
    rng = np.random.default_rng(7)
    truth = rng.choice(8, frames, p=[0.3, 0.1, 0.05, 0.015, 0.2, 0.15, 0.1, 0.085])
    logits = rng.normal(size=(frames, 8))
    logits[np.arange(frames), truth] += 1
    if case == "single-class":
        truth[:] = 4
    elif case == "class-never-seen":
        truth[truth == 3] = 0
    elif case == "class-never-called":
        logits[:, 5] = -100
    elif case == "constant-answer":
        logits[:] = np.eye(8)[6]
    return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "case", ["skewed", "single-class", "class-never-seen", "class-never-called", "constant-answer"]
)
def test_f1_of_classes_equals_scikit_learn(case: str) -> None:
    truth, probability = class_labels(case)
    called = probability.argmax(axis=1)
    expected = f1_score(truth, called, labels=range(8), average=None, zero_division=0)
    np.testing.assert_allclose(score_each("one_of", truth[:, None], probability), expected, atol=1e-6)
    np.testing.assert_array_equal(confusion_counts(truth, called, 8), confusion_matrix(truth, called, labels=range(8)))
    key = EXPRESSION.key
    scored = score({key: probability}, {key: truth[:, None].astype(np.float32)}, {key: np.ones(len(truth), bool)})
    macro = f1_score(truth, called, labels=range(8), average="macro", zero_division=0)
    assert scored.by_task[key] == pytest.approx(macro, abs=1e-6)
    assert list(scored.parts[key].values()) == pytest.approx(list(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("active", "called"),
    [
        pytest.param(0.3, 0.4, id="random"),
        pytest.param(0.0, 0.2, id="never-active"),
        pytest.param(1.0, 0.8, id="always-active"),
        pytest.param(0.3, 0.0, id="never-called"),
        pytest.param(0.0, 0.0, id="never-anything"),
    ],
)
def test_action_unit_f1_equals_scikit_learn(active: float, called: float) -> None:
    rng = np.random.default_rng(11)
    truth = (rng.random((500, 12)) < active).astype(np.float32)
    probability = np.where(rng.random((500, 12)) < called, 0.5, 0.4999)
    expected = f1_score(truth, probability >= 0.5, average=None, zero_division=0)
    np.testing.assert_allclose(score_each("any_of", truth, probability), expected, atol=1e-6)
    key = ACTION_UNITS.key
    scored = score({key: probability}, {key: truth}, {key: np.ones(500, bool)})
    assert scored.by_task[key] == pytest.approx(
        f1_score(truth, probability >= 0.5, average="macro", zero_division=0), abs=1e-6
    )


def test_an_answer_that_is_not_a_number_is_no_expression() -> None:
    probability = np.eye(8)[[0, 2, 0]]
    probability[0] = np.nan
    assert chosen_class(probability).tolist() == [-1, 2, 0]
    assert score_each("one_of", np.array([[0], [2], [0]]), probability)[0] == pytest.approx(2 / 3)
