"""The feature store: computed once, never a wrong row, whatever happens to the process, the disk or the crops."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from affserve.train.corpus.affwild2 import Corpus, open_corpus
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import DataError, OutputError
from affserve.train.features.extraction import ExtractConfig, ExtractionPlan, extract, extract_features
from affserve.train.features.store import FeatureStore, StoreDescription
from affserve.train.features.writer import FeatureWriter
from affserve.train.models.checkpoint import save_encoder
from affserve.train.models.encoder import DEMO_ARCHITECTURE, ClipEncoder, create_encoder
from affserve.train.provenance import Provenance
from affserve.train.synthetic.corpus import write_corpus
from affserve.train.synthetic.plan import SyntheticConfig

NARROW = StoreDescription(width=4, corpus="Aff-Wild2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus") / "synthetic"
    config = SyntheticConfig(videos=8, validation_share=0.5, frames_min=40, frames_max=60, whole_frame_videos=0)
    return open_corpus(write_corpus(root, config, workers=1).root)


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    torch.manual_seed(0)
    return create_encoder(DEMO_ARCHITECTURE)


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the extraction of the next fixture says."""
    return []


@pytest.fixture(scope="module")
def seen() -> list[tuple[int, int]]:
    """The progress it reports."""
    return []


@pytest.fixture(scope="module")
def extracted(
    corpus: Corpus,
    encoder: ClipEncoder,
    told: list[str],
    seen: list[tuple[int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    store = tmp_path_factory.mktemp("features")
    progress = lambda *counts: seen.append(counts)  # noqa: E731
    return extract(encoder, "abc", corpus, store, log=told.append, progress=progress).folder


def contents(folder: Path) -> dict[str, tuple[list[int], bytes]]:
    store = FeatureStore(folder)
    crops = {video: store.crops(video) for video in store.videos}
    return {video: (found.numbers.tolist(), found.read().tobytes()) for video, found in crops.items()}


def rows_of(number: int, count: int) -> NDArray[np.float16]:
    """Rows that tell where they belong."""
    return np.repeat(number + np.arange(count, dtype=np.float16)[:, None] / 64, NARROW.width, axis=1)


def test_every_crop_of_every_labelled_video_has_the_encoders_feature(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path
) -> None:
    store = FeatureStore(extracted)
    assert extracted.name == "abc"
    labelled = {video for files in corpus.annotation_files.values() for video in files}
    assert set(store.videos) == labelled
    store.check_complete(labelled)
    for video in labelled:
        crops = corpus.crops(video)
        assert store.crops(video).numbers.tolist() == list(crops)
    frames = np.stack([to_encoder_input(read_crop(path)) for path in list(crops.values())[:5]])
    with torch.inference_mode():
        expected = encoder.eval()(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(store.crops(video).read(slice(5)), expected, rtol=2e-3, atol=2e-3)  # float16


def test_running_again_computes_nothing_and_changes_nothing(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path
) -> None:
    before = {path.name: path.read_bytes() for path in extracted.iterdir()}
    again = extract(encoder, "abc", corpus, extracted.parent)
    assert again.computed == 0
    assert again.frames == sum(len(corpus.crop_numbers(video)) for video in FeatureStore(extracted).videos)
    assert before == {p.name: p.read_bytes() for p in extracted.iterdir() if p.suffix != ".lock"} | {
        p.name: before[p.name] for p in extracted.glob("*.lock")
    }


@pytest.mark.parametrize("cut_bytes", [1, 700, 50_000], ids=lambda cut: f"{cut}-bytes")
@pytest.mark.parametrize("file", ["shard-000.rows", "shard-000.index"])
def test_a_torn_end_is_cut_off_and_computed_again(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path, file: str, cut_bytes: int, tmp_path: Path
) -> None:
    folder = tmp_path / "abc"
    shutil.copytree(extracted, folder)
    size = (folder / file).stat().st_size
    os.truncate(folder / file, max(0, size - cut_bytes))
    assert not all(FeatureStore(folder).is_complete(video) for video in corpus.crop_folders)
    extract(encoder, "abc", corpus, tmp_path)
    assert contents(folder) == contents(extracted)


def test_rows_that_the_disk_garbled_at_the_end_are_computed_again(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "abc"
    shutil.copytree(extracted, folder)
    # Without the lines that only say complete, the last line speaks of the last rows.
    lines = (folder / "shard-000.index").read_bytes().splitlines(keepends=True)
    (folder / "shard-000.index").write_bytes(b"".join(lines[:-1]))
    with (folder / "shard-000.rows").open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(bytes(16))
    extract(encoder, "abc", corpus, tmp_path)
    assert contents(folder) == contents(extracted)


def test_a_broken_line_in_the_middle_is_refused(extracted: Path, tmp_path: Path) -> None:
    shutil.copytree(extracted, tmp_path / "abc")
    index = tmp_path / "abc" / "shard-000.index"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([lines[0], b"\0" * 20 + b"\n", *lines[1:]]))
    with pytest.raises(DataError, match=r"shard-000.index:2: .* extract again"):
        FeatureStore(tmp_path / "abc")


KILLED = """
import sys
from pathlib import Path
import numpy as np
from affserve.train.feature_store import StoreDescription
from affserve.train.feature_writer import FeatureWriter
from affserve.train import feature_writer
feature_writer.COMMIT_S = 0
with FeatureWriter(Path(sys.argv[1]), StoreDescription(width=512, corpus="c")) as writer:
    for number in range(1, 10**6):
        writer.append("a", np.array([number]), np.full((1, 512), number % 2048, np.float16))
        if number == 50:
            print("writing", flush=True)
"""


def test_after_kill_9_every_row_there_is_is_right_and_work_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        crops = FeatureStore(folder).crops("a")
        assert len(crops.numbers) > 0
        features = crops.read()
        assert (features == (crops.numbers % 2048)[:, None]).all()
        rows = (folder / "shard-000.rows").stat().st_size
        assert rows >= len(crops.numbers) * 1024


def test_a_second_writer_of_a_shard_is_refused_and_one_of_another_is_not(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, NARROW) as first:
        with pytest.raises(DataError, match=f"written by process {os.getpid()}"):
            FeatureWriter(tmp_path, NARROW)
        with FeatureWriter(tmp_path, NARROW, shard=1) as second:
            second.append("shared", np.array([3, 4]), rows_of(4, 2))  # the first of its shard
            second.append("b", np.array([1, 2]), rows_of(2, 2))
        first.append("a", np.array([3, 9]), rows_of(1, 2))
        first.append("shared", np.array([1, 2]), rows_of(3, 2))  # the last of its shard
    store = FeatureStore(tmp_path)
    assert store.crops("a").numbers.tolist() == [3, 9]
    np.testing.assert_array_equal(store.crops("a").read(), rows_of(1, 2))
    np.testing.assert_array_equal(store.crops("b").read(slice(1, 2)), rows_of(2, 2)[1:])
    np.testing.assert_array_equal(store.crops("shared").read(), np.concatenate([rows_of(3, 2), rows_of(4, 2)]))


def test_two_ranks_compute_what_one_does(corpus: Corpus, encoder: ClipEncoder, extracted: Path, tmp_path: Path) -> None:
    parts = [extract(encoder, "abc", corpus, tmp_path, config=ExtractConfig(rank=rank, world=2)) for rank in range(2)]
    assert sum(part.videos for part in parts) == len(corpus.crop_folders)
    assert min(part.frames for part in parts) > 0.3 * sum(part.frames for part in parts)
    assert contents(tmp_path / "abc") == contents(extracted)
    alone = extract(encoder, "abc", corpus, tmp_path)  # another number of processes finds it all there
    assert alone.computed == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(StoreDescription(width=8, corpus="Aff-Wild2"), "width 4, not 8", id="width"),
        pytest.param(StoreDescription(width=4, corpus="synthetic 1"), "corpus Aff-Wild2, not synthetic 1", id="corpus"),
        pytest.param(StoreDescription(width=4, corpus="Aff-Wild2", amp="bf16"), "amp none, not bf16", id="amp"),
    ],
)
def test_other_features_are_not_mixed_in(other: StoreDescription, message: str, tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, NARROW):
        pass
    with pytest.raises(DataError, match=message):
        FeatureWriter(tmp_path, other)
    with FeatureWriter(tmp_path, NARROW):  # the refused one holds no lock
        pass


def test_features_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path, NARROW) as writer, pytest.raises(DataError, match="not finite"):
        writer.append("a", np.array([1]), np.full((1, 4), np.inf, np.float16))


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 200 KB, as a quota or a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("commit_s", [0.0, 1e9], ids=["committed-before", "committed-at-the-end"])
def test_a_disk_that_fills_up_is_named_and_what_was_written_is_kept(
    commit_s: float, small_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("affserve.train.features.writer.COMMIT_S", commit_s)
    description = StoreDescription(width=512, corpus="c")

    def fill() -> None:
        with FeatureWriter(tmp_path, description) as writer:
            for number in range(1, 1000):
                writer.append("a", np.array([number]), np.full((1, 512), number, np.float16))

    with pytest.raises(OutputError, match=r"no room .* what was committed is kept: make room and run"):
        fill()
    crops = FeatureStore(tmp_path).crops("a")
    assert 150 < len(crops.numbers) <= 195
    assert (crops.read() == crops.numbers[:, None]).all()


def test_a_disk_too_small_is_known_before_anything_is_computed(
    corpus: Corpus, encoder: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"0.00 GB of features are to be written and 0.00 GB are free"):
        extract(encoder, "abc", corpus, tmp_path)
    assert FeatureStore(tmp_path / "abc").frames == 0


def test_the_size_is_told_before_the_work_and_progress_counts_frames(
    extracted: Path, told: list[str], seen: list[tuple[int, int]]
) -> None:
    frames = FeatureStore(extracted).frames
    assert f"{frames:,} crops × 512 × 2 bytes = 0.00 GB" in told[0]
    assert seen[0] == (0, frames)
    assert seen[-1] == (frames, frames)
    assert seen == sorted(seen)


def test_three_million_frames_are_three_gigabytes(tmp_path: Path) -> None:
    crops = {"a": np.arange(1, 3_000_001, dtype=np.int32)}
    description = StoreDescription(width=512, corpus="Aff-Wild2")
    plan = ExtractionPlan(
        folder=tmp_path, description=description, crops=crops, missing=crops, incomplete=frozenset(crops)
    )
    assert plan.describe().startswith("3,000,000 crops × 512 × 2 bytes = 3.07 GB")


def test_unreadable_crops_are_named_skipped_and_computed_once_replaced(
    corpus: Corpus, encoder: ClipEncoder, tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(corpus.root, root)
    broken = open_corpus(root)
    video = next(iter(broken.crop_folders))
    number, path = next(iter(broken.crops(video).items()))
    good = path.read_bytes()
    path.write_bytes(b"no jpeg")
    save_encoder(tmp_path / "encoder", encoder, Provenance(trained_on="synthetic"))
    line = ["train", "features", str(root), "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "out")]

    from affserve.client.cli import app

    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1
    assert "error: 1 crops cannot be decoded" in result.stderr
    assert str(path) in result.stderr
    (folder,) = (tmp_path / "out").iterdir()
    store = FeatureStore(folder)
    store.check_complete(broken.crop_folders)
    assert store.unreadable(video) == (number,)
    assert number not in store.crops(video).numbers
    with pytest.warns(UserWarning, match="1 crops cannot be decoded"):
        extract_features(encoder, folder.name, broken, tmp_path / "out")
    path.write_bytes(good)
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "1 computed" in result.stdout
    store = FeatureStore(folder)
    assert store.unreadable(video) == ()
    assert store.crops(video).numbers.tolist() == list(broken.crops(video))


def test_a_store_travels_to_other_processes_without_its_rows(extracted: Path) -> None:
    store = FeatureStore(extracted)
    video = store.videos[0]
    expected = store.crops(video).read()
    packed = pickle.dumps(store.crops(video))
    assert len(packed) < 0.1 * store.frames * store.description.row_bytes
    np.testing.assert_array_equal(pickle.loads(packed).read(), expected)


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no feature store: .*; expected the folder"):
        FeatureStore(tmp_path)


def test_the_benchmark_at_a_small_size(tmp_path: Path) -> None:
    from affserve.benchmarks.cli import bench_app

    options = ["--frames", "20000", "--files", "1200", "--work-s", "0.3", "--folder", str(tmp_path)]
    result = CliRunner().invoke(bench_app, ["features", *options])
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "feature_scale.json").read_text())["measured"]
    assert measured["frames"] == measured["sampling"]["frames"] == 20_000
    assert measured["store_apparent_bytes"] > 0.9 * 20_000 * 1024
    assert measured["store_actual_bytes"] < 0.1 * measured["store_apparent_bytes"]
    assert measured["sampling"]["windows_per_s"] > 0
    assert measured["sampling"]["peak_mib"] > measured["sampling"]["libraries_mib"]
    assert measured["appending"]["rows"] > 0
    assert measured["checking"]["files"] > 0
    assert measured["decoding"]["threads_2"]["images_per_cpu_s"] > 0
    assert measured["within_limit"]
