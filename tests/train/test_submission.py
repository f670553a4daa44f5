"""Trained checkpoints on a corpus: scores by command, and the challenge's templates filled or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.train.corpus.affwild2 import VALIDATION, Corpus, open_corpus
from affserve.train.corpus.annotations import aligned
from affserve.train.errors import AffserveError, DataError, OutputError
from affserve.train.evaluation.prediction import Segmenting, predict_video
from affserve.train.evaluation.submission import fill_template, read_template
from affserve.train.evaluation.trained_model import TrainedModel
from affserve.train.features.gaps import fill_gaps
from affserve.train.features.store import FeatureStore
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Task
from affserve.train.models.checkpoint import load_encoder, load_head, save_head
from affserve.train.models.temporal_head import TemporalHead, demo_head_config
from affserve.train.processing.filters import most_frequent
from affserve.train.provenance import Provenance
from affserve.train.synthetic.corpus import TEMPLATES, write_corpus
from affserve.train.synthetic.plan import SyntheticConfig
from affserve.train.windows import Outputs

UNLABELLED = "test-video"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Eight labelled videos, and one of the test set: crops without annotation."""
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=8, validation_share=0.5, frames_min=40, frames_max=60, whole_frame_videos=0)
    write_corpus(root, config, workers=1)
    shutil.copytree(next((root / "cropped_aligned").iterdir()), root / "cropped_aligned" / UNLABELLED)
    return open_corpus(root, videos=[UNLABELLED])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def evaluate(corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, *more: object) -> Result:
    encoder, head = checkpoints
    arguments = [corpus.root, "--encoder", encoder, "--head", head, "--features", store, *more]
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def header(task: Task) -> str:
    return f"image_location,{task.header}"


def template(path: Path, task: Task, rows: list[str]) -> Path:
    path.write_text("\n".join([header(task), *rows]) + "\n")
    return path


def test_evaluate_scores_with_both_validators_and_reports(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    result = evaluate(corpus, checkpoints, store, "--report", tmp_path / "report", "--json")
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert set(scores["official"]["scores"]) == {*TASKS, "valence", "arousal"}
    assert scores["paper"]["scores"] == {}  # no video has a full window
    videos = corpus.part_videos([EXPRESSION], VALIDATION)
    labelled = sum(
        int(aligned(corpus.annotation(EXPRESSION, VALIDATION, video), EXPRESSION, corpus.crop_numbers(video))[1].sum())
        for video in videos
    )
    assert scores["official"]["frames"][EXPRESSION.key] == labelled
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json", "report.md", "report.png", "scores.json"
    }  # fmt: skip
    table = evaluate(corpus, checkpoints, store, "--report", tmp_path / "report").stdout
    assert "trained on synthetic" in table
    assert f"{scores['official']['scores'][EXPRESSION.key]:.4f}" in table


