"""Labels of recordings at their own times, brought to the frames of videos: tables and ELAN files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pympi.Elan import Eaf
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.train.corpus.affwild2 import CROP_RECORDS, SERVED_ROOT, TRAIN, VALIDATION, open_corpus
from affserve.train.errors import DataError
from affserve.train.importing.class_names import ClassNames
from affserve.train.importing.recordings import Reading, Samples, read_recording, spread
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.provenance import UNTAUGHT

TIMES = np.arange(20) / 10  # of frames, 10 a second


def reading(**choices: object) -> Reading:
    return Reading(**{"names": ClassNames(), "columns": {}, "tiers": {}, **choices})  # type: ignore[arg-type]


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_ratings_twice_a_second_reach_every_frame_and_no_further() -> None:
    samples = Samples(times_s=np.array([0.5, 1.0, 1.5]), values=np.array([[0, 0], [1, -1], [0, 0]], np.float32))
    linear = spread(VALENCE_AROUSAL, samples, TIMES, linear=True)
    assert linear[5:16, 0] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0], abs=1e-6)
    assert (linear[:2] == -5).all()  # a quarter of a second before the first label and more
    assert (linear[3:5] == 0).all()
    nearest = spread(VALENCE_AROUSAL, samples, TIMES, linear=False)
    assert nearest[5:16, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


def test_a_gap_in_the_labels_stays_one() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.5, 1.6])
    samples = Samples(times_s=times, values=np.zeros((6, 2), np.float32))
    labelled = spread(VALENCE_AROUSAL, samples, TIMES, linear=True)[:, 0] == 0
    assert np.flatnonzero(labelled).tolist() == [0, 1, 2, 3, 15, 16]


def test_tables_are_read_by_frame_or_by_time_with_the_delay_of_raters(tmp_path: Path) -> None:
    rows = [f"{k},{k / 10},{k / 20 - 0.5},0,{'happy' if k > 9 else 'sad'},{0.9 if k == 3 else 0.1}" for k in range(20)]
    header = "frame,timestamp_s,valence,arousal,expression,AU1"
    units = ",".join(ACTION_UNITS.names[1:])
    table = write(tmp_path / "a.csv", f"{header},{units}", *(f"{row}{',0' * 11}" for row in rows))
    labels, odd = read_recording(table, TIMES, reading())
    assert odd is None
    assert labels["valence_arousal"][:, 0] == pytest.approx(np.arange(20) / 20 - 0.5)
    assert labels["expression"][:, 0].tolist() == [5] * 10 + [4] * 10
    assert labels["action_units"][:, 0].tolist() == [float(k == 3) for k in range(20)]
    late, _ = read_recording(table, TIMES, reading(delay_s=0.4, columns={"time": "timestamp_s"}))
    assert late["valence_arousal"][:16, 0] == pytest.approx(np.arange(4, 20) / 20 - 0.5)
    assert late["expression"][:, 0].tolist() == [5] * 6 + [4] * 10 + [-1] * 4
    _, odd = read_recording(table, TIMES[:10], reading(columns={"time": "timestamp_s"}))
    assert "labels up to 1.9 s and its video ends 1.0 s earlier" in str(odd)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["when,expression", "0,happy"], "neither a column 'frame' nor one of times"),
        (["time,mood", "0,happy"], "has no label"),
        (["time,valence", "0,1"], "without arousal"),
        (["time,valence,arousal", "0,1.5,0"], "are 1.5, 0, expected -1 to 1"),
        (["frame,expression", "0,happy", "0,sad"], "several rows for 0 s"),
        (["time,expression", "soon,happy"], "frame or time is 'soon'"),
        (["time,expression", "9000,happy"], "labels none of the 20 frames"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_recording(write(tmp_path / "a.csv", *rows), TIMES, reading())


@pytest.fixture
def elan(tmp_path: Path) -> Path:
    document = Eaf(author="")
    document.add_tier("Emotion")
    document.add_annotation("Emotion", 200, 600, "happy")
    document.add_annotation("Emotion", 600, 1000, "sad")
    for name in ACTION_UNITS.names:
        document.add_tier(name)
    document.add_annotation("AU12", 300, 500, "x")
    document.to_file(str(tmp_path / "talk.eaf"))
    return tmp_path / "talk.eaf"


def test_intervals_of_elan_are_spread_over_frames(elan: Path) -> None:
    tiers = {"expression": "Emotion", **{name: name for name in ACTION_UNITS.names}}
    labels, odd = read_recording(elan, TIMES, reading(tiers=tiers))
    assert odd is None
    assert labels["expression"][:, 0].tolist() == [-1] * 2 + [4] * 4 + [5] * 4 + [-1] * 10
    active = labels["action_units"][:, ACTION_UNITS.names.index("AU12")]
    assert active.tolist() == [-1] * 3 + [1, 1] + [-1] * 15
    some, _ = read_recording(elan, TIMES, reading(tiers={"AU4": "AU4", "AU12": "AU12"}))
    assert some["action_units"][3].tolist() == [-1, -1, 0, -1, -1, -1, 1, -1, -1, -1, -1, -1]
    with pytest.raises(DataError, match=r"has no tier 'Mood' for expression; it has .*'Emotion'"):
        read_recording(elan, TIMES, reading(tiers={"expression": "Mood"}))
    with pytest.raises(DataError, match="say which tiers hold what"):
        read_recording(elan, TIMES, reading())
    with pytest.raises(DataError, match="cannot be read as an ELAN file"):
        read_recording(write(elan.with_name("b.eaf"), "<a>"), TIMES, reading(tiers=tiers))


def write_cropped(root: Path, *videos: str) -> None:
    """Leave what affserve data crop leaves, for videos of 20 frames."""
    (root / SERVED_ROOT / CROP_RECORDS).mkdir(parents=True)
    for video in videos:
        (root / SERVED_ROOT / video).mkdir()
        for number in range(1, 21):
            cv2.imwrite(str(root / SERVED_ROOT / video / f"{number:05d}.jpg"), np.zeros((112, 112, 3), np.uint8))
        record = {"report": {"crops": {video: 20}}, "times_s": TIMES.tolist()}
        (root / SERVED_ROOT / CROP_RECORDS / f"{video}.json").write_text(json.dumps(record))


def test_recordings_become_a_corpus_split_by_person_and_what_is_wrong_is_told(elan: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_cropped(root, "talk", "ann_1", "ann_2", "ben_1")
    for name in ("ann_1", "ann_2", "ben_1"):
        write(
            tmp_path / f"{name}.csv", "time,expression", *(f"{k / 10},{'bored' if k else 'happy'}" for k in range(30))
        )
    files = [elan, *(tmp_path / f"{name}.csv" for name in ("ann_1", "ann_2", "ben_1", "gone"))]
    arguments = [
        "data",
        "import",
        *map(str, files),
        "--recordings",
        "--out",
        str(root),
        "--tiers",
        "expression=Emotion",
    ]
    pattern = ["--subject-pattern", r"/([a-z]+)[^/]*$"]
    result = CliRunner().invoke(app, [*arguments, *pattern])
    assert result.exit_code == 1
    assert "4 recordings of 3 people; expression 11 frames" in result.stdout
    assert "gone.csv is of 'gone', and no crops are called so; found ann_1" in result.stderr
    assert "unknown expressions, left out: 'bored' (87)" in result.stderr
    corpus = open_corpus(root)
    train, held_out = (corpus.videos(EXPRESSION, part) for part in (TRAIN, VALIDATION))
    assert {corpus.person(v) for v in train}.isdisjoint({corpus.person(v) for v in held_out})
    assert ("ann_1" in train) == ("ann_2" in train)
    again = CliRunner().invoke(app, [*arguments[:3], *arguments[7:], *pattern])  # fewer files: these alone stay
    assert again.exit_code == 1, "talk alone is one person"
    assert "two people or more" in str(again.exception)


def test_a_corpus_with_eight_of_the_twelve_units_is_imported_trained_on_tuned_and_scored(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    root, out = tmp_path / "corpus", tmp_path / "out"
    people = ("ann", "ben", "cem", "dee", "eva")
    write_cropped(root, *people)
    labelled = ("AU1", "AU2", "AU4", "AU6", "AU12", "AU15", "AU25", "AU26")  # those of ours that DISFA has
    missing = [name for name in ACTION_UNITS.names if name not in labelled]
    rng = np.random.default_rng(0)
    for name in people:
        rows = [f"{k}," + ",".join(map(str, rng.integers(0, 2, len(labelled)))) for k in range(20)]
        rows[3] = "3" + "," * len(labelled)  # a frame that nobody labelled
        rows[4] = rows[4][:-1]  # and one without AU26 only
        write(tmp_path / f"{name}.csv", "frame," + ",".join(labelled), *rows)

    def run(command: str) -> str:
        words = command.replace("@", f"{tmp_path}/").split()
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.stdout

    tables = " ".join(f"@{name}.csv" for name in people)
    run(f"data import {tables} --recordings --out @corpus --validation 0.4")
    table = run("data check @corpus")
    assert f"not labelled here: valence-arousal, expressions, {', '.join(missing)}" in table
    report = json.loads(run("data check @corpus --json"))
    assert [one["labelled"] for one in report["sets"]] == [18 * one["files"] for one in report["sets"]]
    assert set(report["sets"][0]["counts"]) == set(labelled)
    model = f"--encoder {checkpoints[0]} --features @out/features"
    run(f"train features @corpus --encoder {checkpoints[0]} --out @out/features")
    sizes = "--size demo --epochs 1 --batch 32 --lr 1e-3 --unit-weights"
    told = run(f"train head @corpus {model} --out @out/head --task action_units {sizes}")
    assert ", 8 of 12 units" in told
    assert json.loads((out / "head" / "config.json").read_text())["provenance"]["data"][UNTAUGHT] == missing
    tuned = json.loads(run(f"train tune @corpus {model} --head @out/head --json"))["action_units"]
    scores = json.loads(run(f"evaluate @corpus {model} --head @out/head --report @out/report --json"))["official"]
    assert set(scores["parts"]["action_units"]) == set(labelled)
    assert scores["scores"]["action_units"] == pytest.approx(np.mean(list(scores["parts"]["action_units"].values())))
    assert tuned["before"] > 0
    assert "| action units | mean F1, 8 of 12 units |" in (out / "report" / "report.md").read_text()
