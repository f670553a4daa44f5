"""What convert writes is read by the readers of its field, and holds what our CSV holds."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from pympi.Elan import Eaf
from result_rows import people, written
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.exchange.exchange import EXCHANGES, convert, plan
from affserve.client.results import read
from affserve.client.results.formats import FORMATS
from affserve.client.results.people import frames_of, people_of, states_of
from affserve.client.results.table import Table
from affserve.train.errors import OutputError, UsageError

FRAMES = 90
# Of OpenFace 2, as py-feat's read_openface documents them.
OPENFACE_UNITS = {1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45}
OURS_ALONE = {"AU24_c"}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Two people, one after the other and together, at 29.97 frames per second."""
    return written(tmp_path / "talk.affect.csv", people(FRAMES, {0: range(3, 60), 1: range(40, 80)}, fps=30000 / 1001))


def converted(result: Path, to: str) -> tuple[Path, list[str]]:
    (file,) = plan([result], to, None).values()
    return file, convert(result, file, to)


def measures(table: Table, rows: np.ndarray) -> np.ndarray:
    return np.stack([table[name][rows] for name in table.measures], axis=1)


def test_a_table_knows_its_units_and_where_it_comes_from(result: Path) -> None:
    table = read(result)
    assert (table.source, table.provenance) == ("talk.mp4", {"trained_on": "nothing"})
    assert table.units["box_x_px"] == "px"
    frame = table.to_pandas()
    assert list(frame) == list(table)
    assert frame.attrs["descriptions"]["AU12"] == "probability that AU12 (lip corner puller) is active"
    arrow = table.to_arrow()
    assert arrow.column("valence").null_count == int(np.isnan(table["valence"]).sum())
    assert arrow.column("track_id").null_count == arrow.column("valence").null_count
    assert arrow.schema.field("AU12").metadata[b"maximum"] == b"1"


@pytest.mark.parametrize("to", ["parquet", "jsonl"])
def test_our_own_formats_come_back_byte_for_byte(result: Path, to: str, tmp_path: Path) -> None:
    file, _ = converted(result, to)
    (back,) = plan([file], "csv", tmp_path / "back").values()
    convert(file, back, "csv")
    assert back.read_bytes() == result.read_bytes()
    assert Path(f"{back}-metadata.json").read_bytes() == Path(f"{result}-metadata.json").read_bytes()


@pytest.mark.parametrize("to", [*EXCHANGES, "parquet", "jsonl"])
def test_a_column_that_somebody_added_is_in_nobodys_way(result: Path, to: str, tmp_path: Path) -> None:
    frame = pd.read_csv(result)
    frame["what, why"] = np.where(frame["frame"] > 50, "laughs, loudly", None)
    frame.to_csv(result, index=False)  # with track_id 0.0
    assert set(read(result)["what, why"]) == {"laughs, loudly", None}
    file, _ = converted(result, to)
    if to in FORMATS:
        assert read(file)["what, why"].tolist() == read(result)["what, why"].tolist()
        (back,) = plan([file], "csv", tmp_path / "back").values()
        convert(file, back, "csv")
        assert read(back)["what, why"].tolist() == read(result)["what, why"].tolist()
    frame["valence"] = frame["what, why"]
    frame.to_csv(result, index=False)
    with pytest.raises(OutputError, match="could not convert string to float: 'laughs, loudly'"):
        read(result)


def test_openface(result: Path) -> None:
    file, notes = converted(result, "openface")
    table, frame = read(result), pd.read_csv(file)
    assert list(frame)[:5] == ["frame", "face_id", "timestamp", "confidence", "success"]
    units = list(frame)[5:]
    assert set(units) - OURS_ALONE <= {f"AU{unit:02}_c" for unit in OPENFACE_UNITS}
    face = table["track_id"] >= 0
    assert frame["frame"].tolist() == (table["frame"] + 1).tolist()
    assert frame["timestamp"].tolist() == table["timestamp_s"].tolist()
    assert frame["success"].tolist() == face.astype(int).tolist()
    assert frame["face_id"][face].tolist() == table["track_id"][face].tolist()
    assert frame["confidence"][face].tolist() == table["face_score"][face].tolist()
    assert frame["AU06_c"].tolist() == (table["AU6"] >= 0.5).astype(int).tolist()
    meanings = json.loads(Path(f"{file}-metadata.json").read_text())["tableSchema"]["columns"]
    assert [one["name"] for one in meanings] == list(frame)
    assert "valence" in notes[0]


