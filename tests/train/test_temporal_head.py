"""The temporal head: shapes, ablations, padding, and what it can see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from affserve.train.evaluation.prediction import Segmenting, predict_stream
from affserve.train.models.temporal_head import (
    HeadEnsemble,
    TemporalHead,
    TemporalHeadConfig,
    activate,
    demo_head_config,
    gru_of_similar_cost,
)


def test_paper_sizes_are_the_default() -> None:
    config = TemporalHeadConfig()
    assert (config.width, config.feedforward, config.heads, config.layers) == (512, 512, 4, 8)
    assert (config.tcn_channels, config.tcn_kernels, config.tcn_dilations) == ((768, 256, 128), (5, 5, 5), (1, 2, 4))
    with torch.inference_mode():
        raw = TemporalHead(config).eval()(torch.randn(1, 7, 512))
    assert {key: tuple(value.shape) for key, value in raw.items()} == {
        "valence_arousal": (1, 7, 2),
        "expression": (1, 7, 8),
        "action_units": (1, 7, 12),
    }


@pytest.mark.parametrize("frames", [1, 2, 299, 300])
@pytest.mark.parametrize(
    "switches",
    [{}, {"use_tcn": False}, {"use_encoder": False}, {"use_tcn": False, "use_encoder": False}],
    ids=["full", "without-tcn", "without-encoder", "single-frame"],
)
def test_length_out_is_length_in(frames: int, switches: dict[str, bool]) -> None:
    head = TemporalHead(demo_head_config(**switches)).eval()
    with torch.inference_mode():
        assert head(torch.randn(2, frames, 512))["expression"].shape == (2, frames, 8)


def influence(head: TemporalHead, changed: int, frames: int = 40) -> list[int]:
    """Which frames' outputs change when the features of one frame change."""
    torch.manual_seed(0)
    before = torch.randn(1, frames, 512)
    after = before.clone()
    after[:, changed] += 10
    with torch.inference_mode():
        moved = (head(before)["valence_arousal"] - head(after)["valence_arousal"]).abs().sum(-1)[0] > 1e-6
    return torch.nonzero(moved).flatten().tolist()


def test_single_frame_head_sees_one_frame_and_the_full_head_all() -> None:
    single = TemporalHead(demo_head_config(use_tcn=False, use_encoder=False)).eval()
    assert influence(single, 20) == [20]
    assert influence(TemporalHead(demo_head_config()).eval(), 20) == list(range(40))


def test_causal_tcn_sees_only_the_past() -> None:
    causal = influence(TemporalHead(demo_head_config(use_encoder=False)).eval(), 20)
    centred = influence(TemporalHead(demo_head_config(use_encoder=False, causal=False)).eval(), 20)
    assert min(causal) == 20
    assert max(causal) > 30
    assert min(centred) < 10


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "serving"])
def test_padding_changes_nothing(causal: bool, training: bool) -> None:
    head = TemporalHead(demo_head_config(causal=causal, dropout=0.0)).train(training)
    twin = copy.deepcopy(head)
    features = torch.randn(1, 25, 512)
    padded = torch.cat([features, torch.randn(1, 15, 512)], dim=1)
    present = torch.arange(40)[None] < 25
    with torch.no_grad():
        alone, within = head(features), twin(padded, present)
    for key, values in alone.items():
        torch.testing.assert_close(within[key][:, :25], values, atol=1e-5, rtol=1e-5)
    # What training remembers of the frames it saw is served later: padding must not be part of it.
    for one, other in zip(head.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


STREAMING = {
    "post-norm": {"context_frames": 7},
    "pre-norm, late": {"context_frames": 9, "norm": "pre", "lookahead_frames": 5},
    "itself only": {"context_frames": 1, "tcn_kernels": (1, 3, 5)},
    "without TCN": {"context_frames": 4, "use_tcn": False},
    "without Transformer": {"context_frames": 4, "use_encoder": False, "lookahead_frames": 2},
    "GRU, late": {"recurrent": True, "use_tcn": False, "lookahead_frames": 3},
}


@pytest.mark.parametrize("switches", STREAMING.values(), ids=STREAMING)
def test_a_stream_answers_step_by_step_as_at_once(switches: dict[str, Any]) -> None:
    torch.manual_seed(2)
    head = HeadEnsemble([TemporalHead(demo_head_config(**switches)).eval() for _ in range(2)])
    features = torch.randn(1, 47, 512)
    padded = torch.cat([features, torch.randn(1, 13, 512)], dim=1)
    with torch.inference_mode():
        whole = head.answers(features)
        within = head.answers(padded, torch.arange(60)[None] < 47)
    for steps in (1, 10, 47):
        stepwise = predict_stream(head, features[0].numpy(), Segmenting(window=steps, stride=1))
        for key, values in whole.items():
            torch.testing.assert_close(torch.from_numpy(stepwise[key]), values[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(within[key][:, :47], values, atol=1e-5, rtol=0)


def test_a_stream_sees_as_far_back_as_it_says_and_ahead_by_its_delay() -> None:
    config = demo_head_config(context_frames=6, lookahead_frames=4, tcn_dilations=(1, 1, 1))
    assert config.reach_frames == 3 * 2 * 4 + 2 * 5
    moved = influence(TemporalHead(config).eval(), 45, frames=90)
    assert moved[0] == 41
    assert 41 + 24 < moved[-1] <= 41 + config.reach_frames  # the farthest ones hardly move
    assert gru_of_similar_cost(config).reach_frames is None


def test_a_state_is_as_large_after_a_thousand_frames() -> None:
    head = TemporalHead(demo_head_config(context_frames=5)).eval()
    state = head.initial_state()
    with torch.inference_mode():
        _, after = head.stream(torch.randn(1, 1000, 512), state)
    assert [part.shape for part in after] == [part.shape for part in state]


def test_a_batch_of_a_single_frame_can_be_trained_on() -> None:
    head = TemporalHead(demo_head_config()).train()
    raw = head(torch.randn(1, 30, 512), torch.arange(30)[None] < 1)
    assert all(values.isfinite().all() for values in raw.values())


def test_served_values_lie_in_their_ranges() -> None:
    served = activate(
        {key: 10 * torch.randn(3, 5, k) for key, k in (("valence_arousal", 2), ("expression", 8), ("action_units", 12))}
    )
    assert served["valence_arousal"].abs().max() <= 1
    torch.testing.assert_close(served["expression"].sum(-1), torch.ones(3, 5))
    assert served["action_units"].min() >= 0
    assert served["action_units"].max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"tasks": ()}, "at least one task", id="no-task"),
        pytest.param({"tcn_kernels": (5,)}, "one each per block", id="uneven-tcn"),
        pytest.param({"heads": 3}, "not a multiple", id="heads"),
        pytest.param({"norm": "none"}, "expected post or pre", id="norm"),
        pytest.param({"context_frames": 0}, "at least 1, the frame itself", id="context"),
        pytest.param({"lookahead_frames": 3}, "0 unless context_frames is given", id="late-segment"),
        pytest.param({"context_frames": 3, "causal": False}, "expected lookahead_frames", id="centred-stream"),
        pytest.param({"context_frames": 3, "recurrent": True}, "expected one of the two", id="gru-with-context"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo_head_config(**changes)
