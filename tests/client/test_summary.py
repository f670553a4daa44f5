"""A summary weighs by time, leaves out what it should, and compares people as SciPy does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from result_rows import people, written
from scipy import stats
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.results.rows import Rows
from affserve.client.summary import summarise as summarising
from affserve.client.summary.statistics import Choice, Row, columns_of_rows, summarise_file
from affserve.client.summary.summarise import Report, summarise
from affserve.client.summary.windows import Member, Window, parse_baseline, read_events, read_groups
from affserve.train.errors import DataError, UsageError

UNIT_S = 0.1


def test_time_weighs_and_not_the_number_of_frames(tmp_path: Path) -> None:
    """A video of long and short frames has the numbers of one in which each long frame is three short ones."""
    rows = people(60, {0: range(5, 50)})
    units = np.where(np.arange(60) % 7 < 3, 3, 1)
    starts = np.cumsum(units) - units
    held = np.repeat(np.arange(60), units)
    uneven = written(tmp_path / "uneven.csv", replace(rows, timestamp_s=starts * UNIT_S))
    even = written(tmp_path / "even.csv", taken(rows, held, np.arange(len(held)) * UNIT_S))
    (one,), (other,) = (summarise_file(path, Choice()) for path in (uneven, even))
    different = {"file", "frames", "frames_with_face", "frames_used", "to_s", "seen_percent"}  # the last frame's length
    for name in set(one) - different:
        assert one[name] == pytest.approx(other[name]), name
    assert one["time_used_s"] == pytest.approx(units[5:50].sum() * UNIT_S)
    assert sum(one[f"{name}_percent"] for name in ("Neutral", "Anger", "Disgust", "Fear")) < 100.0


def taken(rows: Rows, places: np.ndarray, timestamp_s: np.ndarray) -> Rows:
    picked = {name: values[places] for name, values in vars(rows).items() if name != "predictions"}
    predictions = {task: values[places] for task, values in rows.predictions.items()}
    return Rows(**{**picked, "frame": np.arange(len(places)), "timestamp_s": timestamp_s}, predictions=predictions)


@pytest.fixture
def smile(tmp_path: Path) -> Path:
    """12 s at 10 frames per second: AU12 active from 2 to 5 s and from 6 to 7 s, valence .5 then, else 0."""
    rows = people(120, {0: range(120)}, fps=10)
    active = ((rows.frame >= 20) & (rows.frame < 50)) | ((rows.frame >= 60) & (rows.frame < 70))
    rows.predictions["action_units"][:, 6] = np.where(active, 0.5, 0.49)
    rows.predictions["valence_arousal"][:, 0] = np.where(active, 0.5, 0.0)
    return written(tmp_path / "smile.affect.csv", rows, source="smile.mp4")


def numbers(row: Row) -> list[float]:
    names = ("AU12_percent", "AU12_episodes", "AU12_episode_mean_s", "AU12_episode_longest_s", "valence_mean")
    return [pytest.approx(row[name]) for name in names]


def test_shares_episodes_events_and_baseline(smile: Path) -> None:
    (row,) = summarise_file(smile, Choice())
    assert numbers(row) == [100 * 4 / 12, 2, 2.0, 3.0, 0.5 * 4 / 12]
    events = [Window(name="calm", from_s=0, to_s=4), Window(name="late", from_s=4, to_s=8, file="smile.mp4")]
    calm, late = summarise_file(smile, Choice(events=events))
    assert numbers(calm) == [50, 1, 2.0, 2.0, 0.25]
    assert numbers(late) == [50, 2, 1.0, 1.0, 0.25]
    (late,) = summarise_file(smile, Choice(events=events, baseline=events[:1]))
    assert (late["event"], late["AU12_percent_change"]) == ("late", pytest.approx(0))
    parts = [{"name": "laugh", "from_s": 2, "to_s": 5}]
    Path(f"{smile}.edits.json").write_text(json.dumps({"parts": parts}))
    (laugh,) = summarise_file(smile, Choice(parts=True))
    assert [laugh["event"], laugh["AU12_percent"], laugh["AU12_episodes"]] == ["laugh", 100, 1]
    (rest,) = summarise_file(smile, Choice(baseline=parse_baseline("0:2", ())))
    assert rest["frames"] == 100
    assert rest["AU12_percent_change"] == pytest.approx(40)
    meanings = {column.name: column for column in columns_of_rows([rest])}
    assert meanings["AU12_percent_change"].description.endswith("from 0.5 on, less the same in the baseline")
    assert (meanings["AU12_episodes"].unit, meanings["AU12_episode_mean_s"].unit) == ("", "s")


def test_out_of_sight_ends_an_episode(tmp_path: Path) -> None:
    rows = people(30, {0: [*range(5, 10), *range(20, 28)], 1: range(30)}, fps=10)  # type: ignore[dict-item]
    rows.predictions["action_units"][:] = 1
    (row, _) = summarise_file(written(tmp_path / "a.csv", rows), Choice())
    assert (row["AU4_episodes"], row["AU4_percent"]) == (2, 100)
    assert row["AU4_episode_longest_s"] == pytest.approx(0.8)


def test_frames_that_are_not_reliable_are_left_out_and_end_episodes(smile: Path) -> None:
    frame = pd.read_csv(smile)
    frame["reliable"] = (~frame["frame"].between(30, 39)).astype(int)
    frame.to_csv(smile, index=False)
    (row,) = summarise_file(smile, Choice())
    assert (row["frames_with_face"], row["frames_used"]) == (120, 110)
    assert numbers(row) == [100 * 3 / 11, 3, 1.0, 1.0, 0.5 * 3 / 11]
    assert summarise_file(smile, Choice(unreliable=True))[0]["AU12_episodes"] == 2
    assert "10 of 120 frames with a face are not reliable: left out" in summarise([smile], Choice()).notes


def study(folder: Path, paired: bool) -> tuple[list[Path], list[Member], dict[str, list[float]]]:
    """Eight results with their groups, and the mean valence of each condition's people."""
    rng = np.random.default_rng(3)
    results, members, means = [], [], {"a": [], "b": []}  # type: ignore[var-annotated]
    for k in range(8):
        condition, who = "ab"[k % 2], k // 2 if paired else k
        rows = people(20, {0: range(20), 1: range(5)})
        mean = np.round(rng.normal(0.3 * (k % 2), 0.2), 4)
        rows.predictions["valence_arousal"][rows.track_id == 0, 0] = mean
        results.append(written(folder / f"v{k}.affect.csv", rows, source=f"v{k}.mp4"))
        members.append(Member(file=f"v{k}", person=f"p{who}", condition=condition))
        means[condition].append(float(mean))
    return results, members, means


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "unpaired"])
def test_conditions_are_compared_as_scipy_does(tmp_path: Path, paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    results, members, means = study(tmp_path, paired)
    if paired:
        monkeypatch.setattr(summarising, "FEW", 4)  # in two processes
    report = summarise(results, Choice(), members)
    (found,) = (one for one in report.comparisons if one.measure == "valence_mean")
    a, b = np.array(means["a"]), np.array(means["b"])
    reference = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert (found.test, found.people) == (("paired t", 4) if paired else ("Welch's t", 8))
    assert (found.p, found.low, found.high) == pytest.approx((reference.pvalue, interval.low, interval.high), abs=1e-4)
    assert found.difference == pytest.approx((b - a).mean(), abs=1e-6)
    pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    effect = (b - a).mean() / ((b - a).std(ddof=1) if paired else pooled / (1 - 3 / (4 * 6 - 1)))
    assert found.effect == pytest.approx(effect, abs=1e-4)
    assert found.p_fdr is not None
    assert found.p is not None
    assert found.p_fdr >= found.p
    mean = next(one for one in report.means if (one.measure, one.condition) == ("valence_mean", "a"))
    low, high = stats.t.interval(0.95, 3, a.mean(), stats.sem(a))
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=1e-6)