def test_elan(result: Path) -> None:
    file, _ = converted(result, "elan")
    document, table = Eaf(file), read(result)
    frames = frames_of(table)
    first, second = people_of(table, frames)
    said = document.get_annotation_data_for_tier("person 0: expression")
    assert [words for *_, words in said] == [
        name for k, name in enumerate(table["expression"][first.rows]) if not k or name != said_before(table, first, k)
    ]
    spans = second.frames.spans(states_of(table)["AU12"][second.rows])
    active = document.get_annotation_data_for_tier("person 1: AU12 lip corner puller")
    assert [(start, end) for start, end, _ in active] == [(round(a * 1000), round(b * 1000)) for a, b in spans]
    unseen = document.get_annotation_data_for_tier("person 1: no face")
    assert unseen == [(0, 1335, "no face"), (2669, 3003, "no face")]
    assert document.get_linked_files()[0]["RELATIVE_MEDIA_URL"] == "./talk.mp4"

    # The curves, as ELAN reads them: lines with a # are skipped, a track names its column.
    series = file.with_name("talk.affect_timeseries.csv")
    cells = np.genfromtxt(series, delimiter=",", comments="#")
    tracks = {one.get("name"): one for one in ElementTree.parse(file.with_name("talk.affect_tsconf.xml")).iter("track")}
    position = tracks["person 1 arousal"].find("sample-position/pos")
    assert position is not None
    curve = cells[:, int(position.get("col", ""))]
    places = np.searchsorted(frames.number, second.frames.number)
    assert cells[:, 0].tolist() == frames.from_s.tolist()
    assert curve[places].tolist() == table["arousal"][second.rows].tolist()
    assert np.isnan(np.delete(curve, places)).all()
    assert "passive" in (tracks["person 1 arousal"].findtext("description") or "")


def said_before(table: Table, person: object, k: int) -> object:
    return table["expression"][person.rows][k - 1]  # type: ignore[attr-defined]


def test_bids(result: Path) -> None:
    events_file, notes = converted(result, "bids")
    table = read(result)
    stem = str(events_file).removesuffix("_events.tsv") + "_recording-person1_physio"
    facts = json.loads(Path(f"{stem}.json").read_text())
    with gzip.open(f"{stem}.tsv.gz", "rt") as file:
        samples = pd.read_csv(file, sep="\t", header=None, names=facts["Columns"], na_values="n/a")
    second = people_of(table, frames_of(table))[1]
    assert facts["SamplingFrequency"] == 29.97
    assert facts["valence"]["Description"].startswith("how pleasant")
    assert len(samples) == FRAMES
    assert samples.iloc[second.frames.number].to_numpy().tolist() == measures(table, second.rows).tolist()
    assert samples.drop(index=second.frames.number).isna().all(axis=None)
    events = pd.read_csv(events_file, sep="\t")
    assert list(events) == ["onset", "duration", "trial_type", "person"]
    assert events[(events.person == "person 1") & (events.trial_type == "no face")].onset.tolist() == [0, 2.669333]
    assert notes == ["sampled at 29.97 Hz, where every frame is one sample", "a recording for each of 2 people"]


def test_bids_says_what_a_fixed_rate_costs_a_video_without_one(tmp_path: Path) -> None:
    rows = people(40, {0: range(40)})
    rows = replace(rows, timestamp_s=np.where(rows.frame < 20, rows.frame / 30, 20 / 30 + (rows.frame - 20) / 10))
    _, notes = converted(written(tmp_path / "a.csv", rows), "bids")
    assert "frames fell between samples" in notes[0]
    assert "samples repeat a frame" in notes[0]


def test_bids_validator_accepts_the_data_set(result: Path) -> None:
    validator = shutil.which("bids-validator")
    if validator is None:
        pytest.skip("no bids-validator: npm install --global bids-validator@1")
    converted(result, "bids")
    run = subprocess.run([validator, "--json", result.parent / "bids"], capture_output=True, text=True, check=False)
    assert json.loads(run.stdout)["issues"]["errors"] == []


