"""Segments and merging: every frame once, whatever the length, as the paper cuts them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from affserve.train.windows import OverlapMerger, segments


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1, [(0, 1)], id="one"),
        pytest.param(299, [(0, 299), (200, 299)], id="short-of-a-window"),
        pytest.param(400, [(0, 300), (200, 400)], id="multiple-of-stride-has-no-empty-segment"),
        pytest.param(650, [(0, 300), (200, 500), (400, 650), (600, 650)], id="tail"),
    ],
)
def test_segments_follow_the_paper(frames: int, expected: list[tuple[int, int]]) -> None:
    assert [(s.start, s.stop) for s in segments(frames)] == expected


def context_model(features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """A model whose answer depends on its whole segment and on the position in it, so that no mix-up goes unseen."""
    position = np.arange(len(features), dtype=np.float32)[:, None]
    return {"y": features[:, :1] + features.mean() + 0.01 * position, "z": features[:, 1:] * len(features)}


def merged_by_definition(features: NDArray[np.float32], window: int, stride: int) -> dict[str, NDArray[np.float32]]:
    sums = {"y": np.zeros((len(features), 1)), "z": np.zeros((len(features), 2))}
    counts = np.zeros((len(features), 1))
    for cut in segments(len(features), window, stride):
        counts[cut] += 1
        for name, values in context_model(features[cut]).items():
            sums[name][cut] += values
    return {name: total / counts for name, total in sums.items()}


@pytest.mark.parametrize("frames", [1, 5, 29, 30, 31, 40, 60, 61, 123])
@pytest.mark.parametrize("piece", [1, 7, 200])
@pytest.mark.parametrize(("window", "stride"), [(30, 20), (30, 30), (30, 7)])
def test_streaming_equals_the_definition(frames: int, piece: int, window: int, stride: int) -> None:
    features = np.random.default_rng(frames).normal(size=(frames, 3)).astype(np.float32)
    merger = OverlapMerger(context_model, window, stride)
    parts = [out for start in range(0, frames, piece) for out in merger.push(features[start : start + piece])]
    parts += list(merger.finish())
    expected = merged_by_definition(features, window, stride)
    for name, values in expected.items():
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), values, rtol=1e-5, atol=1e-5)


def test_merger_holds_less_than_a_window_and_can_be_used_again() -> None:
    merger = OverlapMerger(context_model, 30, 20)
    emitted = 0
    for pushed in range(10, 1000, 10):
        emitted += sum(len(out["y"]) for out in merger.push(np.ones((10, 3), np.float32)))
        assert pushed - emitted < 30
    list(merger.finish())
    again = [*merger.push(np.ones((5, 3), np.float32)), *merger.finish()]
    assert sum(len(out["y"]) for out in again) == 5


def test_stride_beyond_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="stride is 400"):
        segments(1000, 300, 400)
