"""From a corpus on disk to checkpoints: what is read, what is left out, what is learned, what is remembered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from corpora import write_annotation, write_crops
from feature_corpora import Rows, temporal_corpus, three_task_corpus
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, open_corpus
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import CheckpointError, DataError
from affserve.train.evaluation.prediction import Segmenting, judge, predict_segments, predict_video
from affserve.train.features.store import FeatureStore
from affserve.train.features.videos import LabelledVideo
from affserve.train.labels import EXPRESSION, TASKS, Task
from affserve.train.models.checkpoint import load_encoder, load_head
from affserve.train.models.encoder import DEMO_ARCHITECTURE, create_encoder
from affserve.train.models.temporal_head import TemporalHead, TemporalHeadConfig, demo_head_config
from affserve.train.stages.finetune import FinetuneConfig, finetune
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.stages.frames import TURN_DEGREES, Augmentation, FrameDataset, labelled_frames, resampled
from affserve.train.synthetic.corpus import write_corpus
from affserve.train.synthetic.plan import SyntheticConfig
from affserve.train.trainer.log import read_log
from affserve.train.trainer.losses import BalanceConfig, class_weights, drawn_order, loss_weights

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=8, validation_share=0.5, frames_min=40, frames_max=60, whole_frame_videos=0)
    write_corpus(root, config, workers=1)
    return root


def quiet(_: str) -> None:
    """Take the training's log."""


def test_crops_past_the_annotation_and_invalid_codes_are_not_labelled(tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "a", EXPRESSION.header + "\n3\n-1\n5\n")
    write_crops(tmp_path / "cropped_aligned" / "a", [1, 2, 3, 4])
    frames = labelled_frames(open_corpus(tmp_path), [EXPRESSION], TRAIN)
    assert [path.name for path in frames.paths] == ["00001.jpg", "00003.jpg"]
    assert frames.truth[EXPRESSION.key][:, 0].tolist() == [3, 5]


