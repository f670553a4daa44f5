"""Several ranks take the step that one process takes: real processes, real gloo, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from feature_corpora import WIDTH, three_task_corpus
from rank_cases import CASES, gradients_of, train

from affserve.train.models.checkpoint import load_encoder, load_head
from affserve.train.synthetic.corpus import write_corpus
from affserve.train.synthetic.plan import SyntheticConfig
from affserve.train.trainer.ranks import Ranks
from affserve.train.trainer.run_folder import RunFolder

TESTS = Path(__file__).parents[1]
ALONE = Ranks()


@dataclass(frozen=True, kw_only=True)
class TwoRanks:
    """What two ranks wrote into a folder, gradients.pt and the trained head and encoder, and what they said."""

    out: Path
    said: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, _ = three_task_corpus(tmp_path_factory.mktemp("corpus"))
    return root


@pytest.fixture(scope="module")
def two_ranks(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Run rank_cases.py, and in the same processes the command, at a free port that torchrun finds."""
    out = tmp_path_factory.mktemp("two-ranks")
    config = SyntheticConfig(videos=4, validation_share=0.5, frames_min=30, frames_max=30, whole_frame_videos=0)
    faces = write_corpus(out / "faces", config, workers=1).root
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = f"encoder {faces} --out {out}/encoder --architecture affserve-demo --pretrained none --epochs 1 --batch 9"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    whole = [*launcher, str(TESTS / "rank_cases.py"), str(corpus), str(out), *command.split()]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return TwoRanks(out=out, said=done)


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-5: sums of thousands of products in another order.

    Of each tensor's own largest number, but where that is rounding error itself: a shift before a batch norm has none.
    """
    assert found.keys() == expected.keys()
    largest = max(float(values.abs().max()) for name, values in expected.items() if name != "loss")
    for name, values in expected.items():
        scale = max(0.01 * largest, float(values.abs().max()))
        assert float((found[name] - values).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("case", [case for case in CASES if case != "head-in-micro-batches"])
def test_two_ranks_have_the_gradient_of_one_process(case: str, two_ranks: TwoRanks) -> None:
    found = torch.load(two_ranks.out / "gradients.pt")[case]
    expected = gradients_of(case, ALONE, micro_batch=CASES[case][0])
    assert float(expected["loss"]) > 0.1
    assert sum(float(values.abs().sum()) > 0 for values in expected.values()) > 10
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("case", ["encoder-in-micro-batches", "encoder"])
def test_micro_batches_have_the_gradient_of_the_whole_batch(case: str) -> None:
    found = gradients_of(case, ALONE, micro_batch=2)
    assert_equal_gradients(found, gradients_of(case, ALONE, micro_batch=CASES[case][0]))


def test_two_ranks_train_what_one_process_trains(corpus: Path, two_ranks: TwoRanks, tmp_path: Path) -> None:
    train(corpus, tmp_path / "head")
    (alone, one), (together, two) = load_head(tmp_path / "head"), load_head(two_ranks.out / "head")
    # Of what they compute: AdamW moves weights whose gradient is rounding error (a shift before a batch norm) as far as
    # any other, without effect.
    features = torch.randn(4, 60, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = alone.answers(features), together.answers(features)
    for key, values in expected.items():
        assert float(values.std(dim=(0, 1)).max()) > 0.01
        torch.testing.assert_close(found[key], values, rtol=0, atol=1e-3)
    assert two.provenance.metrics == pytest.approx(one.provenance.metrics, abs=2e-3)
    lines = RunFolder(two_ranks.out / "head").log.read_text().splitlines()
    assert len(lines) == len(RunFolder(tmp_path / "head").log.read_text().splitlines())  # one rank writes


def test_the_command_runs_under_torchrun_and_only_one_rank_speaks(two_ranks: TwoRanks) -> None:
    assert two_ranks.said.stdout.count("on videos never trained on") == 1
    assert two_ranks.said.stderr.count("encoder epoch 1/1") == 1
    _, checkpoint = load_encoder(two_ranks.out / "encoder")
    assert checkpoint.provenance.training["batch"] == 9