def test_boris(result: Path) -> None:
    file, notes = converted(result, "boris")
    table = read(result)
    second = people_of(table, frames_of(table))[1]
    text = file.with_name("talk.affect.boris-person1.csv").read_text()
    # As BORIS does: it guesses the separator and whether there is a header, then wants numbers only.
    dialect, header = csv.Sniffer().sniff(text[:4096]), csv.Sniffer().has_header(text[:4096])
    numbers = np.loadtxt(io.StringIO(text), delimiter=dialect.delimiter, skiprows=int(header), usecols=(0, 1, 2))
    assert header
    assert numbers[:, 0].tolist() == table["timestamp_s"][second.rows].tolist()
    assert numbers[:, 1:].tolist() == measures(table, second.rows)[:, :2].tolist()
    assert "a file for each of 2 people" in notes[1]


def test_webvtt_in_a_browser(result: Path) -> None:
    browser = shutil.which("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    if browser is None:
        pytest.skip("no chromium")
    file, _ = converted(result, "webvtt")
    tracks = f"<track kind=metadata src={file.name}><track kind=captions src=talk.affect.captions.vtt>"
    files = {"": f"<video>{tracks}</video>", **{one.name: one.read_text() for one in result.parent.glob("*.vtt")}}
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        kinds = {".vtt": "text/vtt", "": "text/html"}

        def fulfil(route: object) -> None:
            name = route.request.url.rpartition("/")[2]  # type: ignore[attr-defined]
            route.fulfill(body=files.get(name, ""), content_type=kinds[os.path.splitext(name)[1]])  # type: ignore[attr-defined]

        page.route("http://results.test/**", fulfil)
        page.goto("http://results.test/")
        loading = """() => Promise.all([...document.querySelectorAll("track")].map(track => new Promise((good, bad) => {
            track.onload = () => good([...track.track.cues].map(cue => [cue.startTime, cue.endTime, cue.text]));
            track.onerror = () => bad(new Error(track.src));
            track.track.mode = "hidden"; })))"""
        metadata, captions = page.evaluate(loading)
        chromium.close()
    table = read(result)
    frames = frames_of(table)
    assert [cue[:2] for cue in metadata] == np.round(np.stack([frames.from_s, frames.to_s], axis=1), 3).tolist()
    rows = [person for *_, text in metadata for person in json.loads(text)["people"]]
    seen = np.flatnonzero(table["track_id"] >= 0)
    assert [[row[name] for name in table.measures] for row in rows] == measures(table, seen).tolist()
    assert [json.loads(text)["timestamp_s"] for *_, text in metadata] == frames.from_s.tolist()
    assert captions[0][2].startswith("person 0: ")
    assert captions[-1][1] == round(frames.to_s[-1], 3)


def test_what_people_edited_is_what_is_converted(result: Path, tmp_path: Path) -> None:
    edits = {"people": {"0": {"name": "Anna <A>"}, "1": {"excluded": True}}}
    Path(f"{result}.edits.json").write_text(json.dumps(edits))
    tiers = set(Eaf(converted(result, "elan")[0]).get_tier_names())
    assert {tier.partition(":")[0] for tier in tiers} == {"Anna <A>"}
    (back,) = plan([result], "csv", tmp_path / "back").values()
    convert(result, back, "csv")
    assert set(read(back)["track_id"].tolist()) == {0, -1}
    assert set(read(result, edited=False)["track_id"].tolist()) == {0, 1, -1}


@pytest.mark.parametrize("to", EXCHANGES)
def test_a_result_without_any_face_and_one_of_a_still(to: str, tmp_path: Path) -> None:
    for name, rows in (("none.csv", people(5, {})), ("still.csv", people(1, {0: range(1)}))):
        file, _ = converted(written(tmp_path / name, rows), to)
        assert file.is_file()


def test_the_command_reports_and_refuses(result: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("frame,timestamp_s,valence\n1,nothing,0\n")
    run = CliRunner().invoke(app, ["convert", str(tmp_path), "--to", "elan", "--out", str(tmp_path / "eaf")])
    assert run.exit_code == 1
    assert "talk.affect.eaf\n  note: ELAN counts time" in run.output
    assert "bad.csv cannot be read as rows of affserve" in run.output
    with pytest.raises(UsageError, match="openface, elan, bids"):
        plan([result], "spss", None)
    with pytest.raises(UsageError, match="would be made of"):
        plan([result, tmp_path / "other" / "talk.affect.csv"], "elan", tmp_path)
    with pytest.raises(UsageError, match="csv already"):
        plan([result], "csv", None)