def test_the_same_seed_trains_the_same_encoder_and_it_is_rebuilt(corpus_root: Path, tmp_path: Path) -> None:
    corpus = open_corpus(corpus_root)
    config = FinetuneConfig(
        architecture=DEMO_ARCHITECTURE, pretrained=None, tasks=tuple(TASKS), epochs=1, batch=32, lr=1e-3, frame_step=2
    )
    scores = finetune(corpus, config, tmp_path / "a", quiet)
    finetune(corpus, config, tmp_path / "b", quiet)
    (encoder, first), (_, second) = load_encoder(tmp_path / "a"), load_encoder(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert first.provenance.trained_on == "synthetic"
    assert first.provenance.metrics == pytest.approx(scores.summary())
    document = json.loads((tmp_path / "a/config.json").read_text())
    assert document["provenance"]["data"]["fingerprint"] == corpus.fingerprint()
    frame = FrameDataset(labelled_frames(corpus, [EXPRESSION], VALIDATION), augment=False)[0]["frames"]
    with torch.inference_mode():
        assert encoder(torch.from_numpy(frame)[None]).shape == (1, 512)


def test_the_temporal_model_learns_what_a_single_frame_cannot_tell(tmp_path: Path) -> None:
    root, features = temporal_corpus(tmp_path / "corpus")
    corpus = open_corpus(root)
    scores = {}
    stream = {"norm": "pre", "context_frames": 12, "lookahead_frames": 4}
    forms: dict[str, dict[str, Any]] = {
        "temporal": {},
        "stream": stream,
        "single": {"use_tcn": False, "use_encoder": False},
    }
    for name, switches in forms.items():
        head = demo_head_config(feature_width=8, tasks=("valence_arousal",), **switches)
        config = FitConfig(head=head, epochs=6, batch=4, lr=2e-3, stride=20)
        scores[name] = fit(corpus, features, config, tmp_path / name, quiet).by_task["valence_arousal"]
    assert scores["temporal"] > 0.8
    assert min(scores["temporal"], scores["stream"]) > scores["single"] + 0.1
    late, _ = load_head(tmp_path / "stream")
    assert late.config.lookahead_frames == 4
    model, checkpoint = load_head(tmp_path / "temporal")
    assert checkpoint.provenance.encoder == features.name
    assert checkpoint.provenance.metrics["valence_arousal"] == pytest.approx(scores["temporal"])
    video = FeatureStore(features).crops("v11").read().astype(np.float32)
    outputs = predict_video(model, video, Segmenting())
    assert outputs["valence_arousal"].shape == (320, 2)


def test_the_papers_epochs_are_the_default_of_each_task() -> None:
    epochs = {key: FitConfig(head=TemporalHeadConfig(tasks=(key,))).passes for key in TASKS}
    assert epochs == {"valence_arousal": 40, "expression": 10, "action_units": 30}
    assert FitConfig().passes == 40
    assert FitConfig(epochs=3).description()["epochs"] == 3


def test_the_official_validator_merges_and_the_papers_counts_overlaps_twice_and_drops_tails() -> None:
    def video(name: str, frames: int) -> LabelledVideo:
        rows = np.random.default_rng(frames).normal(size=(frames, 8)).astype(np.float16)
        return LabelledVideo(
            name=name,
            frames=frames,
            crops=Rows(np.arange(1, frames + 1, dtype=np.int32), rows),
            truth={EXPRESSION.key: (np.arange(frames)[:, None] % 8).astype(np.float32)},
            valid={EXPRESSION.key: np.arange(frames) % 10 != 0},
        )

    torch.manual_seed(0)
    head = demo_head_config(feature_width=8, tasks=(EXPRESSION.key,), width=32, layers=1)
    model, segmenting = TemporalHead(head).eval(), Segmenting()
    videos = [video("long", 650), video("short", 120)]
    predicted = [predict_segments(model, video.features(), segmenting) for video in videos]
    found = judge(videos, predicted, segmenting, [EXPRESSION.key])
    assert found.scores["official"].frames[EXPRESSION.key] == (650 + 120) * 9 // 10
    assert found.scores["paper"].frames[EXPRESSION.key] == 2 * 300 * 9 // 10  # frames 0..299 and 200..499
    with torch.inference_mode():
        windows = [
            model.answers(torch.from_numpy(videos[0].features(slice(start, start + 300)))[None])[EXPRESSION.key][0]
            for start in (0, 200)
        ]
    torch.testing.assert_close(torch.from_numpy(found.arrays["paper"][0][EXPRESSION.key]), torch.cat(windows))
    merged = torch.from_numpy(found.arrays["official"][0][EXPRESSION.key]).float()
    torch.testing.assert_close(merged[200:300], (windows[0][200:] + windows[1][:100]) / 2)
    served = predict_video(model, videos[1].features(), segmenting)[EXPRESSION.key]
    np.testing.assert_allclose(merged[650:].numpy(), served, atol=1e-6)


def test_training_ends_when_patience_does(tmp_path: Path) -> None:
    root, features = three_task_corpus(tmp_path / "corpus")
    head = demo_head_config(feature_width=8, width=32, layers=1, tcn_channels=(16, 16, 16))
    config = FitConfig(head=head, epochs=6, batch=4, lr=2e-2, window=60, stride=60, amp="bf16")

    def selected(name: str, **changes: int) -> list[float]:
        fit(open_corpus(root), features, replace(config, **changes), tmp_path / name, quiet)
        lines = read_log(tmp_path / f"{name}.run/log.jsonl")
        return [line["selected"] for line in lines if line["kind"] == "epoch"]

    every = selected("patient")
    worse = next(epoch for epoch in range(1, 6) if every[epoch] <= max(every[:epoch]))
    assert len(every) == 6
    assert worse < 5
    assert selected("impatient", patience=1) == every[: worse + 1]


def test_full_windows_only_refuses_a_corpus_without_any(tmp_path: Path) -> None:
    root, features = three_task_corpus(tmp_path / "corpus", frames=130)
    config = FitConfig(head=demo_head_config(feature_width=8), epochs=1, full_only=True)
    with pytest.raises(DataError, match="no training video has 300 frames"):
        fit(open_corpus(root), features, config, tmp_path / "head", quiet)


def test_another_task_of_a_known_kind_needs_only_its_line_in_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("gaze_right", "gaze_down")
    gaze = Task(key="gaze", kind="regression", title="gaze", challenge="G", names=names, invalid=-5, paper_epochs=2)
    monkeypatch.setitem(TASKS, gaze.key, gaze)
    root, features = three_task_corpus(tmp_path / "corpus")
    corpus = open_corpus(root)
    fingerprint = corpus.fingerprint()
    head = demo_head_config(feature_width=8, tasks=tuple(TASKS), width=32, layers=1, tcn_channels=(16, 16, 16))
    config = FitConfig(head=head, epochs=2, batch=4, window=60, stride=60)
    # Annotations are read before the first epoch and never again.
    scores = fit(corpus, features, config, tmp_path / "head", lambda _: shutil.rmtree(root / "annotations", True))
    assert set(scores.summary()) == {*TASKS, "valence", "arousal", *names}
    assert "| gaze | mean CCC |" in (tmp_path / "head.run/report/report.md").read_text()
    assert load_head(tmp_path / "head")[1].provenance.data["fingerprint"] == fingerprint


def test_augmentation_depends_on_seed_epoch_and_index_alone(corpus_root: Path) -> None:
    frames = labelled_frames(open_corpus(corpus_root), [EXPRESSION], TRAIN)

    def images(seed: int, epoch: int, augment: bool = True) -> list[bytes]:
        dataset = FrameDataset(frames, augment, seed)
        dataset.epoch = epoch
        return [dataset[index]["frames"].tobytes() for index in (0, 5, 5)]

    first = images(0, 0)
    assert first[1] == first[2] != first[0]
    assert images(0, 0) == first
    for other in (images(1, 0), images(0, 1), images(0, 0, augment=False)):
        assert all(one != another for one, another in zip(first, other, strict=True))
    assert images(0, 0, augment=False)[0] == to_encoder_input(read_crop(frames.paths[0])).tobytes()


def test_an_augmented_face_is_the_same_face_a_little_moved_and_relit() -> None:
    crop = np.zeros((112, 112, 3), np.uint8)
    crop[40:72, 40:72] = 200
    seen = [Augmentation(seed=0)(crop, 0, index) for index in range(40)]
    assert all(image.shape == (224, 224, 3) and image.dtype == np.uint8 for image in seen)
    centres = np.array([np.argwhere(image.mean(axis=2) > 60).mean(axis=0) for image in seen])
    assert np.abs(centres - 111.5).max() < 12  # 4 % of 224 px, and what the grey level of an edge adds
    assert centres.std(axis=0).min() > 2
    colours = np.array([image[105:119, 105:119].mean(axis=(0, 1)) for image in seen])
    assert 100 < colours.min() < 160
    assert colours.max() > 240
    # A room's light has a colour: the channels do not move together.
    assert (colours[:, 0] - colours[:, 2]).std() > 10


def test_an_augmented_face_is_as_sharp_as_a_served_one() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    served = to_encoder_input(crop)

    assert np.abs(resampled(crop, np.eye(3)).astype(int) - served).max() <= 1
    turned = [resampled(crop, augmented_motion(seed)) for seed in range(20)]
    sharpness = [np.abs(np.diff(image.astype(float), axis=1)).mean() for image in turned]
    assert np.mean(sharpness) > 0.9 * np.abs(np.diff(served.astype(float), axis=1)).mean()


def augmented_motion(seed: int) -> NDArray[np.float64]:
    angle = np.deg2rad(np.random.default_rng(seed).uniform(-TURN_DEGREES, TURN_DEGREES))
    return np.array([[np.cos(angle), -np.sin(angle), 5], [np.sin(angle), np.cos(angle), -5], [0, 0, 1]])


@pytest.mark.parametrize("kind", ["inverse_frequency", "effective_number"])
def test_rare_classes_weigh_more_and_the_mean_weight_of_a_frame_is_one(kind: str) -> None:
    counts = np.array([1000, 10, 0, 100, 1, 1, 1, 1])
    weights = class_weights(counts, kind)
    assert weights[4] > weights[1] > weights[3] > weights[0] > 0
    assert weights[2] == 0
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)


