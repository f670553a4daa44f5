"""The table says what it means, appears whole or not at all, and always prints the same."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from result_rows import tallied

from affserve.client.drawing.plots import draw_result
from affserve.client.drawing.timelines import MOST_BINS, read_timelines
from affserve.client.results.formats import CSV, FORMATS
from affserve.client.results.metadata import ResultTable, metadata_text
from affserve.client.results.output_file import OutputFile, check_writable, write_whole
from affserve.client.results.reading import read
from affserve.client.results.rows import NO_TRACK, QUALITY_COLUMNS, Rows, columns_of, described_columns
from affserve.client.results.table import table_of
from affserve.client.results.text import RowFormatter
from affserve.export.contract import HeadDescription, default_head_description
from affserve.train.errors import OutputError
from affserve.train.labels import TASKS

LABELS = default_head_description().labels


def rows(count: int, *, faceless: tuple[int, ...] = (), labels: dict[str, tuple[str, ...]] | None = None) -> Rows:
    """Rows at 10 per second with valence and arousal -0.00001 and everything else 1 / K."""
    labels = labels or dict(LABELS)
    score = np.where(np.isin(np.arange(count), faceless), np.nan, 0.9)
    predictions = {
        task: np.full((count, len(names)), -1e-5 if task == "valence_arousal" else 1 / len(names), dtype=np.float32)
        for task, names in labels.items()
    }
    return Rows(
        frame=np.arange(count),
        timestamp_s=np.arange(count) / 10,
        track_id=np.where(np.isnan(score), NO_TRACK, 0),
        face_score=score,
        box_px=np.tile(np.array([1.0, 2.0, 3.0, 4.04]), (count, 1)),
        quality=np.tile(np.array([np.nan, np.nan, 0.3, 1.0]), (count, 1)),
        predictions=predictions,
    )


def parsed(formatter: RowFormatter, block: Rows) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(formatter.header + formatter.text(block))))


def written(path: Path, block: Rows) -> Path:
    formatter = RowFormatter(LABELS)
    write_whole(path, (formatter.header + formatter.text(block)).encode())
    return path


def drawn(path: Path, description: HeadDescription) -> bytes:
    blocks = list(CSV.read(path, dict(description.labels)))
    return draw_result(blocks, tallied(blocks), description, title="a.mp4")


def test_row_is_printed_with_fixed_digits() -> None:
    (row,) = parsed(RowFormatter(LABELS), rows(1))
    assert list(row)[:4] == ["frame", "timestamp_s", "track_id", "box_x_px"]
    assert list(row)[7:15] == ["face_score", *QUALITY_COLUMNS, "valence", "arousal", "expression"]
    assert list(row)[-1] == "AU26"
    assert (row["frame"], row["timestamp_s"], row["face_score"], row["box_h_px"]) == ("0", "0.000000", "0.9000", "4.0")
    assert [row[name] for name in QUALITY_COLUMNS] == ["", "", "0.300", "1"]
    assert (row["valence"], row["p_Fear"], row["AU12"]) == ("0.0000", "0.1250", "0.0833")


def test_expression_is_the_most_probable_one() -> None:
    block = rows(2)
    block.predictions["expression"][1, 4] = 0.9
    assert [row["expression"] for row in parsed(RowFormatter(LABELS), block)] == ["Neutral", "Happiness"]


def test_row_without_a_face_has_time_and_nothing_else() -> None:
    block = rows(2, faceless=(1,))
    block.quality[0, :2] = 5.0
    first, second = parsed(RowFormatter(LABELS), block)
    assert all(first.values())
    assert {name for name, cell in second.items() if cell} == {"frame", "timestamp_s"}


@pytest.mark.parametrize("tasks", [["valence_arousal"], ["expression"], ["action_units"]])
def test_head_with_one_task_gives_only_its_columns(tasks: list[str]) -> None:
    labels = {task: TASKS[task].names for task in tasks}
    block = rows(1, labels=labels)
    block.quality[:] = 1.0
    (row,) = parsed(RowFormatter(labels), block)
    assert len(row) == 12 + len(labels[tasks[0]]) + (tasks == ["expression"])
    assert all(row.values())


def test_task_of_a_newer_server_is_passed_on() -> None:
    labels: dict[str, tuple[str, ...]] = {"pain": ("intensity",)}
    (row,) = parsed(RowFormatter(labels), rows(1, labels=labels))
    assert row["pain_intensity"] == "1.0000"


def test_metadata_describes_every_column_of_the_file() -> None:
    table = ResultTable(name="rows.csv", source="a.mp4", labels=LABELS, provenance={"trained_on": "synthetic"})
    document = json.loads(metadata_text(table))
    columns = {column["name"]: column for column in document["tableSchema"]["columns"]}
    assert document["@context"][0] == "http://www.w3.org/ns/csvw"
    assert document["url"] == "rows.csv"
    assert list(columns) == RowFormatter(LABELS).header.strip().split(",")
    assert all(column["dc:description"] for column in columns.values())
    assert columns["timestamp_s"]["schema:unitText"] == "s"
    assert columns["valence"]["datatype"] == {"base": "number", "minimum": -1, "maximum": 1}
    assert columns["frame"]["required"]
    assert not columns["AU4"]["required"]
    assert {"@type": "schema:PropertyValue", "schema:name": "trained_on", "schema:value": "synthetic"} in document[
        "schema:additionalProperty"
    ]


def test_every_action_unit_has_its_meaning() -> None:
    descriptions = [column.description for column in columns_of(LABELS) if column.name.startswith("AU")]
    assert len(descriptions) == 12
    assert "lip corner puller" in descriptions[6]


def test_descriptions_end_with_unit_and_range() -> None:
    described = dict(described_columns(LABELS))
    assert described["box_x_px"] == "left edge of the face box [px]"
    assert described["box_w_px"] == "width of the face box [px, 0 or more]"
    assert described["valence"].endswith(" [-1 to 1]")


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("before")
    with OutputFile(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("before")
    with pytest.raises(TypeError), OutputFile(path) as file:
        file.write([b"half"])  # type: ignore[arg-type]
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_killed_process_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    code = (
        "import sys, time, pathlib; from affserve.client.results.output_file import OutputFile\n"
        "with OutputFile(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'x' * 1_000_000); file._file.flush(); print('half', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()


def test_a_file_that_cannot_be_locked_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # enough for the file, not for its lock
    try:
        with pytest.raises(OutputError, match="ulimit -n 4096"):
            OutputFile(tmp_path / "rows.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places_fail_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "rows.csv", Path("/proc/rows.csv")):
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(path)
    with pytest.raises(OutputError, match="Is a directory"):
        OutputFile(tmp_path / "folder")
    check_writable(tmp_path / "rows.csv")
    assert os.listdir(tmp_path) == ["folder"]


def test_timeline_averages_frames_with_a_face() -> None:
    block = rows(10, faceless=(2, 3, 5))
    block.predictions["valence_arousal"][:, 0] = np.arange(10) / 10
    (timeline,) = read_timelines([block], tallied([block]), LABELS, most_bins=5)
    assert timeline.edges_s.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert timeline.faceless.tolist() == [False, True, False, False, False]
    valence = timeline.values["valence_arousal"][:, 0]
    assert np.isnan(valence[1])
    assert valence[[0, 2, 3, 4]].tolist() == pytest.approx([0.05, 0.4, 0.65, 0.85])


@pytest.mark.parametrize("tasks", [list(TASKS), ["action_units"]], ids=["all-tasks", "one-task"])
@pytest.mark.parametrize("count", [1, 50])
def test_plot_is_drawn_for_any_head_and_length(tmp_path: Path, tasks: list[str], count: int) -> None:
    path = written(tmp_path / "rows.csv", rows(count, faceless=(3, 4)))
    description = HeadDescription(labels={task: TASKS[task].names for task in tasks}, trained_on="synthetic")
    image = cv2.imdecode(np.frombuffer(drawn(path, description), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] == 1560
    assert 400 < image.shape[0] < 1300
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_plot_of_a_long_video_draws_no_more_than_one_of_a_short_one() -> None:
    blocks = [rows(30_000)]
    (timeline,) = read_timelines(blocks, tallied(blocks), LABELS)
    assert len(timeline.edges_s) <= MOST_BINS + 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_rows_is_read_back_as_columns(name: str, tmp_path: Path) -> None:
    block = rows(3, faceless=(1,))
    block.face_score[2] = np.nan  # a face of which the detector gives no score
    path = tmp_path / f"rows{FORMATS[name].suffixes[0]}"
    with OutputFile(path) as file:
        writer = FORMATS[name].open(file, ResultTable(name="rows", source="a.mp4", labels=LABELS, provenance={}))
        writer.write(block)
        writer.finish({})
    table = read(path)

    assert list(table) == [column.name for column in columns_of(LABELS)]
    assert table["track_id"].tolist() == [0, NO_TRACK, 0]
    assert table["expression"].tolist() == ["Neutral", None, "Neutral"]
    assert np.isnan(table["valence"]).tolist() == [False, True, False]
    for column, values in table_of([block], LABELS).items():
        if values.dtype == object:
            assert values.tolist() == table[column].tolist()
        else:
            np.testing.assert_allclose(values, table[column], atol=0.05)  # boxes are printed to 0.1 px


def test_a_file_that_holds_no_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("hello")
    for name, told in (("a.txt", "not named like a file of rows"), ("none.csv", "cannot be read"), ("a.jsonl", "rows")):
        with pytest.raises(OutputError, match=told):
            read(tmp_path / name)
