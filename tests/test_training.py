"""From a corpus on disk to checkpoints: what is read, what is left out, what is learned, what is remembered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from affserve.train.affwild2 import TRAIN, VALIDATION, open_corpus
from affserve.train.checkpoint import load_encoder, load_head
from affserve.train.clip_encoder import DEMO_ARCHITECTURE, create_encoder
from affserve.train.errors import CheckpointError, DataError
from affserve.train.features import VideoFeatures, extract_features, on_timeline, read_features
from affserve.train.finetune import FinetuneConfig, FrameDataset, finetune, labelled_frames
from affserve.train.fit import FitConfig, LabelledVideo, WindowDataset, fit, predict_video
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, format_annotation
from affserve.train.synthetic import SyntheticConfig, write_corpus
from affserve.train.temporal_head import demo_head_config


@pytest.fixture(scope="module")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=8, validation_share=0.5, frames_min=40, frames_max=60, whole_frame_videos=0)
    write_corpus(root, config, workers=1)
    return root


def quiet(_: str) -> None:
    """Take the training's log."""


def write_annotation(root: Path, task_folder: str, part: str, video: str, text: str) -> None:
    path = root / "annotations" / task_folder / part / f"{video}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_crops(folder: Path, numbers: list[int]) -> None:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), np.full((112, 112, 3), number % 256, np.uint8))


def test_nested_roots_second_roots_and_older_folder_names_are_found(tmp_path: Path) -> None:
    header = EXPRESSION.header + "\n"
    write_annotation(tmp_path, "EXPR_Classification_Challenge", TRAIN, "a", header + "0\n4\n")
    write_annotation(tmp_path, EXPRESSION.challenge, VALIDATION, "video10_1_left", header + "1\n")
    write_crops(tmp_path / "cropped_aligned" / "cropped_aligned" / "a", [1, 3])
    write_crops(tmp_path / "cropped_aligned_new_50_vids" / "video10_1_left", [1])
    write_crops(tmp_path / "elsewhere" / "a", [2, 3])
    corpus = open_corpus(tmp_path, image_roots=[tmp_path / "elsewhere"])
    assert corpus.name == "Aff-Wild2"
    assert corpus.videos(EXPRESSION, TRAIN) == ["a"]
    assert list(corpus.crops("a")) == [1, 2, 3]
    assert list(corpus.crops("video10_1_left")) == [1]


def test_a_video_that_any_task_validates_on_is_never_trained_on(tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "both", EXPRESSION.header + "\n0\n")
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "free", EXPRESSION.header + "\n0\n")
    no_action_unit = ACTION_UNITS.header + "\n" + "0," * 11 + "0\n"
    write_annotation(tmp_path, ACTION_UNITS.challenge, VALIDATION, "both", no_action_unit)
    write_crops(tmp_path / "cropped_aligned" / "both", [1])
    corpus = open_corpus(tmp_path)
    assert corpus.part_videos([EXPRESSION], TRAIN) == ["free"]


def test_crops_past_the_annotation_and_invalid_codes_are_not_labelled(tmp_path: Path) -> None:
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "a", EXPRESSION.header + "\n3\n-1\n5\n")
    write_crops(tmp_path / "cropped_aligned" / "a", [1, 2, 3, 4])
    frames = labelled_frames(open_corpus(tmp_path), [EXPRESSION], TRAIN)
    assert [path.name for path in frames.paths] == ["00001.jpg", "00003.jpg"]
    assert frames.truth[EXPRESSION.key][:, 0].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda root: None, "no annotation files", id="empty"),
        pytest.param(
            lambda root: write_annotation(root, EXPRESSION.challenge, TRAIN, "a", EXPRESSION.header + "\n0\n"),
            "no face crops",
            id="no-crops",
        ),
    ],
)
def test_a_folder_that_is_no_corpus_is_refused(prepare: object, message: str, tmp_path: Path) -> None:
    assert callable(prepare)
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path)


def test_gaps_hold_the_last_feature_and_count_as_missing() -> None:
    stored = VideoFeatures(numbers=np.array([3, 4, 7]), features=np.array([[3.0], [4.0], [7.0]], np.float16))
    features, present = on_timeline(stored, 9)
    assert features[:, 0].tolist() == [3, 3, 3, 4, 4, 4, 7, 7, 7]
    assert present.tolist() == [False, False, True, True, False, False, True, False, False]


