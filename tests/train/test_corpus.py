"""The corpus on disk: what is found under which name, what names tell, and what a check reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import moving_square, write_video
from corpora import write_annotation, write_crops
from typer.testing import CliRunner

from affserve.train.cli import data_app
from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, base_name, open_corpus, subject
from affserve.train.corpus.annotations import format_annotation
from affserve.train.corpus.check import PUBLISHED, SetReport, check_corpus
from affserve.train.errors import DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL
from affserve.train.synthetic.corpus import read_description, write_corpus
from affserve.train.synthetic.plan import SyntheticConfig

EXPR = EXPRESSION.header + "\n"


def test_nested_roots_second_roots_and_older_folder_names_are_found(tmp_path: Path) -> None:
    write_annotation(tmp_path, "EXPR_Classification_Challenge", TRAIN, "a", EXPR + "0\n4\n")
    write_annotation(tmp_path, EXPRESSION.challenge, VALIDATION, "video10_1_left", EXPR + "1\n")
    write_crops(tmp_path / "cropped_aligned" / "cropped_aligned" / "a", [1, 3])
    write_crops(tmp_path / "cropped_aligned_new_50_vids" / "video10_1_left", [1])
    write_crops(tmp_path / "elsewhere" / "a", [2, 3])
    corpus = open_corpus(tmp_path, image_roots=[tmp_path / "elsewhere"])
    assert corpus.name == "Aff-Wild2"
    assert corpus.videos(EXPRESSION, TRAIN) == ["a"]
    assert list(corpus.crops("a")) == [1, 2, 3]
    assert corpus.crops("a")[3].parent == tmp_path / "elsewhere" / "a"  # a named root goes before the others
    assert corpus.crop_numbers("a").tolist() == [1, 2, 3]
    assert list(corpus.crops("video10_1_left")) == [1]


@pytest.mark.parametrize(
    "place",
    [
        "cropped_aligned",
        "cropped_aligned/batch of 2019",
        "cropped_aligned_new_50_vids/cropped_aligned",
        "images/cropped_aligned",
    ],
)
def test_crops_are_found_one_level_deeper_under_any_name(place: str, tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "122-60-1920x1080-4", EXPR + "0\n")
    write_crops(tmp_path / place / "122-60-1920x1080-4", [1])
    write_crops(tmp_path / "cropped_aligned" / "of nobody", [1])
    corpus = open_corpus(tmp_path)
    assert list(corpus.crops("122-60-1920x1080-4")) == [1]
    assert set(corpus.crop_folders) == {"122-60-1920x1080-4"}


def test_annotations_may_lie_in_a_folder_of_the_archive(tmp_path: Path) -> None:
    write_annotation(tmp_path, f"8th ABAW/{EXPRESSION.challenge}", TRAIN, "a", EXPR + "0\n")
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "._a", "left by macOS")
    write_crops(tmp_path / "cropped_aligned" / "a", [1])
    assert open_corpus(tmp_path).videos(EXPRESSION, TRAIN) == ["a"]


def test_only_files_named_like_frames_are_crops(tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "a", EXPR + "0\n")
    folder = tmp_path / "cropped_aligned" / "a"
    write_crops(folder, [2, 10])
    for name in ("00000.jpg", "00004.jpg.part", "._00005.jpg", "Thumbs.db", "6.JPG", "20190101123456.jpg", "²7.jpg"):
        (folder / name).touch()
    corpus = open_corpus(tmp_path)
    assert list(corpus.crops("a")) == corpus.crop_numbers("a").tolist() == [2, 6, 10]


@pytest.mark.parametrize(
    ("video", "base", "recording"),
    [
        ("video10_1_left", "video10_1", "video10"),
        ("video86_1", "video86_1", "video86"),
        ("video59_right", "video59", "video59"),
        ("6-30-1920x1080_left", "6-30-1920x1080", "6-30-1920x1080"),
        ("135-24-1920x1080-2_right", "135-24-1920x1080-2", "135-24-1920x1080"),
        ("202", "202", "202"),
        ("left", "left", "left"),
        ("a_right_left", "a_right", "a_right"),  # one side only
    ],
)
def test_names_tell_the_raw_video_and_the_recording(video: str, base: str, recording: str) -> None:
    assert base_name(video) == base
    assert subject(video) == recording


@pytest.mark.parametrize(("hold_out", "trained"), [("any", ["free"]), ("task", ["both", "free"])])
def test_what_is_validated_is_not_trained_on(hold_out: str, trained: list[str], tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "both", EXPR + "0\n")
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "free", EXPR + "0\n")
    no_action_unit = ACTION_UNITS.header + "\n" + "0," * 11 + "0\n"
    write_annotation(tmp_path, ACTION_UNITS.challenge, VALIDATION, "both", no_action_unit)
    write_crops(tmp_path / "cropped_aligned" / "both", [1])
    corpus = open_corpus(tmp_path)
    assert corpus.part_videos([EXPRESSION], TRAIN, hold_out) == trained
    assert corpus.part_videos([EXPRESSION, ACTION_UNITS], TRAIN, hold_out) == ["free"]
    with pytest.raises(DataError, match="hold_out is 'none', expected one of any, task"):
        corpus.part_videos([EXPRESSION], TRAIN, "none")


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotation files"):
        open_corpus(tmp_path)
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "a", EXPR + "0\n")
    with pytest.raises(DataError, match="no face crops"):
        open_corpus(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_corpus(tmp_path, [tmp_path / "nowhere"])


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=16, validation_share=0.4, frames_min=40, frames_max=50, whole_frame_videos=0)
    return open_corpus(write_corpus(root, config, workers=1).root)


def test_a_check_finds_the_defects_that_the_generator_says_it_made(synthetic: Corpus) -> None:
    described = read_description(synthetic.root)
    report = check_corpus(synthetic)
    videos = {video.name: video for video in report.videos}
    assert not report.unreadable
    for one in described["videos"]:
        found, defects = videos[one["name"]], one["defects"]
        lines = one["frames"] + defects["extra_lines"]
        gone = sum(last - first + 1 for first, last in defects["missing"])
        crops = one["frames"] - (defects["first_crop"] - 1) - gone
        assert (found.frames, found.first_crop) == (lines, defects["first_crop"])
        assert found.past_end == max(0, -defects["extra_lines"])
        assert found.crops == crops - found.past_end
    for key in TASKS:
        sets = [one for one in report.sets if one.task == key]
        assert sum(one.labelled for one in sets) == described["counts"]["labelled_frames"][key]
        assert sum(one.files for one in sets) == sum(key in one["tasks"] for one in described["videos"])
        late = sum(key in one["tasks"] and one["defects"]["first_crop"] > 1 for one in described["videos"])
        assert sum(one.late for one in sets) == late
        assert sum(one.short for one in sets) == sum(one.files for one in sets)
    assert sum(one.late for one in report.sets) > 0
    expressions = [one for one in report.sets if one.task == EXPRESSION.key]
    assert all(sum(one.counts.values()) == one.labelled for one in expressions)


def check(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(data_app, ["check", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_the_command_prints_tables_and_compares_nothing_of_a_generated_corpus(synthetic: Corpus) -> None:
    code, told = check(synthetic.root)
    assert code == 0
    assert "a generated corpus" in told
    assert "published" in told
    assert "as published" not in told
    assert "Happiness" in told
    assert "AU26" in told
    code, told = check(synthetic.root, "--json")
    assert code == 0
    assert len(json.loads(told)["videos"]) == 16


def small_release(root: Path) -> None:
    """Two people of one recording, one video trained by one task and validated by another, a raw video."""
    rows = np.array([[0], [3], [-1], [9]], np.float32)
    write_annotation(root, EXPRESSION.challenge, TRAIN, "video1_left", format_annotation(EXPRESSION, rows))
    write_annotation(root, EXPRESSION.challenge, VALIDATION, "video1_right", EXPR + "1\n" * 320)
    write_annotation(
        root, VALENCE_AROUSAL.challenge, TRAIN, "video1_right", VALENCE_AROUSAL.header + "\n" + "0,.5\n" * 320
    )
    write_crops(root / "cropped_aligned" / "video1_left", [2, 3, 7])
    write_crops(root / "cropped_aligned" / "video1_right", [1])
    (root / "batch1").mkdir()
    write_video(root / "batch1" / "video1.mp4", moving_square(3))


def test_a_check_of_a_release_tells_what_is_split_missing_and_strange(tmp_path: Path) -> None:
    small_release(tmp_path)
    report = check_corpus(open_corpus(tmp_path))
    sets = {(one.task, one.part): one for one in report.sets}
    train = sets[EXPRESSION.key, TRAIN]
    assert (train.files, train.lines, train.labelled, train.strange) == (1, 4, 2, 1)
    assert (train.labelled_without_crop, train.late, train.past_end, train.short) == (1, 1, 1, 1)
    assert {name: count for name, count in train.counts.items() if count} == {"Neutral": 1, "Fear": 1}
    assert sets[EXPRESSION.key, VALIDATION].short == 0
    assert report.split_recordings == {EXPRESSION.key: ["video1_left", "video1_right"]}
    assert report.crossing == ["video1_right"]
    assert report.length_differences == {1: 1, 317: 1}
    assert report.coverage_median == pytest.approx((2 / 4 + 1 / 320) / 2)
    code, told = check(tmp_path)
    assert code == 0
    assert "files -247 (-99.6%)" in told
    assert "+1 in 1, +317 in 1" in told


def test_the_published_counts_are_recognised() -> None:
    files, labelled = PUBLISHED[ACTION_UNITS.key, TRAIN]
    one = SetReport(task=ACTION_UNITS.key, part=TRAIN, files=files, labelled=labelled)
    assert one.published == "as published"
    one.labelled -= 1_000
    assert one.published == "labelled -1,000 (-0.1%)"


def test_files_that_cannot_be_read_are_named_and_the_others_counted(tmp_path: Path) -> None:
    small_release(tmp_path)
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "wrong", EXPR + "0\nhappy\n")
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "other", VALENCE_AROUSAL.header + "\n0,0\n")
    (tmp_path / "batch1" / "other.avi").write_bytes(b"no video")
    jpegs = tmp_path / "cropped_aligned" / "video1_left"
    (jpegs / "00002.jpg").write_bytes((jpegs / "00003.jpg").read_bytes()[:-100])
    (jpegs / "00007.jpg").write_bytes(b"no image")
    code, told = check(tmp_path, "--decode", 3, "--json")
    report: dict[str, Any] = json.loads(told)
    assert code == 1
    reasons = "\n".join(report["unreadable"])
    assert len(report["unreadable"]) == 5, reasons
    assert "wrong.txt:3: found 'happy'" in reasons
    assert "other.txt: first line is 'valence,arousal'" in reasons
    assert "other.avi: cannot be opened as a video" in reasons
    assert "00002.jpg cannot be decoded" in reasons
    assert "00007.jpg cannot be decoded" in reasons
    train = next(one for one in report["sets"] if (one["task"], one["part"]) == (EXPRESSION.key, TRAIN))
    assert (train["files"], train["labelled"]) == (1, 2)
    assert check(tmp_path)[0] == 1