def test_who_is_in_one_condition_only_is_said(tmp_path: Path) -> None:
    results, members, _ = study(tmp_path, paired=True)
    report = summarise(results[:-1], Choice(), members[:-1])
    assert {(one.test, one.people, one.left_out) for one in report.comparisons if one.measure == "valence_mean"} == {
        ("paired t", 3, 1)
    }
    assert "up to 1 people are in one condition only" in report.notes[-1]
    with pytest.raises(DataError, match="'v7', and no result"):
        summarise(results[:-1], Choice(), members)


def test_the_command_writes_tables_a_figure_and_says_what_failed(tmp_path: Path) -> None:
    results, members, _ = study(tmp_path, paired=True)
    Path(f"{results[0]}.edits.json").write_text(json.dumps({"people": {"0": {"name": "Anna"}}}))
    (tmp_path / "bad.csv").write_text("frame,timestamp_s,track_id\n1,no,0\n")
    groups, events, out = tmp_path / "groups.tsv", tmp_path / "events.tsv", tmp_path / "new" / "study"
    with open(groups, "w") as file:
        csv.writer(file).writerows(
            [["file", "person", "condition"], *([one.file, one.person, one.condition] for one in members)]
        )
    events.write_text("name,from,to\nfirst,0,0.3\nsecond,0:0.3,0:1\n")
    options = ["--groups", str(groups), "--events", str(events), "--baseline", "first", "--out", str(out)]
    run = CliRunner().invoke(app, ["summary", str(tmp_path), *options])
    assert run.exit_code == 1
    assert "bad.csv cannot be read as rows of affserve" in run.output
    assert "Anna" in run.output
    document = json.loads(out.with_suffix(".json").read_text())
    assert {row["event"] for row in document["rows"]} == {"second"}
    assert set(document["columns"]) == set(document["rows"][0])
    table = pd.read_csv(out.with_suffix(".csv"))
    assert list(table) == list(document["columns"])
    changes = [change for row in document["rows"] if (change := row["valence_mean_change"]) is not None]
    assert table["valence_mean_change"].dropna().tolist() == changes
    assert len(pd.read_csv(f"{out}-groups.csv")) == len(document["tests"]["comparisons"]) == 22
    described = json.loads(Path(f"{out}.csv-metadata.json").read_text())["tableSchema"]["columns"]
    assert [one["name"] for one in described] == list(table)
    image = cv2.imread(str(out.with_suffix(".png")))
    assert image.shape[1] == 1560
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,start,to\na,0,1\n", "from is missing"),
        ("name,from,to\na,2,1\n", r"line 2: 'a' is from 2 to 1 s"),
        ("name,from,to\na,soon,1\n", "from is 'soon'"),
        ("name,from,to\n", "no lines below"),
    ],
)
def test_events_that_cannot_be_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "events.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_events(tmp_path / "events.csv")


def test_options_that_cannot_be_are_named(tmp_path: Path) -> None:
    for text in ("10", "5:2", "calm"):
        with pytest.raises(UsageError, match="--baseline is"):
            parse_baseline(text, [])
    (tmp_path / "groups.csv").write_text("file,person,condition\na,p,one\nb,p,one\n")
    with pytest.raises(DataError, match="fewer than two conditions"):
        read_groups(tmp_path / "groups.csv")
    assert Report(rows=[]).comparisons == ()
