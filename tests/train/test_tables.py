"""Folds, ablations and the paper's tables: what is dealt where, what is printed, and that a study survives anything."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from restart_case import interrupted, run_command, start
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, open_corpus, subject
from affserve.train.corpus.folds import FOLDS, deal_folds, fold_corpus
from affserve.train.errors import DataError, OutputError
from affserve.train.evaluation.scores import OFFICIAL, PAPER
from affserve.train.files import sole_user
from affserve.train.labels import EXPRESSION, TASKS
from affserve.train.models.checkpoint import load_head
from affserve.train.models.temporal_head import HeadEnsemble
from affserve.train.study.config import ABLATIONS, FULL, STREAMS, StudySizes, study_config
from affserve.train.study.notes import notes_of
from affserve.train.study.study import Step, time_left
from affserve.train.study.tables import PAPER_TABLE_1, PAPER_TABLE_2, RunScores, Tables, as_document, as_markdown
from affserve.train.synthetic.corpus import write_corpus
from affserve.train.synthetic.plan import SyntheticConfig

pytestmark = pytest.mark.usefixtures("no_pictures")
TINY = ("--quick", "--folds", "0,1", "--seeds", "0,1", "--epochs", "1", "--encoder-epochs", "1")


def corpus_of_names(root: Path, videos: dict[str, int], share: float = 0.25) -> Corpus:
    """A corpus that is only annotation files of so many lines; the last ones by name are the validation set."""
    files: dict[tuple[str, str], dict[str, Path]] = {}
    names = sorted(videos)
    for key in TASKS:
        for index, name in enumerate(names):
            part = VALIDATION if index >= len(names) * (1 - share) else TRAIN
            path = root / key / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("0\n" * videos[name])
            files.setdefault((key, part), {})[name] = path
    return Corpus(root=root, name="test", annotation_files=files, crop_folders={})


def wild_names() -> dict[str, int]:
    """Names of every form in Aff-Wild2, and lengths as skewed as there."""
    rng = np.random.default_rng(0)
    names = [f"video{k}" for k in range(30)] + [f"video{k}_{part}" for k in range(40, 50) for part in (1, 2, 3)]
    names += [f"video{k}{side}" for k in range(60, 70) for side in ("", "_left", "_right")]
    names += [f"{k}-30-1920x1080-{part}" for k in range(100, 110) for part in (1, 2)]
    return {name: int(rng.lognormal(7.5, 0.9)) for name in names}


def test_folds_keep_recordings_together_and_validate_everybody_once(tmp_path: Path) -> None:
    videos = wild_names()
    corpus = corpus_of_names(tmp_path, videos)
    seen: list[str] = []
    for fold in FOLDS[1:]:
        view = fold_corpus(corpus, fold)
        for task in TASKS.values():
            train, held_out = view.videos(task, TRAIN), view.videos(task, VALIDATION)
            assert sorted([*train, *held_out]) == sorted(videos)
            assert not {subject(video) for video in train} & {subject(video) for video in held_out}
            assert view.part_videos([task], TRAIN) == train  # nothing is lost to another task's validation set
        seen += view.videos(EXPRESSION, VALIDATION)
        frames = sum(videos[video] for video in view.videos(EXPRESSION, VALIDATION))
        assert frames == pytest.approx(sum(videos.values()) / 4, rel=0.1)
    assert sorted(seen) == sorted(videos)
    assert fold_corpus(corpus, 0) is corpus


def test_folds_follow_their_seed_alone(tmp_path: Path) -> None:
    corpus = corpus_of_names(tmp_path, wild_names())
    assert deal_folds(corpus, seed=3) == deal_folds(corpus, seed=3)
    assert deal_folds(corpus, seed=3) != deal_folds(corpus, seed=4)


def test_a_corpus_too_small_for_folds_is_refused(tmp_path: Path) -> None:
    one_recording = corpus_of_names(tmp_path, dict.fromkeys(["video1_1", "video1_2", "video1_3", "video1_4"], 10))
    with pytest.raises(DataError, match="has 1 recording"):
        fold_corpus(one_recording, 1)
    with pytest.raises(DataError, match="fold is 7; expected 0"):
        fold_corpus(one_recording, 7)


def test_the_papers_two_tables_agree_with_each_other() -> None:
    fold_0 = {metric: figures[0] for metric, figures in PAPER_TABLE_1.items()}
    full = PAPER_TABLE_2[FULL.key]
    assert full["valence_arousal"] == pytest.approx((fold_0["valence"] + fold_0["arousal"]) / 2, abs=1e-4)
    assert full["expression"] == fold_0["expression"]
    assert full["action_units"] == fold_0["action_units"]


def summary(value: float) -> dict[str, float]:
    return dict.fromkeys(("valence", "arousal", *TASKS), value)


def test_tables_put_means_and_spread_beside_the_papers_figures() -> None:
    runs = [
        RunScores(variant=variant, fold=fold, seed=seed, scores={OFFICIAL: summary(value), PAPER: summary(value / 2)})
        for variant, fold, seed, value in [
            ("full", 0, 0, 0.5), ("full", 0, 1, 0.7), ("full", 2, 0, 0.3), ("without-tcn", 0, 0, 0.4),
            ("stream-late", 0, 0, 0.45),
        ]
    ]  # fmt: skip
    tables = Tables(corpus="Aff-Wild2", runs=runs, folds=(0, 2), constant=summary(0.1), ensemble={})
    text = as_markdown(tables)
    assert "| 0 (official split) | 0.6000 ± 0.1414 | 0.5615 | 0.6000 ± 0.1414 | 0.6125 |" in text
    assert "| 2 | 0.3000 | 0.5025 |" in text
    assert "| mean of these folds | 0.4500 | 0.5320 |" in text
    assert "| without TCN | 0.4000 (-0.200) | 0.5698 (-0.017) |" in text
    assert "| without temporal encoder | – | 0.5712 (-0.016) |" in text
    assert "| 0 (official split) | 0.3000 ± 0.0707 | 0.5615 |" in text  # the paper's validator
    document = as_document(tables)
    assert document["table_1"][OFFICIAL][0]["ours"]["valence"] == {
        "mean": pytest.approx(0.6), "standard_deviation": pytest.approx(0.1414, abs=1e-4), "seeds": [0.5, 0.7]
    }  # fmt: skip
    assert [row["variant"] for row in document["table_2"][PAPER]] == [v.key for v in (*ABLATIONS, FULL, *STREAMS)]
    assert "| the same, 10 frames late | 0.4500 (-0.150) |  | 0.4500 (-0.150) |  |" in text


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        pytest.param([], "done", id="none"),
        pytest.param(["head a", "head a"], "about 4 min left", id="of-a-known-kind"),
        pytest.param(["head b"], "about 3 min left", id="of-a-like-kind"),
        pytest.param(["head a"] * 60, "about 2 h 00 min left", id="hours"),
        pytest.param(["head a", "features"], "time left not known yet", id="with-an-unknown-kind"),
    ],
)
def test_time_left_is_estimated_from_like_runs(kinds: list[str], told: str) -> None:
    steps = [Step(name=str(k), kind=kind, do=str) for k, kind in enumerate(kinds)]
    assert time_left(steps, {"head a": [100, 140], "head c": [240]}) == told
    assert time_left(steps[:1], {}) == ("time left not known yet" if steps else "done")


@pytest.mark.parametrize("per_fold", [False, True], ids=["shared", "per-fold"])
def test_notes_say_which_figures_are_honest(per_fold: bool, tmp_path: Path) -> None:
    config = study_config(StudySizes(), folds=FOLDS, seeds=(0,), encoder_per_fold=per_fold)
    text = " ".join(notes_of(corpus_of_names(tmp_path, wild_names()), config))
    assert ("only fold 0 is an honest figure" in text) != per_fold
    assert "One seed (0)" in text
    assert "ViT-B-32 from the weights 'openai', 10 epochs" in text
    assert "expression: TCN (768, 256, 128), Transformer 8 × 512, 10 epochs, batch 32, learning rate 3e-05" in text


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=12, validation_share=0.4, frames_min=40, frames_max=60, whole_frame_videos=0)
    write_corpus(root, config, workers=1)
    return root


def tables_command(corpus_root: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["train", "tables", str(corpus_root), "--out", str(out), *TINY, *more])


def killed_in_the_middle(corpus_root: Path, out: Path) -> str:
    """Run the command in a process of its own that is killed for good while the second head is being trained."""
    second = "/full/fold0/multi_task/seed1"
    command = ("tables", str(corpus_root), "--out", str(out), *TINY)
    training = start(out.with_suffix(".out"), interrupted, second, 1, signal.SIGKILL, run_command, *command)
    assert training.end() == -signal.SIGKILL, training.told
    return training.told


@pytest.fixture(scope="module")
def study(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, dict[Path, int]]:
    """A study that was killed in the middle and run again: its folder, what the second run said, what it found."""
    out = tmp_path_factory.mktemp("study") / "tables"
    assert "encoder of fold 0" in killed_in_the_middle(corpus_root, out)
    found = {path: path.stat().st_mtime_ns for path in out.rglob("weights.safetensors") if ".run" not in str(path)}
    return out, tables_command(corpus_root, out), found


def test_a_killed_study_goes_on_repeats_nothing_and_prints_what_it_writes(
    study: tuple[Path, Result, dict[Path, int]],
) -> None:
    out, result, found = study
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert {path.parent.name for path in found} >= {"fold0", "seed0"}
    for path, changed in found.items():
        assert path.stat().st_mtime_ns == changed, f"{path} was made again"
    document = json.loads((out / "tables.json").read_text())
    for row in document["table_1"][OFFICIAL]:
        assert all(len(cell["seeds"]) == 2 for cell in row["ours"].values())
    for row in document["table_2"][OFFICIAL]:
        assert all(cell["standard_deviation"] is not None for cell in row["ours"].values())
    assert document["table_1"][PAPER][0]["ours"]["valence"]["mean"] is None  # no video has a full window
    assert document["constant_guess"]["action_units"] > 0
    assert document["failures"] == []
    text = (out / "tables.md").read_text()
    assert result.stdout.strip() == text.strip()
    assert "Generated faces: these figures test the code" in text
    assert "[22/22] ensemble of the folds' heads" in result.stderr


def test_the_folds_heads_become_one_checkpoint_that_evaluates(
    study: tuple[Path, Result, dict[Path, int]], corpus_root: Path, tmp_path: Path
) -> None:
    out, _, _ = study
    head, checkpoint = load_head(out / "ensemble" / "multi_task")
    assert isinstance(head, HeadEnsemble)
    assert len(head.heads) == 2
    assert "trained on by the heads of folds other than 0" in checkpoint.provenance.training["note"]
    assert checkpoint.provenance.metrics == {}  # it has no videos that it never saw
    arguments = ["--encoder", out / "encoders/fold0", "--head", out / "ensemble/multi_task"]
    arguments += ["--features", out / "features", "--report", tmp_path, "--json"]
    result = CliRunner().invoke(app, ["evaluate", str(corpus_root), *map(str, arguments)])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    written = json.loads((out / "tables.json").read_text())["ensemble"][OFFICIAL]
    assert json.loads(result.stdout)["official"]["scores"] == pytest.approx(written)


def test_a_failed_run_is_reported_and_stops_no_other(
    study: tuple[Path, Result, dict[Path, int]], corpus_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tables"
    shutil.copytree(study[0], out)
    broken = out / "heads/without-tcn/fold0/multi_task/seed1"
    shutil.rmtree(broken.with_name("seed1.run") / "tensorboard")
    (broken.with_name("seed1.run") / "run.json").write_text("{")
    result = tables_command(corpus_root, out)
    assert result.exit_code == 1
    document = json.loads((out / "tables.json").read_text())
    assert len(document["failures"]) == 1
    assert "without TCN, fold 0, multi_task, seed 1: CheckpointError" in document["failures"][0]
    cells = {row["variant"]: len(row["ours"]["expression"]["seeds"]) for row in document["table_2"][OFFICIAL]}
    assert cells.pop("without-tcn") == 1
    assert set(cells.values()) == {2}
    assert "## Runs that failed" in result.stdout


def test_what_needs_a_failed_run_says_so(corpus_root: Path, tmp_path: Path) -> None:
    result = tables_command(corpus_root, tmp_path / "tables", "--pretrained", "no-such-weights", "--folds", "0")
    assert result.exit_code == 1
    failures = json.loads((tmp_path / "tables/tables.json").read_text())["failures"]
    assert "encoder of fold 0: CheckpointError" in failures[0]
    assert "no-such-weights" in failures[0]
    assert failures[1] == "features of the encoder of fold 0: needs encoder of fold 0, which failed"
    assert len(failures) == 19  # every run there is


@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param(["--folds", "0,7"], "folds holds [7]", id="fold"),
        pytest.param(["--seeds", "one"], "is no list of numbers", id="seed"),
        pytest.param(["--hold-out", "none"], "expected one of any, task", id="hold-out"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_trained(
    more: list[str], told: str, corpus_root: Path, tmp_path: Path
) -> None:
    result = tables_command(corpus_root, tmp_path / "tables", *more)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not (tmp_path / "tables").exists()


def test_an_encoder_per_fold_and_every_corpus_view_are_planned(corpus_root: Path, tmp_path: Path) -> None:
    from affserve.train.study.study import Study

    def names(per_fold: bool) -> list[str]:
        sizes = StudySizes(quick=True, multi_task=False)
        config = study_config(sizes, folds=(1, 2), seeds=(0,), encoder_per_fold=per_fold)
        study = Study(corpus=open_corpus(corpus_root), config=config, out=tmp_path, tell=print)
        return [step.name for step in study.plan()]

    assert [name for name in names(True) if name.startswith("encoder")] == ["encoder of fold 1", "encoder of fold 2"]
    assert not [name for name in names(True) if "ensemble" in name]
    assert [name for name in names(False) if name.startswith("encoder")] == ["encoder of fold 0"]
    assert len([name for name in names(False) if "ensemble" in name]) == 3
    assert "full model, fold 2, action_units, seed 0" in names(False)


def test_two_studies_in_one_folder_do_not_disturb_each_other(corpus_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    out.mkdir()
    with sole_user(out):
        result = tables_command(corpus_root, out)
    assert result.exit_code != 0
    assert isinstance(result.exception, OutputError)
    assert f"another process is at work in {out}" in str(result.exception)
    assert list(out.iterdir()) == []
    with sole_user(out):
        pass
