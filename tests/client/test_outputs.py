"""Every format says the same, describes itself and is written as rows come."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from result_rows import LABELS, people, tallied

from affserve.client.drawing.plots import draw_result
from affserve.client.drawing.timelines import read_timelines
from affserve.client.results.formats import CSV, FORMATS, JSON_LINES, PARQUET, RowFormat, choose_format
from affserve.client.results.metadata import ResultTable
from affserve.client.results.output_file import OutputFile
from affserve.client.results.parquet import GROUP_ROWS
from affserve.client.results.rows import Rows, columns_of
from affserve.export.contract import default_head_description
from affserve.train.errors import OutputError

TWO_PEOPLE = {0: range(2, 9), 1: range(5, 9)}


def written(path: Path, row_format: RowFormat, *blocks: Rows) -> Path:
    table = ResultTable(name=path.name, source="a.mp4", labels=LABELS, provenance={"trained_on": "nothing"})
    with OutputFile(path) as file:
        writer = row_format.open(file, table)
        for block in blocks:
            writer.write(block)
        writer.finish({"rows": "13"})
    return path


def plain_cells(path: Path, row_format: RowFormat) -> dict[str, list[object]]:
    """The columns of a file as its format's usual reader gives them, numbers rounded to the CSV's digits."""
    if row_format is PARQUET:
        columns = pq.read_table(path).to_pydict()
    else:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file)) if row_format is CSV else [json.loads(line) for line in file]
        columns = {name: [line[name] for line in lines] for name in lines[0]}
    digits = {column.name: column.digits for column in columns_of(LABELS)}
    return {name: [_plain(cell, digits[name]) for cell in cells] for name, cells in columns.items()}


def _plain(cell: object, digits: int) -> object:
    if cell is None or cell == "":
        return None
    try:
        return round(float(str(cell)), digits) + 0.0
    except ValueError:
        return cell


@pytest.mark.parametrize("row_format", [JSON_LINES, PARQUET], ids=["jsonl", "parquet"])
def test_formats_hold_the_same_rows(tmp_path: Path, row_format: RowFormat) -> None:
    rows = people(10, TWO_PEOPLE)
    reference = plain_cells(written(tmp_path / "rows.csv", CSV, rows), CSV)

    cells = plain_cells(written(tmp_path / "rows", row_format, rows), row_format)

    assert list(cells) == list(reference)
    for name, values in cells.items():
        for cell, expected in zip(values, reference[name], strict=True):
            assert cell == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected), name
    assert cells["track_id"] == [None, None, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, None]


@pytest.mark.parametrize("name", FORMATS)
def test_finished_file_is_read_back(tmp_path: Path, name: str) -> None:
    rows = people(10, TWO_PEOPLE)
    path = written(tmp_path / "rows", FORMATS[name], rows)

    (block,) = FORMATS[name].read(path, LABELS)

    assert block.track_id.tolist() == rows.track_id.tolist()
    assert np.allclose(block.box_px, rows.box_px, atol=0.05, equal_nan=True)
    for task, values in rows.predictions.items():
        assert np.allclose(block.predictions[task], values, atol=1e-4, equal_nan=True)


def test_parquet_is_typed_and_describes_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", PARQUET, people(10, TWO_PEOPLE))
    schema = pq.read_schema(path)

    assert schema.field("frame").type == pa.int64()
    assert schema.field("timestamp_s").type == pa.float64()
    assert schema.field("valence").type == pa.float32()
    assert schema.field("expression").type == pa.dictionary(pa.int32(), pa.string())
    assert not schema.field("frame").nullable
    assert schema.field("box_w_px").metadata[b"unit"] == b"px"
    assert schema.field("valence").metadata[b"minimum"] == b"-1"
    assert all(field.metadata[b"description"] for field in schema)
    assert PARQUET.description(path).source == "a.mp4"
    assert PARQUET.description(path).provenance["trained_on"] == "nothing"
    assert PARQUET.description(path).provenance["rows"] == "13"


def test_parquet_is_written_as_rows_come(tmp_path: Path) -> None:
    block = people(GROUP_ROWS // 2, {0: range(GROUP_ROWS)})
    path = tmp_path / "rows.parquet"
    table = ResultTable(name=path.name, source="a.mp4", labels=LABELS, provenance={})
    with OutputFile(path) as file:
        writer = PARQUET.open(file, table)
        for _ in range(5):
            writer.write(block)
        assert file.part.stat().st_size > 100_000  # two row groups are on disk before the end
        writer.finish({})

    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [
        GROUP_ROWS,
        GROUP_ROWS,
        GROUP_ROWS // 2,
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_full_disk_is_told_by_every_format(name: str) -> None:
    with pytest.raises(OutputError, match="No space left on device"):
        written(Path("/dev/full"), FORMATS[name], *[people(2000, {0: range(2000)})] * 5)


def test_number_that_is_none_is_null_in_json(tmp_path: Path) -> None:
    rows = people(1, {0: range(1)})
    rows.predictions["valence_arousal"][0, 0] = np.nan

    (line,) = written(tmp_path / "rows.jsonl", JSON_LINES, rows).read_text().splitlines()

    assert json.loads(line)["valence"] is None


def test_format_follows_the_name_of_the_file() -> None:
    assert choose_format(None, None) is CSV
    assert choose_format(None, Path("/dev/stdout")) is CSV
    assert choose_format(None, Path("rows.Parquet")) is PARQUET
    assert choose_format("jsonl", Path("rows.txt")) is JSON_LINES
    with pytest.raises(OutputError, match="change one of them"):
        choose_format("parquet", Path("rows.csv"))
    with pytest.raises(OutputError, match="expected one of csv, parquet, jsonl"):
        choose_format("xlsx", None)
    with pytest.raises(OutputError, match=r"expected a name in \.csv, .* or the name of a folder"):
        choose_format(None, Path("rows.xlsx"))


def test_missing_parquet_names_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['pyarrow'] = None\n"
        "sys.argv = ['affserve', 'infer', 'missing.mp4', '--url', 'a:1', '--format', 'parquet']\n"
        "from affserve.client.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert result.returncode == 1
    assert "pip install 'affserve[parquet]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_timelines_of_the_people_seen_most() -> None:
    rows = people(100, {0: range(100), 1: range(20, 90), 2: range(3), 3: range(50, 100)})
    halves = [slice_of(rows, slice(None, 77)), slice_of(rows, slice(77, None))]  # a frame is cut in two

    timelines = read_timelines(halves, tallied(halves), LABELS, most_bins=50, most_people=3)

    assert [(one.track_id, one.frames) for one in timelines] == [(0, 100), (1, 70), (3, 50)]
    assert timelines[0].edges_s == pytest.approx(np.arange(51) / 15)
    assert timelines[1].faceless.tolist() == [k < 10 or k >= 45 for k in range(50)]
    mine = rows.track_id == 3
    expected = rows.predictions["valence_arousal"][mine][:2].mean(axis=0)
    assert timelines[2].values["valence_arousal"][25] == pytest.approx(expected)


def slice_of(rows: Rows, part: slice) -> Rows:
    return Rows(
        frame=rows.frame[part],
        timestamp_s=rows.timestamp_s[part],
        track_id=rows.track_id[part],
        box_px=rows.box_px[part],
        face_score=rows.face_score[part],
        quality=rows.quality[part],
        predictions={task: values[part] for task, values in rows.predictions.items()},
    )


def test_plot_shows_each_person() -> None:
    one, two = (
        cv2.imdecode(
            np.frombuffer(draw_result([rows], tallied([rows]), default_head_description(), title="a"), np.uint8),
            cv2.IMREAD_COLOR,
        )
        for rows in (people(30, {0: range(30)}), people(30, {0: range(30), 1: range(30)}))
    )

    assert two.shape[0] > 1.5 * one.shape[0]
