"""What a head declares to be made of its answers is made of them, in a file as in evaluation, live, and not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import moving_square, write_crops, write_video
from conftest import blurred_noise
from numpy.typing import NDArray
from test_row_merger import DESCRIPTION, WIDTH, feature, pushed, seen
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.read_ahead import Skipping
from affserve.client.live.window import WindowAnswers
from affserve.client.results.formats import FORMATS
from affserve.client.results.people import states_of
from affserve.client.results.reading import read
from affserve.client.results.rows import INTERPOLATED
from affserve.client.sequences.declared import as_done, processed_sequence
from affserve.client.sequences.row_merger import RowMerger
from affserve.client.sequences.seen_frame import SeenFrame
from affserve.client.video.source import open_source
from affserve.export.artefacts.material import parity_only
from affserve.export.contract import FEATURE_WIDTH, HeadDescription
from affserve.export.repository.exporting import CPU_FP32, export_repository
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import CheckpointError, RepositoryError
from affserve.train.evaluation.prediction import predict_video
from affserve.train.evaluation.trained_model import load_served_heads
from affserve.train.models.checkpoint import CONFIG_FILE, load_encoder, load_head, save_processing
from affserve.train.processing.processor import Processor, processed
from affserve.train.processing.record import PROCESSED, parse_processing
from affserve.train.windows import FrameAnswers, Outputs

DOCUMENT: dict[str, Any] = {
    "valence_arousal": {"filter": "median", "frames": 5},
    "expression": {"frames": 9, "biases": {"Fear": 0.5}},
    "action_units": {"on": 0.52, "off": 0.5, "shortest_frames": 3},
}
FRAMES = 70


@pytest.fixture(scope="module")
def declaring(
    checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[AffectClient, Path]]:
    """A client of a head that declares, and the head's checkpoint."""
    folder = tmp_path_factory.mktemp("declaring")
    encoder, head = checkpoints[0], folder / "head"
    shutil.copytree(checkpoints[1], head)
    save_processing(head, parse_processing(DOCUMENT, load_served_labels(head), "test"))
    repository = folder / "repository"
    export_repository(encoder, [head], repository, material=parity_only(blurred_noise(8)), options=CPU_FP32)
    told = CliRunner().invoke(app, ["export", "--inspect", str(repository)]).output
    assert "made of it   expressions: most frequent of 9 frames, Fear +0.50" in told
    with TritonServer(ServerConfig(repository=repository)) as server, AffectClient(server.grpc_url) as client:
        yield client, head


def load_served_labels(head: Path) -> dict[str, tuple[str, ...]]:
    return {key: tuple(names) for key, names in DESCRIPTION.labels.items() if key in load_head(head)[0].config.tasks}


def written(client: AffectClient, crops: Path, out: Path, **choices: Any) -> Path:
    source = open_source(crops)
    row_format = next(one for one in FORMATS.values() if out.suffix in one.suffixes)
    outputs = OutputPaths(rows=out, row_format=row_format)
    cropper = Croppers(crops=True).cropper(source.already_cropped)
    analyze_to_files(Job(source=source, cropper=cropper, outputs=outputs, **choices), client)
    return out


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_rows_hold_what_evaluation_scores(
    declaring: tuple[AffectClient, Path], checkpoints: tuple[Path, Path], tmp_path: Path, suffix: str
) -> None:
    client, head = declaring
    crops = write_crops(tmp_path / "crops", list(range(1, FRAMES + 1)))
    table = read(written(client, crops, tmp_path / f"rows{suffix}"))

    features = client.encode(np.stack([to_encoder_input(read_crop(path)) for path in sorted(crops.iterdir())]))
    (served,) = load_served_heads([head], load_encoder(checkpoints[0])[1].fingerprint)
    plain = predict_video(served.model, features, served.segmenting)
    scored = processed(plain, served.processing, served.labels)

    names = served.labels
    assert [names["expression"].index(name) for name in table["expression"]] == scored["expression"].argmax(1).tolist()
    units = np.stack([table[f"{name}_on"] for name in names["action_units"]], axis=1)
    np.testing.assert_array_equal(units, scored["action_units"])
    smooth = np.stack([table[f"{name}_smooth"] for name in names["valence_arousal"]], axis=1)
    np.testing.assert_allclose(smooth, scored["valence_arousal"], atol=2e-4)
    raw = np.stack([table[name] for name in names["valence_arousal"]], axis=1)
    np.testing.assert_allclose(raw, plain["valence_arousal"], atol=2e-4)
    assert states_of(table)["AU1"].tolist() == (units[:, 0] == 1).tolist()
    assert len(set(table["expression"])) < len(set(plain["expression"].argmax(1).tolist())) + 1
    assert table.columns["AU1_on"].storage == "int64"
    assert "after the declared post-processing" in table.columns["expression"].description


def test_raw_rows_are_those_of_a_head_that_declares_nothing(
    declaring: tuple[AffectClient, Path], client: AffectClient, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(FRAMES))
    raw = written(declaring[0], video, tmp_path / "raw.csv", raw=True).read_bytes()
    assert raw == written(client, video, tmp_path / "plain.csv").read_bytes()
    assert raw != written(declaring[0], video, tmp_path / "made.csv").read_bytes()
    annotate = ["annotate", str(video), "--crops", "--url", declaring[0].url, "--out", str(tmp_path / "out"), "--raw"]
    told = CliRunner().invoke(app, annotate)
    assert told.exit_code == 0, told.output
    assert raw == (tmp_path / "out" / "clip.mp4.affect.csv").read_bytes()


