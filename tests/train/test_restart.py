"""Trainings that are killed, stopped, crowded out of their disk, or started twice: the weights are the same."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import pytest
from feature_corpora import three_task_corpus
from restart_case import Training, interrupted, run_command, start, train_head
from safetensors import SafetensorError
from safetensors.torch import load_file

from affserve.train.corpus.affwild2 import open_corpus
from affserve.train.errors import CheckpointError, OutputError
from affserve.train.files import sole_user
from affserve.train.models.checkpoint import load_head
from affserve.train.models.temporal_head import demo_head_config
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.synthetic.corpus import write_corpus
from affserve.train.synthetic.plan import SyntheticConfig
from affserve.train.trainer.log import read_log
from affserve.train.trainer.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
KILL, TERMINATE = signal.SIGKILL, signal.SIGTERM


def config(**changes: object) -> FitConfig:
    head = demo_head_config(feature_width=8, width=32, layers=1, tcn_channels=(16, 16, 16))
    small = FitConfig(head=head, epochs=3, batch=3, lr=1e-3, window=60, stride=30, checkpoint_every_s=0)
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return three_task_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that was trained without an interruption, and with its states saved once an epoch only."""
    target = tmp_path_factory.mktemp("undisturbed") / "head"
    training = start(target.with_suffix(".out"), train_head, *corpus, target, config(checkpoint_every_s=600))
    assert training.end() == 0, training.told
    return target


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "weights.safetensors").read_bytes()


def steps_logged(target: Path) -> int:
    log = RunFolder(target).log
    return log.read_text().count('"kind": "step"') if log.exists() else 0


def curve(target: Path) -> list[tuple[object, ...]]:
    return [(line["kind"], line["step"], line["loss"], line.get("scores")) for line in read_log(RunFolder(target).log)]


def test_killed_and_stopped_again_and_again_the_weights_are_the_same(
    corpus: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    target = tmp_path / "head"
    total = steps_logged(undisturbed)

    work = (train_head, *corpus, target, config())
    for number, step in ((KILL, 2), (TERMINATE, total // 2), (KILL, total - 3)):
        training = start(tmp_path / "out", interrupted, "", step, number, *work)
        assert training.end() == (143 if number == TERMINATE else -KILL)
        assert ("the same command goes on" in training.told) == (number == TERMINATE)
        assert not target.exists()
    training = start(tmp_path / "out", *work)
    assert training.end() == 0, training.told
    assert "goes on after step" in training.told
    assert weights(target) == weights(undisturbed)
    assert weights(RunFolder(target).last) == weights(RunFolder(undisturbed).last)
    assert json.loads(training.told.splitlines()[-1]) == load_head(undisturbed)[1].provenance.metrics
    assert curve(target) == curve(undisturbed)
    assert not (RunFolder(target).path / "state").exists()


def test_a_finished_training_says_so_and_another_one_in_its_place_is_refused(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    opened, target = open_corpus(corpus[0]), tmp_path / "head"
    told: list[str] = []
    first = fit(opened, corpus[1], config(epochs=1), target, told.append)
    before = weights(target)
    told.clear()
    assert fit(opened, corpus[1], config(epochs=1, workers=1), target, told.append) == first
    assert len(told) == 1
    assert "is finished" in told[0]
    other = config(epochs=1, lr=2e-3)
    with pytest.raises(CheckpointError, match=r"differs in config\.lr \(0\.001 there, 0\.002 here\).*--fresh"):
        fit(opened, corpus[1], other, target, told.append)
    assert weights(target) == before
    fit(opened, corpus[1], other, target, told.append, fresh="if-changed")
    assert weights(target) != before
    told.clear()
    fit(opened, corpus[1], other, target, told.append, fresh="if-changed")
    assert "is finished" in told[0]
    fit(opened, corpus[1], other, target, told.append, fresh=True)
    assert "head epoch 1/1" in told[-1]


def test_two_trainings_in_one_folder_the_second_is_refused(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    data, features = corpus
    run = RunFolder(tmp_path / "head")
    run.path.mkdir()
    with sole_user(run.path):
        for fresh in (False, True):
            with pytest.raises(OutputError, match=r"another process is at work in .*head\.run"):
                fit(open_corpus(data), features, config(), run.target, fresh=fresh)
    assert not list(run.path.iterdir()), "nothing was written beside the other one's"


def test_a_state_that_outgrows_the_limit_is_a_clear_error_and_the_last_good_one_goes_on(
    corpus: tuple[Path, Path], undisturbed: Path, tmp_path: Path
) -> None:
    target = tmp_path / "head"
    state = RunFolder(target).path / "state" / "state.pt"
    work = (train_head, *corpus, target, config())
    assert start(tmp_path / "out", interrupted, "", 2, KILL, *work).end() == -KILL
    good = state.read_bytes()

    training = start(tmp_path / "out", *work, len(good) // 2)
    assert training.end() == 1
    assert "cannot be written: File too large; what was saved last is intact" in training.told.splitlines()[-1]
    assert state.read_bytes() == good
    assert [path.name for path in state.parent.iterdir()] == ["state.pt"]

    training = start(tmp_path / "out", *work)
    assert training.end() == 0, training.told
    assert weights(target) == weights(undisturbed)


def test_a_full_disk_is_a_clear_error_and_leaves_the_old_checkpoint(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        (small / "head").mkdir()
        (small / "head" / "precious").write_text("an older checkpoint")
        with pytest.raises(CheckpointError, match="No space left on device"):
            fit(open_corpus(corpus[0]), corpus[1], config(), small / "head", lambda _: None)
        assert (small / "head" / "precious").read_text() == "an older checkpoint"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_only_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no weights")
    run = RunFolder(tmp_path / "head")
    with pytest.raises(SafetensorError, match="header"), run.disk_errors():
        load_file(tmp_path / "broken")
    with (
        pytest.raises(CheckpointError, match=r"head\.run cannot be written: .*No space left on device"),
        run.disk_errors(),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match="No such file"), run.disk_errors():
        (tmp_path / "nowhere").read_bytes()


def test_the_command_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(tmp_path: Path) -> None:
    small = SyntheticConfig(videos=4, validation_share=0.5, frames_min=30, frames_max=40, whole_frame_videos=0)
    root = write_corpus(tmp_path / "corpus", small, workers=1).root
    line = f"encoder {root} --architecture affserve-demo --pretrained none --epochs 2 --batch 8 --workers 1 --out"

    def train(name: str, *before: object) -> Training:
        return start(tmp_path / "out", *before, run_command, *line.split(), str(tmp_path / name))  # type: ignore[arg-type]

    training = train("disturbed", interrupted, "", 2, TERMINATE)
    assert training.end() == 143, training.told
    assert "stopped as asked, state saved" in training.told
    assert steps_logged(tmp_path / "disturbed") == 2
    assert train("disturbed").end() == train("straight").end() == 0
    assert weights(tmp_path / "disturbed") == weights(tmp_path / "straight")