def test_losses_are_weighed_where_that_was_asked_for_and_there_are_labels() -> None:
    truth = {"action_units": np.tile(np.array([[1], [0], [0], [1]], np.float32), 12)}
    valid = {"action_units": np.array([True, True, True, False])}
    weighed = loss_weights(BalanceConfig(unit_weights=True), truth, valid, "cpu")
    assert (
        weighed.by_task["action_units"].tolist() == [2.0] * 12
    )  # two passive frames to an active one; the last is not labelled
    assert not loss_weights(BalanceConfig(), truth, valid, "cpu").by_task
    both = BalanceConfig(unit_weights=True, class_weights="inverse_frequency")
    assert not loss_weights(both, {}, {}, "cpu").by_task


def test_balanced_sampling_draws_every_expression_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10]).astype(np.float32)[:, None]
    truth, valid = {EXPRESSION.key: labels}, {EXPRESSION.key: np.ones(1000, bool)}
    order = drawn_order(np.random.default_rng(0), np.ones(1000), truth, valid)
    assert len(order) == 1000
    assert np.bincount(labels[order, 0].astype(int)) == pytest.approx([333, 333, 333], abs=60)


def test_the_options_against_skew_train_an_encoder(corpus_root: Path, tmp_path: Path) -> None:
    weights = BalanceConfig(class_weights="effective_number", unit_weights=True)
    balance = replace(weights, label_smoothing=0.1, sampling="balanced")
    demo = FinetuneConfig(architecture=DEMO_ARCHITECTURE, pretrained=None, epochs=1, batch=32, frame_step=2)
    config = replace(demo, tasks=(EXPRESSION.key, "action_units"), micro_batch=8, balance=balance)
    scores = finetune(open_corpus(corpus_root), config, tmp_path / "encoder", quiet)
    assert set(scores.by_task) == {EXPRESSION.key, "action_units"}
    document = json.loads((tmp_path / "encoder/config.json").read_text())
    assert document["provenance"]["training"]["balance"]["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: FitConfig(amp="int8"), "amp is 'int8'; expected one of auto, none", id="amp"),
        pytest.param(lambda: FitConfig(validator="mine"), "expected official or paper", id="validator"),
        pytest.param(lambda: FinetuneConfig(micro_batch=0), "micro_batch is 0; expected at least 1", id="micro-batch"),
        pytest.param(lambda: BalanceConfig(class_weights="x"), "class_weights is 'x'", id="class-weights"),
        pytest.param(lambda: FitConfig(balance=BalanceConfig(sampling="balanced")), "expected uniform", id="sampling"),
    ],
)
def test_wrong_configurations_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_unknown_architectures_and_weights_are_named() -> None:
    with pytest.raises(CheckpointError, match="knows no model 'ViT-Z-99'"):
        create_encoder("ViT-Z-99")
    with pytest.raises(CheckpointError, match="no-such-tag"):
        create_encoder("ViT-B-32", pretrained="no-such-tag")


