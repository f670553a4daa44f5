"""`affserve demo`, at a size of seconds: the real way from a corpus to served predictions, and what is reused."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from affserve.client.cli import app
from affserve.client.commands.demo import SUMMARY_FILE, DemoConfig, run_demo
from affserve.client.commands.demo_report import Judged, compare, next_steps, smooth, table
from affserve.client.results.rows import Rows
from affserve.client.results.text import RowFormatter
from affserve.export.contract import default_head_description
from affserve.train.errors import AffserveError, DataError
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL
from affserve.train.models.encoder import DEMO_ARCHITECTURE
from affserve.train.models.temporal_head import demo_head_config
from affserve.train.stages.finetune import FinetuneConfig
from affserve.train.stages.fit import FitConfig
from affserve.train.synthetic.plan import SyntheticConfig


def tiny(epochs: int) -> DemoConfig:
    fit = FitConfig(head=demo_head_config(layers=1), epochs=epochs, batch=4, lr=1e-3)
    return DemoConfig(
        corpus=SyntheticConfig(
            videos=4, validation_share=0.5, frames_min=40, frames_max=50, whole_frame_videos=2, whole_frame_frames=40
        ),
        encoder=FinetuneConfig(
            architecture=DEMO_ARCHITECTURE, pretrained=None, tasks=tuple(TASKS), epochs=1, batch=32, lr=1e-3
        ),
        temporal=fit,
        single_frame=FitConfig(head=demo_head_config(use_tcn=False, use_encoder=False), epochs=1, batch=4, lr=1e-3),
    )


def test_the_whole_way_and_what_a_second_run_reuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: the face model is not fetched
    folder = tmp_path / "demo"
    first_log: list[str] = []
    first = run_demo(folder, tiny(epochs=1), log=first_log.append)

    summary = json.loads((folder / SUMMARY_FILE).read_text())
    assert summary["served"] == pytest.approx(first.served.summary())
    assert set(summary["served"]) >= set(TASKS)
    assert summary["frames"] == 80
    assert summary["frames_with_face"] > 70
    assert summary["served_crops_per_s"] > 0
    assert not any("reusing" in line for line in first_log)
    for path in first.csv:
        with path.open() as file:
            assert len(list(csv.DictReader(file))) == 40
    assert first.plots[0].read_bytes().startswith(b"\x89PNG")
    assert "expressions, macro F1" in table(first)

    for line in next_steps(first, "affserve"):
        arguments = shlex.split(line)[1:]
        command: Any = typer.main.get_command(app)
        command.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        assert all(Path(word).exists() for word in arguments if word.startswith("/") and not word.endswith("look"))

    second_log: list[str] = []
    second = run_demo(folder, tiny(epochs=1), log=second_log.append)
    assert sum("reusing" in line for line in second_log) == 6
    assert second.served == first.served

    third_log: list[str] = []

    def stopped_before_the_export(line: str) -> None:
        third_log.append(line)
        if line == "repository: ...":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(folder, tiny(epochs=2), log=stopped_before_the_export)
    reused = {line.partition(":")[0] for line in third_log if "reusing" in line}
    assert reused == {"corpus", "encoder", "features", "head-single-frame"}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AffserveError, match="did not make"):
        run_demo(tmp_path, tiny(epochs=1), fresh=True, log=lambda _: None)
    assert (tmp_path / "thesis.txt").exists()


def judged(folder: Path, rows: int, faces: list[bool]) -> Judged:
    """A video whose truth the served model tells exactly where it sees a face, and the single-frame model reversed."""
    rng = np.random.default_rng(0)
    truth = {
        VALENCE_AROUSAL.key: rng.uniform(-1, 1, (rows, 2)).round(3),
        EXPRESSION.key: rng.integers(0, 8, (rows, 1)),
        ACTION_UNITS.key: rng.integers(0, 2, (rows, 12)),
    }
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*VALENCE_AROUSAL.names, "expression", *ACTION_UNITS.names])
        writer.writerows(np.concatenate(list(truth.values()), axis=1).tolist())
    face = np.array(faces)
    formatter = RowFormatter(default_head_description().labels)
    served = {
        VALENCE_AROUSAL.key: truth[VALENCE_AROUSAL.key].astype(np.float32),
        EXPRESSION.key: np.eye(8, dtype=np.float32)[truth[EXPRESSION.key][:, 0]],
        ACTION_UNITS.key: truth[ACTION_UNITS.key].astype(np.float32),
    }
    block = Rows(
        frame=np.arange(len(face)),
        timestamp_s=np.arange(len(face)) / 30,
        track_id=np.where(face, 0, -1),
        face_score=np.where(face, 1.0, np.nan),
        box_px=np.zeros((len(face), 4)),
        quality=np.ones((len(face), 4)),
        predictions={key: values[: len(face)] for key, values in served.items()},
    )
    (folder / "rows.csv").write_text(formatter.header + formatter.text(block))
    single = {key: values[: len(face)][face][::-1] for key, values in served.items()}
    return Judged(csv=folder / "rows.csv", truth=folder / "truth.csv", single_frame=single)


def test_rows_are_judged_against_their_own_frames(tmp_path: Path) -> None:
    video = judged(tmp_path, 60, [False] * 5 + [True] * 50 + [False] * 5)
    comparison = compare([video], {"served_crops_per_s": 1.0, "end_to_end_frames_per_s": 1.0}, tmp_path)
    assert comparison.frames_with_face == 50
    assert comparison.served.by_task[VALENCE_AROUSAL.key] == pytest.approx(1)
    assert comparison.served.by_task[EXPRESSION.key] == pytest.approx(1)
    assert comparison.single_frame.by_task[VALENCE_AROUSAL.key] < 0.5
    assert comparison.constant.by_task[VALENCE_AROUSAL.key] == pytest.approx(0, abs=1e-6)


def test_an_interval_is_over_people_and_smoothing_over_time(tmp_path: Path) -> None:
    folders = [tmp_path / str(k) for k in range(3)]
    for folder in folders:
        folder.mkdir()
    alike = [judged(folder, 60, [True] * 60) for folder in folders]
    comparison = compare(alike, {"served_crops_per_s": 1.0, "end_to_end_frames_per_s": 1.0}, tmp_path)
    low, high = comparison.gain[VALENCE_AROUSAL.key]
    difference = 1 - comparison.single_frame.by_task[VALENCE_AROUSAL.key]
    assert low == pytest.approx(difference, abs=1e-6)  # whoever is drawn, it is the same film
    assert high == pytest.approx(difference, abs=1e-6)
    assert comparison.people == 3
    step = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    np.testing.assert_allclose(smooth(step).sum(axis=1), 1, atol=1e-6)
    assert smooth(step)[19:21, 0] == pytest.approx([0.6, 0.4], abs=0.03)
    assert smooth(step)[[5, 30], 0] == pytest.approx([1, 0], abs=1e-6)


def test_lost_rows_are_an_error_not_a_better_score(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 59 rows, expected 60"):
        compare([judged(tmp_path, 60, [True] * 59)], {}, tmp_path)