def test_heads_that_do_not_belong_together_are_refused(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    encoder, head = checkpoints
    with pytest.raises(AffserveError, match="valence_arousal, and so does another head"):
        TrainedModel(encoder, [head, head], corpus, store, "cpu", lambda done, total: None)
    save_head(tmp_path / "alien", TemporalHead(demo_head_config()), Provenance(trained_on="x", encoder="0123"))
    with pytest.raises(AffserveError, match="trained on features of encoder 0123"):
        TrainedModel(encoder, [tmp_path / "alien"], corpus, store, "cpu", lambda done, total: None)


def expected_outputs(corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, video: str, frames: int) -> Outputs:
    """What the model says of a video's frames, computed step by step from its features."""
    _, checkpoint = load_encoder(checkpoints[0])
    crops = FeatureStore(store / checkpoint.fingerprint).crops(video)
    head, _ = load_head(checkpoints[1])
    features = fill_gaps(crops, np.arange(1, frames + 1))
    return predict_video(head, features, Segmenting())


def test_a_generated_corpus_has_templates_to_try(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    paths = sorted((corpus.root / TEMPLATES).iterdir())
    assert [path.stem for path in paths] == sorted(TASKS)
    asked = [word for path in paths for word in ("--template", path)]
    result = evaluate(corpus, checkpoints, store, *asked, "--out", tmp_path)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    for path in paths:
        assert len((tmp_path / path.name).read_text().splitlines()) == len(path.read_text().splitlines()) > 100


@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
def test_template_is_filled_row_by_row_in_its_order(
    task: Task, corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    gappy = next(v for v in corpus.crop_folders if len(corpus.crop_numbers(v)) < corpus.crop_numbers(v)[-1])
    numbers = corpus.crop_numbers(gappy)
    last = int(numbers[-1]) + 2  # annotations are a little longer than videos
    missing = next(k for k in range(1, last) if k not in numbers)
    rows = [(UNLABELLED, 3), (gappy, last), (gappy, missing), (UNLABELLED, 1), (gappy, 1)]
    places = [f"{video}/{frame:05d}.jpg" for video, frame in rows]
    path = template(tmp_path / "sample.txt", task, places)
    result = evaluate(corpus, checkpoints, store, "--template", path, "--out", tmp_path / "filled.txt")
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    assert "5 rows of 2 videos" in result.stdout
    assert not (tmp_path / "evaluation").exists()

    lines = (tmp_path / "filled.txt").read_text().splitlines()
    assert lines[0] == header(task)
    assert [line.split(",")[0] for line in lines[1:]] == places
    ends = {gappy: last, UNLABELLED: int(corpus.crop_numbers(UNLABELLED)[-1])}
    for line, (video, frame) in zip(lines[1:], rows, strict=True):
        answer = expected_outputs(corpus, checkpoints, store, video, ends[video])[task.key][frame - 1]
        cells = [float(cell) for cell in line.split(",")[1:]]
        if task is VALENCE_AROUSAL:
            assert cells == pytest.approx(answer.tolist(), abs=1e-5)
        elif task is EXPRESSION:
            assert cells == [answer.argmax()]
        else:
            assert cells == (answer >= 0.5).astype(float).tolist()


def test_placeholders_and_line_ends_of_the_official_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sample.txt"
    text = "\r\n".join(
        [header(EXPRESSION), "a_left/00001.jpg,0", "a_left/00002.jpg,0,0,0,0,0,0,0,0", "b/00001.jpg", ""]
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = read_template(path)
    assert read.task is EXPRESSION
    assert read.videos == ("a_left", "a_left", "b")
    assert read.frames.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "expected the header of a template", id="empty"),
        pytest.param("valence,arousal\na/00001.jpg\n", "found 'valence,arousal', expected the header", id="annotation"),
        pytest.param(f"{header(EXPRESSION)}\n", "has a header and no rows", id="no-rows"),
        pytest.param(f"{header(EXPRESSION)}\na/1.txt\n", "1 row malformed: line 2 'a/1.txt'", id="no-image"),
        pytest.param(f"{header(EXPRESSION)}\na/00000.jpg\n", "line 2 'a/00000.jpg'", id="counted-from-0"),
        pytest.param(f"{header(EXPRESSION)}\na/00001.jpg,1,2\n", "line 2 'a/00001.jpg,1,2'", id="too-many-cells"),
        pytest.param(f"{header(EXPRESSION)}\na/00001.jpg\n\na/00002.jpg\n", "1 row malformed: line 3 ''", id="blank"),
        pytest.param(
            f"{header(ACTION_UNITS)}\na/00001.jpg\na/00002.jpg\na/00001.jpg\n",
            "1 row there twice: line 4 'a/00001.jpg'",
            id="twice",
        ),
        pytest.param(header(EXPRESSION) + "\n" + "?\n" * 9, "9 rows malformed: line 2 .* and 4 more", id="many"),
    ],
)
def test_a_template_that_cannot_be_understood_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sample.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_template(tmp_path / "sample.txt")


def test_rows_that_cannot_be_predicted_are_named_before_anything_is_written(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    video = next(iter(corpus.crop_folders))
    past = int(corpus.crop_numbers(video)[-1]) + 301
    rows = [f"{video}/00001.jpg", "nobody/00001.jpg", f"{video}/{past:05d}.jpg"]
    fine = template(tmp_path / "fine.txt", EXPRESSION, rows[:1])
    path = template(tmp_path / "sample.txt", VALENCE_AROUSAL, rows)
    result = evaluate(corpus, checkpoints, store, "--template", fine, "--template", path, "--out", tmp_path / "filled")
    assert isinstance(result.exception, DataError)
    assert "1 row of videos without crops: line 3 'nobody/00001.jpg'" in str(result.exception)
    assert f"1 row past what can be predicted: line 4 '{video}/{past:05d}.jpg'" in str(result.exception)
    assert not (tmp_path / "filled").exists()
    template(path, VALENCE_AROUSAL, [rows[0], rows[2]])
    out = tmp_path / "filled"
    longer = ["--template", fine, "--template", path, "--out", out, "--longest-tail", 400]
    assert evaluate(corpus, checkpoints, store, *longer).exit_code == 0
    assert len((out / "sample.txt").read_text().splitlines()) == 3
    assert len((out / "fine.txt").read_text().splitlines()) == 2


def test_a_task_the_heads_do_not_answer_is_refused(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    _, checkpoint = load_encoder(checkpoints[0])
    provenance = Provenance(trained_on="synthetic", encoder=checkpoint.fingerprint)
    save_head(tmp_path / "va", TemporalHead(demo_head_config(tasks=(VALENCE_AROUSAL.key,))), provenance)
    path = template(tmp_path / "sample.txt", EXPRESSION, [f"{next(iter(corpus.crop_folders))}/00001.jpg"])
    result = evaluate(corpus, (checkpoints[0], tmp_path / "va"), store, "--template", path)
    assert isinstance(result.exception, DataError)
    assert "asks for expression; the heads answer valence_arousal" in str(result.exception)


def outputs(task: Task, row: list[float]) -> Outputs:
    return {task.key: np.array([row], np.float32)}


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        pytest.param(VALENCE_AROUSAL, [1.7, -0.0], "1.000000,0.000000", id="clipped"),
        pytest.param(EXPRESSION, [0, 0, 0, 0.4, 0.1, 0.5, 0, 0], "5", id="most-probable"),
        pytest.param(ACTION_UNITS, [0.5, 0.49] + [0] * 10, "1,0" + ",0" * 10, id="threshold-inclusive"),
    ],
)
def test_cells_are_what_the_challenge_asks_for(task: Task, row: list[float], expected: str, tmp_path: Path) -> None:
    read = read_template(template(tmp_path / "sample.txt", task, ["a/00001.jpg"]))
    fill_template(read, lambda video, frames: outputs(task, row), tmp_path / "filled.txt")
    assert (tmp_path / "filled.txt").read_text() == f"{header(task)}\na/00001.jpg,{expected}\n"


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    read = read_template(template(tmp_path / "sample.txt", VALENCE_AROUSAL, ["a/00001.jpg"]))
    out = tmp_path / "filled.txt"
    out.write_text("before")
    with pytest.raises(DataError, match="a: the model's answer is not a number"):
        fill_template(read, lambda video, frames: outputs(VALENCE_AROUSAL, [float("nan"), 0]), out)
    assert out.read_text() == "before"
    with pytest.raises(OutputError, match="cannot be written"):
        fill_template(read, lambda video, frames: outputs(VALENCE_AROUSAL, [0, 0]), out / "inside-a-file.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"sample.txt", "filled.txt"}


def test_what_is_declared_is_filled_in(
    corpus: Corpus, checkpoints: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    last = int(corpus.crop_numbers(UNLABELLED)[-1])
    path = template(tmp_path / "sample.txt", EXPRESSION, [f"{UNLABELLED}/{k:05d}.jpg" for k in range(1, last + 1)])
    out, declared = tmp_path / "filled.txt", tmp_path / "declared.json"
    declared.write_text('{"expression": {"frames": 40}}')
    result = evaluate(corpus, checkpoints, store, "--template", path, "--out", out, "--postprocess", declared)
    assert result.exit_code == 0
    answers = expected_outputs(corpus, checkpoints, store, UNLABELLED, last)[EXPRESSION.key]
    smooth = most_frequent(np.eye(8, dtype=np.float32)[answers.argmax(axis=1)], 20, 19).argmax(axis=1)
    assert [int(line.split(",")[1]) for line in out.read_text().splitlines()[1:]] == smooth.tolist()
