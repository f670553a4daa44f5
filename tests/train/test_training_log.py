"""What a training leaves for people and scripts: lines, TensorBoard scalars, pictures, a report, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from feature_corpora import three_task_corpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from affserve.train.corpus.affwild2 import open_corpus
from affserve.train.evaluation.scores import Scores
from affserve.train.labels import TASKS
from affserve.train.models.checkpoint import load_head
from affserve.train.models.temporal_head import demo_head_config
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.trainer.log import read_log, readable_s
from affserve.train.trainer.run_folder import RunFolder

EPOCHS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Scores, list[str]]:
    folder = tmp_path_factory.mktemp("training")
    root, features = three_task_corpus(folder / "corpus")
    head = demo_head_config(feature_width=8, width=32, layers=1, tcn_channels=(16, 16, 16))
    config = FitConfig(head=head, epochs=EPOCHS, batch=4, lr=1e-2, window=60, stride=40)
    told: list[str] = []
    scores = fit(open_corpus(root), features, config, folder / "head", told.append)
    return RunFolder(folder / "head"), scores, told


def test_every_step_and_epoch_is_a_line_with_the_documented_keys(trained: tuple[RunFolder, Scores, list[str]]) -> None:
    run, scores, _ = trained
    lines = read_log(run.log)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert all(set(line) == {"kind", "step", "epoch", "loss", "lr", "frames_per_s", "time"} for line in steps)
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    for line in epochs:
        own = [step["loss"] for step in steps if step["epoch"] == line["epoch"]]
        assert min(own) <= line["loss"] <= max(own)
        assert set(line["scores"]) == {"official", "paper"}
        for one in line["scores"].values():
            assert set(one["by_task"]) == set(TASKS)
            assert all(set(one["parts"][key]) == set(task.names) for key, task in TASKS.items())
    best = [line for line in epochs if line["best"]][-1]
    assert best["selected"] == max(line["selected"] for line in epochs)
    assert best["scores"]["official"]["by_task"] == scores.by_task
    per_epoch = len(steps) // EPOCHS
    rates = [line["lr"] for line in steps]
    assert rates[:per_epoch] == sorted(rates[:per_epoch])  # warm-up over the first epoch
    assert rates[per_epoch:] == sorted(rates[per_epoch:], reverse=True)  # then the cosine


def test_people_read_one_line_an_epoch_with_the_time_left(trained: tuple[RunFolder, Scores, list[str]]) -> None:
    # A slow machine tells of steps in between.
    told = [line for line in trained[2] if line.startswith("head epoch ")]
    assert len(told) == EPOCHS
    assert told[0].startswith("head epoch 1/3: loss ")
    assert told[0].endswith(" left")
    assert "valence-arousal" in told[0]
    assert "paper:" in told[0]
    assert not told[-1].endswith(" left")


def test_tensorboard_holds_the_same_numbers(trained: tuple[RunFolder, Scores, list[str]]) -> None:
    run, _, _ = trained
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    lines = read_log(run.log)
    steps = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
    drawn = {event.step: event.value for event in board.Scalars("train/loss")}
    assert drawn == pytest.approx(steps, rel=1e-6)
    scores = [line["scores"]["paper"]["parts"]["action_units"]["AU4"] for line in lines if line["kind"] == "epoch"]
    assert [event.value for event in board.Scalars("paper_action_units/AU4")] == pytest.approx(scores)


def test_curves_report_and_checkpoints_stand_beside_the_result(trained: tuple[RunFolder, Scores, list[str]]) -> None:
    run, scores, _ = trained
    picture = cv2.imread(str(run.curves))
    assert picture is not None
    assert min(picture.shape[:2]) > 500
    report = json.loads((run.report / "report.json").read_text())
    assert "valence_arousal" in json.dumps(report)
    assert sorted(path.suffix for path in run.report.iterdir()) == [".json", ".md", ".png"]
    assert load_head(run.target)[1].provenance.metrics == scores.summary()
    assert load_head(run.last)[1].provenance.trained_on == "Aff-Wild2"
    left = {path.name for path in run.path.iterdir()}
    assert left == {"run.json", "log.jsonl", "tensorboard", "curves.png", "report", "last"}


def test_a_half_written_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "step", "step": 1}]


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.3, "42 s"), (600, "10 min"), (3 * 3600 + 300, "3 h 05 min")], ids=["s", "min", "h"]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert readable_s(seconds) == text
