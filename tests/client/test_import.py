"""Photographs that a lab has, brought into a corpus: what is read, what is told, how people are split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, open_corpus
from affserve.train.errors import DataError
from affserve.train.importing.class_names import ClassNames, read_class_names
from affserve.train.importing.layout import lay_out
from affserve.train.importing.photographs import Collected, Photograph, collect, read_class_folders, read_table
from affserve.train.importing.presets import PRESETS
from affserve.train.labels import EXPRESSION, VALENCE_AROUSAL


def told(found: Collected) -> list[tuple[str, str | None, str | None, str, tuple[float, ...] | None]]:
    """Image, person, set, expression and box of each photograph."""
    rows = []
    for one in found.photographs:
        image = one.image.name if isinstance(one.image, Path) else str(one.image.shape)
        rows.append((image, one.person, one.part, EXPRESSION.names[int(one.labels["expression"][0])], one.box_px))
    return rows


def preset(name: str, root: Path) -> Collected:
    return collect(PRESETS[name].read(root), ClassNames(PRESETS[name].names))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_rafdb_is_read_aligned_or_whole(tmp_path: Path) -> None:
    write(tmp_path / "basic/EmoLabel/list_patition_label.txt", "train_00001.jpg 5\ntest_0001.jpg 4\n")
    assert told(preset("rafdb", tmp_path)) == [
        ("train_00001_aligned.jpg", None, TRAIN, "Sadness", None),
        ("test_0001_aligned.jpg", None, VALIDATION, "Happiness", None),
    ]
    write(tmp_path / "basic/Image/original/train_00001.jpg", "")
    write(tmp_path / "basic/Annotation/boundingbox/train_00001_boundingbox.txt", "10 20 110 140")
    assert told(preset("rafdb", tmp_path))[0] == ("train_00001.jpg", None, TRAIN, "Sadness", (10, 20, 100, 120))


def test_affectnet_is_read_from_tables_and_from_folders(tmp_path: Path) -> None:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    write(tmp_path / "a/training.csv", header + "1/x.jpg,5,6,70,80,1;2,7,-0.5,0.25\n1/y.jpg,5,6,70,80,1;2,9,-2,-2\n")
    write(tmp_path / "a/validation.csv", header + "2/z.jpg,1,2,30,40,1;2,6,-2,-2\n")
    found = preset("affectnet", tmp_path / "a")
    assert told(found) == [
        ("x.jpg", None, TRAIN, "Other", (5, 6, 70, 80)),
        ("z.jpg", None, VALIDATION, "Anger", (1, 2, 30, 40)),
    ]
    assert found.photographs[0].labels["valence_arousal"].tolist() == [-0.5, 0.25]
    assert "valence_arousal" not in found.photographs[1].labels
    assert found.left_out == {"without a label": 1}
    assert not found.problems

    folder = tmp_path / "b" / "val_set" / "annotations"
    folder.mkdir(parents=True)
    for what, value in (("exp", "1"), ("val", "0.7"), ("aro", "-0.1")):
        np.save(folder / f"12_{what}.npy", np.array(value))
    assert told(preset("affectnet", tmp_path / "b")) == [("12.jpg", None, VALIDATION, "Happiness", None)]


def test_fer2013_keeps_its_test_set_out_and_tells_of_broken_rows(tmp_path: Path) -> None:
    pixels = " ".join(["7"] * 2304)
    rows = f"3,{pixels},Training\n0,{pixels},PublicTest\n0,{pixels},PrivateTest\n1,1 2 3,Training\n"
    found = preset("fer2013", write(tmp_path / "fer2013.csv", "emotion,pixels,Usage\n" + rows))
    assert told(found) == [("(48, 48)", None, TRAIN, "Happiness", None), ("(48, 48)", None, VALIDATION, "Anger", None)]
    assert found.left_out.total() == 1
    assert "fer2013.csv:5: expected 2304 pixels" in found.problems[0]


def test_expw_is_split_by_the_words_its_images_were_searched_with(tmp_path: Path) -> None:
    write(tmp_path / "label.lst", "angry_actor_104.jpg 0 28 113 226 141 22.9 2\n")
    assert told(preset("expw", tmp_path)) == [("angry_actor_104.jpg", "angry_actor", None, "Fear", (113, 28, 113, 113))]


def test_class_folders_tell_expression_set_and_person(tmp_path: Path) -> None:
    for name in ("train/happy/ann_1.jpg", "test/contempt/ben_1.png", "train/readme.jpg"):
        write(tmp_path / name, "")
    assert told(collect(read_class_folders(tmp_path), ClassNames(), r"([^/]+)_\d+")) == [
        ("ben_1.png", "ben", VALIDATION, "Other", None),
        ("ann_1.jpg", "ann", TRAIN, "Happiness", None),
    ]


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("image,subject,subject,expression", {}, "2 columns 'subject'"),
        ("image,who,expression", {"subject": "person"}, "no column 'person' for subject; it has image, who"),
        ("image,who,expression", {"persn": "who"}, "--columns names persn; known here are image, subject"),
        ("file,who", {}, "no column 'image'"),
        ("image,subject,valence", {}, "valence-arousal without arousal"),
    ],
    ids=["two subjects", "no such column", "no such name", "no image", "valence alone"],
)
def test_a_table_that_cannot_be_understood_is_refused(
    tmp_path: Path, header: str, columns: dict[str, str], message: str
) -> None:
    table = write(tmp_path / "labels.csv", header + "\na.jpg,b,c,d\n")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        list(read_table(table, tmp_path, columns))


def test_names_are_mapped_by_a_table_that_can_be_changed(tmp_path: Path) -> None:
    names = read_class_names(write(tmp_path / "own.csv", "name,expression\nBored,Neutral\ncontempt,-\n"))
    assert names.index(" bored ") == 0
    assert names.index("contempt") is None
    assert names.problem() is None
    assert names.index("silly") is None
    assert "'silly' (1)" in str(names.problem())
    with pytest.raises(DataError, match=r"own\.csv:1: found 'bored,Boredom'"):
        read_class_names(write(tmp_path / "own.csv", "bored,Boredom\n"))


def photograph(person: str | None, expression: int, part: str | None = None) -> Photograph:
    labels = {EXPRESSION.key: np.array([expression], np.float32)}
    return Photograph(where="x", image=Path("x.jpg"), box_px=None, person=person, part=part, labels=labels)


def test_people_are_split_so_that_each_expression_is_in_both_sets() -> None:
    rng = np.random.default_rng(0)
    # Fear is on 5 of 200 images; some people have many images.
    some = [
        photograph(f"p{k % 60}" if k % 3 else "p0", 3 if k % 40 == 0 else int(rng.integers(0, 3))) for k in range(200)
    ]
    folders = lay_out(some, 0.25, seed=1)
    people = {part: {one.person for one in folders if one.part == part} for part in (TRAIN, VALIDATION)}
    assert not people[TRAIN] & people[VALIDATION]
    counts = {
        part: np.bincount(
            [int(p.labels[EXPRESSION.key][0]) for one in folders if one.part == part for p in one.photographs],
            minlength=4,
        )
        for part in people
    }
    assert (counts[VALIDATION] > 0).all()
    assert (counts[TRAIN] > 0).all()
    assert 0.15 < counts[VALIDATION].sum() / 200 < 0.4
    again = lay_out(some, 0.25, seed=1)
    assert [(one.video, one.part) for one in again] == [(one.video, one.part) for one in folders]
    assert [(one.video, one.part) for one in lay_out(some, 0.25, seed=2)] != [(one.video, one.part) for one in folders]


def test_without_people_and_sets_nothing_is_split() -> None:
    with pytest.raises(DataError, match="2 of 3 photographs tell neither who is on them nor their set"):
        lay_out([photograph(None, 0), photograph("a", 0), photograph(None, 1)], 0.2, 0)
    alike = lay_out(
        [photograph("a b", 0, TRAIN), photograph("a/b", 1, TRAIN), photograph("a b", 1, VALIDATION)], 0.2, 0
    )
    assert len({one.video for one in alike}) == 3  # no name twice, no set shares a folder


def test_real_photographs_become_a_corpus_and_what_is_wrong_is_told(shared_data: Path, tmp_path: Path) -> None:
    rows = (shared_data / "faces" / "legend.csv").read_text().splitlines()[1:9]
    for row in rows:
        shutil.copy(shared_data / "faces" / row.split(",")[0], tmp_path)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / rows[0].split(",")[0]).read_bytes()[:500])
    cv2.imwrite(str(tmp_path / "nobody.png"), np.full((200, 200, 3), 90, np.uint8))
    more = ["broken.jpg,Ann,fear", "gone.jpg,Ann,fear", "nobody.png,Ann,anger", f"{rows[0].split(',')[0]},Ann,bored"]
    write(tmp_path / "legend.csv", "\n".join(["image,subject,emotion", *rows, *more]) + "\n")
    arguments = [
        "data",
        "import",
        tmp_path / "legend.csv",
        "--columns",
        "expression=emotion",
        "--out",
        tmp_path / "corpus",
    ]
    detector = ["--face-model", shared_data / "face_detection_yunet_2023mar.onnx", "--workers", "1", "--json"]
    result = CliRunner().invoke(app, list(map(str, arguments + detector)))
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    assert report["found"] == 8
    assert report["photographs"] == 11
    lines = "\n".join(report["problems"])
    for expected in ("unknown expressions, left out: 'bored' (1)", "gone.jpg", "broken.jpg", "legend.csv:12: no face"):
        assert expected in lines
    corpus = open_corpus(tmp_path / "corpus")
    assert (corpus.name, corpus.kind, corpus.images) == ("corpus", "photographs", "served")
    assert {corpus.person(video) for video in corpus.part_videos([EXPRESSION], TRAIN)} <= {
        row.split(",")[1] for row in [*rows, *more]
    }
    assert not corpus.videos(VALENCE_AROUSAL, TRAIN)
    checked = CliRunner().invoke(app, ["data", "check", str(tmp_path / "corpus")])
    assert checked.exit_code == 0
    assert "not labelled here: valence-arousal, action units" in checked.stdout
    assert "356" not in checked.stdout
    assert "warning" not in checked.stdout
    described = tmp_path / "corpus" / "corpus.json"
    everybody = json.loads(described.read_text())
    everybody["people"] = dict.fromkeys(everybody["people"], "Ann")  # as if the owners had split by image
    described.write_text(json.dumps(everybody))
    warned = CliRunner().invoke(app, ["data", "check", str(tmp_path / "corpus")])
    count = len(everybody["people"])
    assert f"warning: expressions: people or recordings in both sets: {count} videos" in warned.stdout