def test_pretrained_weights_are_read_from_a_local_file(tmp_path: Path) -> None:
    import open_clip

    model = open_clip.create_model(DEMO_ARCHITECTURE)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = create_encoder(DEMO_ARCHITECTURE, pretrained=str(tmp_path / "weights.pt"))
    for name, values in model.visual.state_dict().items():
        torch.testing.assert_close(encoder.visual.state_dict()[name], values)


def test_the_commands_of_the_readme_lead_from_a_corpus_to_a_repository(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from affserve.client.cli import app

    def run(line: str) -> str:
        result = CliRunner().invoke(app, [part.replace("@", f"{tmp_path}/") for part in line.split()])
        assert result.exit_code == 0, f"{result.output}{result.exception!r}"
        return result.stdout

    run("data synth @corpus --videos 4 --frames-max 50 --whole-frame-videos 0 --workers 1")
    demo = "--architecture affserve-demo --pretrained none --epochs 1 --batch 32 --frame-step 2"
    told = run(f"train encoder @corpus --out @encoder --task expression --task action_units {demo}")
    assert "on videos never trained on" in told
    assert "action_units" in told
    assert "features of 4 videos" in run("train features @corpus --encoder @encoder --out @features")
    head = "train head @corpus --encoder @encoder --features @features --size demo --epochs 1"
    run(f"{head} --out @va --task valence_arousal")
    run(f"{head} --out @other --task expression --task action_units --no-attention")
    run(f"{head} --out @stream --task expression --norm pre --context-frames 12 --lookahead-frames 2")
    run(f"{head} --out @gru --task action_units --gru")
    told = run("evaluate @corpus --encoder @encoder --head @stream --head @gru --features @features --report @report")
    assert "expressions" in told
    told = run(
        "export --encoder @encoder --head @va --head @other --out @repository --parity-data @corpus "
        "--target cpu --precision fp32"
    )
    assert "valence_arousal, expression, action_units" in told
    manifest = json.loads((tmp_path / "repository/manifest.json").read_text())
    assert [head["training"]["head"]["use_encoder"] for head in manifest["versions"]["1"]["heads"]] == [True, False]


def test_a_crop_that_breaks_off_is_named_and_not_painted_grey(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    path = tmp_path / "00001.jpg"
    path.write_bytes(content)
    assert read_crop(path).shape == (112, 112, 3)
    for kept in (content[: len(content) // 2], b""):
        path.write_bytes(kept)
        with pytest.raises(DataError, match=r"00001\.jpg cannot be decoded"):
            read_crop(path)
