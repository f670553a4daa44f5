"""The losses against independent double-precision references: values and gradients, degenerate batches included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL
from affserve.train.trainer.losses import ccc_loss, loss_denominators, task_loss, task_losses


def reference_ccc_loss(raw: Tensor, truth: Tensor) -> Tensor:
    """1 - mean CCC by way of Pearson's r and standard deviations, unlike the loss itself."""
    total = torch.zeros((), dtype=torch.float64)
    for k in range(raw.shape[1]):
        r = torch.corrcoef(torch.stack([raw[:, k], truth[:, k]]))[0, 1]
        s, t = raw[:, k].std(correction=0), truth[:, k].std(correction=0)
        total = total + 2 * r * s * t / (s**2 + t**2 + (raw[:, k].mean() - truth[:, k].mean()) ** 2)
    return 1 - total / raw.shape[1]


def reference_cross_entropy(raw: Tensor, truth: Tensor) -> Tensor:
    chosen = raw.gather(1, truth.long())[:, 0]
    return (raw.exp().sum(dim=1).log() - chosen).mean()


def reference_binary_cross_entropy(raw: Tensor, truth: Tensor) -> Tensor:
    p = 1 / (1 + (-raw).exp())
    return -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()


REFERENCES = {
    VALENCE_AROUSAL.key: reference_ccc_loss,
    EXPRESSION.key: reference_cross_entropy,
    ACTION_UNITS.key: reference_binary_cross_entropy,
}


def random_batch(key: str, frames: int, seed: int, scale: float = 1.0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Raw outputs (frames, K) and labels (frames, columns) in double precision."""
    generator = torch.Generator().manual_seed(seed)
    task = TASKS[key]
    raw = offset + scale * torch.randn(frames, task.outputs, generator=generator, dtype=torch.float64)
    if key == VALENCE_AROUSAL.key:
        truth = offset + scale * (2 * torch.rand(frames, 2, generator=generator, dtype=torch.float64) - 1)
    else:
        truth = torch.randint(int(task.high) + 1, (frames, task.columns), generator=generator).double()
    return raw, truth


@pytest.mark.parametrize("key", list(TASKS))
@pytest.mark.parametrize(
    ("frames", "scale", "offset"),
    [
        pytest.param(9600, 0.5, 0.0, id="a-batch"),
        pytest.param(2, 1.0, 0.0, id="two-frames"),
        pytest.param(300, 0.01, 0.0, id="hardly-moving"),
        pytest.param(300, 0.02, 0.9, id="far-from-zero"),
        pytest.param(300, 5.0, 0.0, id="large"),
    ],
)
def test_value_and_gradient_equal_an_independent_reference(key: str, frames: int, scale: float, offset: float) -> None:
    raw, truth = random_batch(key, frames, seed=frames, scale=scale, offset=offset)
    ours, reference = raw.clone().requires_grad_(), raw.clone().requires_grad_()
    loss, expected = task_loss(key, ours, truth), REFERENCES[key](reference, truth)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert ours.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("key", list(TASKS))
def test_single_precision_keeps_the_value_to_a_millionth(key: str) -> None:
    raw, truth = random_batch(key, 9600, seed=3, scale=0.5)
    loss = task_loss(key, raw.float(), truth.float())
    assert loss.item() == pytest.approx(REFERENCES[key](raw, truth).item(), abs=1e-6)


def constants(frames: int, task_columns: int, value: float) -> Tensor:
    return torch.full((frames, task_columns), value)


@pytest.mark.parametrize(
    ("raw", "truth"),
    [
        pytest.param(constants(300, 2, 0.1), constants(300, 2, 0.1), id="equal-constants"),
        pytest.param(constants(300, 2, 0.3), constants(300, 2, -0.4), id="different-constants"),
        pytest.param(torch.linspace(-1, 1, 300)[:, None].expand(-1, 2), constants(300, 2, 0.8), id="constant-truth"),
        pytest.param(constants(300, 2, 0.8), torch.linspace(-1, 1, 300)[:, None].expand(-1, 2), id="constant-answer"),
        pytest.param(constants(1, 2, 0.5), constants(1, 2, -0.5), id="one-frame"),
        pytest.param(constants(1, 2, 0.5), constants(1, 2, 0.5), id="one-frame-hit"),
    ],
)
def test_ccc_loss_of_no_information_is_one(raw: Tensor, truth: Tensor) -> None:
    raw = raw.clone().requires_grad_()
    loss = ccc_loss(raw, truth)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()


@pytest.mark.parametrize("key", list(TASKS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_masked_window_has_loss_and_gradient_zero(key: str, dtype: torch.dtype) -> None:
    raw = torch.randn(2, 30, TASKS[key].outputs, dtype=dtype, requires_grad=True)
    truth = {key: torch.full((2, 30, TASKS[key].columns), float(TASKS[key].invalid))}
    loss = task_losses({key: raw}, truth, {key: torch.zeros(2, 30, dtype=torch.bool)})[key]
    loss.backward()
    assert loss.item() == 0
    assert raw.grad is not None
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("key", list(TASKS))
@pytest.mark.parametrize("labelled", [1, 7, 60], ids=["one", "some", "all"])
def test_frames_without_a_label_change_nothing(key: str, labelled: int) -> None:
    raw, truth = random_batch(key, 60, seed=5)
    valid = torch.arange(60).reshape(2, 30) < labelled
    truth = truth.reshape(2, 30, -1).clone()
    truth[~valid] = TASKS[key].invalid
    raw = raw.float().reshape(2, 30, -1).requires_grad_()
    loss = task_losses({key: raw}, {key: truth.float()}, {key: valid})[key]
    loss.backward()
    alone = task_loss(key, raw.detach().flatten(0, 1)[:labelled], truth.float().flatten(0, 1)[:labelled])
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert (raw.grad[~valid] == 0).all()


def test_units_without_a_label_teach_nothing_and_parts_of_a_batch_add_up() -> None:
    raw, truth = random_batch(ACTION_UNITS.key, 12, seed=5)
    truth[4:, 6:] = ACTION_UNITS.invalid  # the frames of a corpus that labels six of twelve
    raw.requires_grad_()
    loss = task_loss(ACTION_UNITS.key, raw, truth)
    by_hand = [(24, slice(0, 4), slice(6, 12)), (72, slice(0, 12), slice(0, 6))]
    sums = [count * reference_binary_cross_entropy(raw[rows, some], truth[rows, some]) for count, rows, some in by_hand]
    assert loss.item() == pytest.approx((sums[0] + sums[1]).item() / 96)
    loss.backward()
    assert raw.grad is not None
    assert (raw.grad == 0).equal(truth < 0)
    whole = {ACTION_UNITS.key: truth}, {ACTION_UNITS.key: torch.ones(12, dtype=torch.bool)}
    total = loss_denominators(*whole)[ACTION_UNITS.key]
    summed = torch.zeros(())
    for part in (slice(0, 3), slice(3, 12)):
        truths, valid = ({key: one[part] for key, one in held.items()} for held in whole)
        share = loss_denominators(truths, valid)[ACTION_UNITS.key] / total
        summed = summed + share * task_loss(ACTION_UNITS.key, raw[part].detach(), truths[ACTION_UNITS.key])
    assert summed.item() == pytest.approx(loss.item())