def test_frames_in_between_are_marked_and_lie_between(client: AffectClient, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", list(range(1, FRAMES + 1)))
    table = read(written(client, crops, tmp_path / "third.csv", every=3))
    assert table["interpolated"].tolist() == [float(k % 3 != 0) for k in range(FRAMES)]
    features = client.encode(np.stack([to_encoder_input(read_crop(path)) for path in sorted(crops.iterdir())]))
    for k in range(FRAMES):
        left = k // 3 * 3
        right = left + 3 if left + 3 < FRAMES else left  # the last frames hold the last feature
        features[k] = features[left] + np.float32((k - left) / 3) * (features[right] - features[left])
    answers = client.sequence()
    parts = [*answers.push(features), *answers.finish()]
    np.testing.assert_allclose(table["valence"], np.concatenate([p["valence_arousal"] for p in parts])[:, 0], atol=2e-4)


class Framewise(FrameAnswers):
    """A head that answers each frame by its feature alone."""

    def push(self, features: NDArray[np.float32]) -> Iterator[Outputs]:
        yield {task: np.repeat(features[:, :1], len(names), axis=1) for task, names in DESCRIPTION.labels.items()}

    def finish(self) -> Iterator[Outputs]:
        return iter(())


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_skipped_faces_lie_between_and_absences_hold(chunk: int) -> None:
    """Of two people every third frame; the second is out of sight for a while, and encoded at once on coming back."""
    people = [[0, 1] if k not in range(8, 14) else [0] for k in range(20)]
    skipping = Skipping(3)
    frames = [SeenFrame(**{**vars(seen(k, who)), "skipped": skipping.of(who)}) for k, who in enumerate(people)]
    labels = as_done(DESCRIPTION, raw=False, every=3).labels
    merger = RowMerger(Framewise, labels, None)
    blocks = []
    for start in range(0, len(frames), chunk):
        some = frames[start : start + chunk]
        sent = [feature(t, f.index) for f in some for t, _ in f.faces if t not in f.skipped]
        blocks += list(merger.push(some, np.array(sent, dtype=np.float32).reshape(-1, WIDTH)))
    blocks += merger.finish()

    told = {
        (int(f), int(t)): (float(rows.predictions["valence_arousal"][k, 0]), bool(rows.predictions[INTERPOLATED][k, 0]))
        for rows in blocks
        for k, (f, t) in enumerate(zip(rows.frame, rows.track_id, strict=True))
    }
    encoded = {0: {0, 3, 6, 9, 12, 15, 18}, 1: {0, 3, 6, 14, 17}}
    held = {(19, 0): 18, (7, 1): 6, (18, 1): 17, (19, 1): 17}  # nothing comes after them, or not without a gap
    assert sorted(told) == [(k, track) for k, who in enumerate(people) for track in who]
    for (frame, track), (value, interpolated) in told.items():
        assert interpolated == (frame not in encoded[track])
        assert value == pytest.approx(feature(track, held.get((frame, track), frame))[0], abs=1e-6)


def causal_rows(head: HeadDescription, frames: int, hop: int) -> list[Any]:
    rng = np.random.default_rng(0)
    answers = {task: rng.dirichlet(np.ones(len(names)), 500) for task, names in DESCRIPTION.labels.items()}

    def predict(features: NDArray[np.float32]) -> Outputs:
        return {task: v[features[:, 0].astype(int)].astype(np.float32) for task, v in answers.items()}

    window = WindowAnswers(predict, head, hop=hop, room=30)
    blocks = []
    for k in range(frames):
        blocks += list(window.push([seen(k, [0])], np.full((1, FEATURE_WIDTH), k, dtype=np.float32)))
    return [*blocks, *window.finish()]


@pytest.mark.parametrize("hop", [1, 7])
def test_live_windows_go_on_where_they_stopped(hop: int) -> None:
    labels = DESCRIPTION.labels
    record = parse_processing(DOCUMENT, labels, "test")
    head = as_done(HeadDescription(labels=labels, processing=record), raw=False)
    blocks = causal_rows(head, 50, hop)
    joined = {key: np.concatenate([rows.predictions[key] for rows in blocks]) for key in head.labels}
    made = Processor(record, labels, causal=True).push({task: joined[task] for task in labels})
    for task in labels:
        np.testing.assert_array_equal(joined[task + PROCESSED], made[task + PROCESSED])


def test_causal_rows_do_not_wait() -> None:
    record = parse_processing(DOCUMENT, DESCRIPTION.labels, "test")
    head = as_done(HeadDescription(labels=DESCRIPTION.labels, processing=record), raw=False)
    merger = RowMerger(lambda: processed_sequence(Framewise(), head, causal=True), head.labels, None)
    assert [len(rows) for rows in pushed(merger, [seen(0, [0]), seen(1, [0])])] == [2]


def test_a_record_that_does_not_fit_is_refused_where_it_is_read(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"declares post-processing that this client cannot do.*filter is 'mean'"):
        HeadDescription.from_parameters(
            {**DESCRIPTION.to_parameters(), "processing.valence_arousal": '{"filter": "mean"}'}, "temporal_head on x"
        )
    head = tmp_path / "head"
    shutil.copytree(checkpoints[1], head)
    config = head / CONFIG_FILE
    config.write_text(config.read_text().replace('"labels"', '"processing": {"pain": {}},\n "labels"', 1))
    with pytest.raises(CheckpointError, match="post-processing of 'pain'; the head answers"):
        load_head(head)