def test_windows_cover_every_frame_and_mark_padding() -> None:
    video = LabelledVideo(
        features=np.arange(650, dtype=np.float32)[:, None],
        truth={EXPRESSION.key: np.zeros((650, 1), np.float32)},
        valid={EXPRESSION.key: np.ones(650, bool)},
    )
    windows = WindowDataset([video], window=300, stride=200)
    assert [start for _, start in windows.starts] == [0, 200, 400]
    last = windows[2]
    assert last["present"].sum() == 250
    assert last["features"][249, 0] == 649
    assert not last["valid"][EXPRESSION.key][250:].any()


def test_features_are_computed_once_and_a_lost_file_again(corpus_root: Path, tmp_path: Path) -> None:
    corpus = open_corpus(corpus_root)
    torch.manual_seed(0)
    encoder = create_encoder(DEMO_ARCHITECTURE)
    folder = extract_features(encoder, "abc", corpus, tmp_path)
    files = sorted(folder.glob("*.npz"))
    assert folder.name == "abc"
    labelled = {video for task in TASKS.values() for part in (TRAIN, VALIDATION) for video in corpus.videos(task, part)}
    assert {path.stem for path in files} == labelled
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    files[0].unlink()
    extract_features(encoder, "abc", corpus, tmp_path)
    assert files[0].read_bytes() == before[files[0]][1]
    assert all(path.stat().st_mtime_ns == before[path][0] for path in files[1:])
    stored = read_features(folder, files[0].stem)
    assert stored.numbers.tolist() == list(corpus.crops(files[0].stem))
    files[0].write_bytes(b"PK broken")
    with pytest.raises(DataError, match="extract the features again"):
        read_features(folder, files[0].stem)


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


def temporal_corpus(root: Path) -> tuple[Path, Path]:
    """A corpus whose valence is the running mean of a noisy feature: seen over time, hardly on one frame."""
    rng = np.random.default_rng(0)
    features = root / "features" / "0123456789abcdef"
    features.mkdir(parents=True)
    for index in range(12):
        part = VALIDATION if index >= 9 else TRAIN
        signal = np.sin(np.arange(320) * rng.uniform(0.01, 0.03) + rng.uniform(0, 6))
        observed = np.stack([signal + 2 * rng.normal(size=320) for _ in range(8)], axis=1)
        labels = np.stack([signal, -signal], axis=1).astype(np.float32) * 0.8
        write_annotation(root, VALENCE_AROUSAL.challenge, part, f"v{index}", format_annotation(VALENCE_AROUSAL, labels))
        (root / "cropped_aligned" / f"v{index}").mkdir(parents=True)
        np.savez(features / f"v{index}.npz", numbers=np.arange(1, 321), features=observed.astype(np.float16))
    return root, features


def test_the_temporal_model_learns_what_a_single_frame_cannot_tell(tmp_path: Path) -> None:
    root, features = temporal_corpus(tmp_path / "corpus")
    corpus = open_corpus(root)
    scores = {}
    for name, switches in (("temporal", {}), ("single", {"use_tcn": False, "use_encoder": False})):
        head = demo_head_config(feature_width=8, tasks=("valence_arousal",), **switches)
        config = FitConfig(head=head, epochs=12, batch=4, lr=2e-3, stride=20)
        scores[name] = fit(corpus, features, config, tmp_path / name, quiet).by_task["valence_arousal"]
    assert scores["temporal"] > 0.8
    assert scores["temporal"] > scores["single"] + 0.1
    model, checkpoint = load_head(tmp_path / "temporal")
    assert checkpoint.provenance.encoder == features.name
    assert checkpoint.provenance.metrics["valence_arousal"] == pytest.approx(scores["temporal"])
    video = read_features(features, "v11").features.astype(np.float32)
    outputs = predict_video(model, video, config)
    assert outputs["valence_arousal"].shape == (320, 2)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, features = temporal_corpus(tmp_path / "corpus")
    head = demo_head_config(feature_width=8, tasks=("valence_arousal",))
    config = FitConfig(head=head, epochs=1)
    fit(open_corpus(root), features, config, tmp_path / "head", quiet)
    _, before = load_head(tmp_path / "head")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("affserve.train.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fit(open_corpus(root), features, config, tmp_path / "head", quiet)
    _, after = load_head(tmp_path / "head")
    assert after.fingerprint == before.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "head"]


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
    shutil.rmtree(tmp_path)


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
    told = run("export --encoder @encoder --head @va --head @other --out @repository --parity-data @corpus")
    assert "valence_arousal, expression, action_units" in told
    manifest = json.loads((tmp_path / "repository/manifest.json").read_text())
    assert [head["training"]["head"]["use_encoder"] for head in manifest["heads"]] == [True, False]
