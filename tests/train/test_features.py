"""The feature store: computed once, never a wrong row, whatever happens to the process, the disk or the crops."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from affserve.train.corpus.affwild2 import Corpus, open_corpus
from affserve.train.crops import read_crop, to_encoder_input
from affserve.train.errors import DataError, OutputError
from affserve.train.features.extraction import ExtractConfig, extract
from affserve.train.features.store import LEFT_BEHIND_S, FeatureStore, StoreDescription
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


Told = tuple[list[str], list[tuple[int, int]]]  # what an extraction logs, and its progress


@pytest.fixture(scope="module")
def told() -> Told:
    return [], []


@pytest.fixture(scope="module")
def extracted(corpus: Corpus, encoder: ClipEncoder, told: Told, tmp_path_factory: pytest.TempPathFactory) -> Path:
    progress = lambda *counts: told[1].append(counts)  # noqa: E731
    store = tmp_path_factory.mktemp("features")
    return extract(encoder, "abc", corpus, store, log=told[0].append, progress=progress).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_videos(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.npy"))


def write_constant(store: FeatureStore, video: str, value: float, frames: int = 3) -> Path:
    """Write a video whose features are all the same; return its file."""
    features = np.full((frames, store.description.width), value, np.float16)
    store.write(video, np.arange(1, frames + 1), features)
    return store.folder / f"{video}.npy"


def test_every_crop_of_every_labelled_video_has_the_encoders_feature(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path
) -> None:
    store = FeatureStore(extracted)
    assert extracted.name == "abc"
    labelled = {video for files in corpus.annotation_files.values() for video in files}
    assert set(stored_videos(extracted)) == labelled
    store.check_complete(labelled)
    for video in labelled:
        crops = corpus.crops(video)
        assert store.crops(video).numbers.tolist() == list(crops)
    frames = np.stack([to_encoder_input(read_crop(path)) for path in list(crops.values())[:5]])
    with torch.inference_mode():
        expected = encoder.eval()(torch.from_numpy(frames)).numpy()
    np.testing.assert_allclose(store.crops(video).read(slice(5)), expected, rtol=2e-3, atol=2e-3)  # float16


def test_running_again_computes_nothing_and_touches_nothing(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in extracted.iterdir()}
    again = extract(encoder, "abc", corpus, extracted.parent)
    assert (again.computed, again.videos) == (0, len(corpus.crop_folders))
    assert again.frames == sum(len(corpus.crop_numbers(video)) for video in corpus.crop_folders)
    assert before == {path.name: path.stat().st_mtime_ns for path in extracted.iterdir()}


def flip(path: Path, every: int) -> None:
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), every):
        content[position] ^= 16
    path.write_bytes(content)


def test_damaged_videos_are_named_and_no_others_computed_again(
    corpus: Corpus, encoder: ClipEncoder, extracted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "abc"
    shutil.copytree(extracted, folder)
    whole = {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))}
    flipped, truncated, one, other, gone, *rest = whole
    flip(flipped, every=64)
    os.truncate(truncated, truncated.stat().st_size - 1)
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    gone.unlink()
    named = ", ".join(path.stem for path in (flipped, truncated, one, other))
    message = (
        rf"lacks .* 1 videos \({gone.stem}\) and holds damaged .* 4 videos \({named}\); run affserve train features"
    )
    with pytest.raises(DataError, match=message):
        FeatureStore(folder).check_complete(sorted(corpus.crop_folders))
    told: list[str] = []
    again = extract(encoder, "abc", corpus, tmp_path, log=told.append)
    assert told[0].endswith(f"damaged, so computed again: {named}")
    assert again.computed == sum(len(corpus.crop_numbers(v.stem)) for v in (flipped, truncated, one, other, gone))
    assert contents(folder) == contents(extracted)
    assert all(path.stat().st_mtime_ns == whole[path] for path in rest)


def test_any_byte_that_changed_and_any_shorter_file_is_found(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path, NARROW)
    good = write_constant(store, "a", 1).read_bytes()
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (3, 4)  # as anybody would read it
    broken = [good[:cut] for cut in range(len(good))]
    broken += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
    for number, content in enumerate([*broken, good + b"\0"]):
        (tmp_path / "a.npy").write_bytes(content)
        os.utime(tmp_path / "a.npy", ns=(number, number))  # however coarse the disk's clock is
        assert store.find("a") is None
    with pytest.raises(DataError, match=r"holds damaged features of 1 videos \(a\)"):
        store.crops("a")


def test_what_changes_after_it_was_checked_is_not_read(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path, NARROW)
    write_constant(store, "a", 1)
    crops = store.crops("a")
    assert crops.read(slice(1, 3)).tolist() == [[1] * 4] * 2
    write_constant(store, "a", 1, frames=4)
    with pytest.raises(DataError, match=r"a.npy was changed after it had been checked"):
        crops.read()
    assert len(store.crops("a").read()) == 4


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from affserve.train.features import store
for number in range(4):
    if number == 3:
        store.seal = lambda *_: os.kill(os.getpid(), 9)  # when the features are written and their checksum is not
    opened = store.FeatureStore.create(Path(sys.argv[1]), store.StoreDescription(width=4, corpus="Aff-Wild2"))
    opened.write(f"v{number}", np.arange(1, 2001), np.full((2000, 4), number, np.float16))
"""


def test_after_kill_9_the_videos_before_are_whole_and_what_is_left_is_removed_some_time(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -9
    store = FeatureStore.create(tmp_path, NARROW)
    assert stored_videos(tmp_path) == ["v0", "v1", "v2"]
    store.check_complete(["v0", "v1", "v2"])
    (left,) = tmp_path.glob(".v3.npy.*")  # it may also be what another process is writing
    os.utime(left, (time.time() - LEFT_BEHIND_S - 60,) * 2)
    FeatureStore.create(tmp_path, NARROW)
    assert not left.exists()


def test_a_video_that_two_write_at_once_is_one_whole_file(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path, NARROW)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: write_constant(store, "a", number, frames=500), range(40)))
    assert len(np.unique(store.crops("a").read())) == 1
    assert len(contents(tmp_path)) == 2


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
    FeatureStore.create(tmp_path, NARROW)
    with pytest.raises(DataError, match=message):
        FeatureStore.create(tmp_path, other)


def test_features_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path, NARROW)
    with pytest.raises(DataError, match="not finite"):
        write_constant(store, "a", np.inf)


def test_a_disk_that_fills_up_is_named_and_complete_videos_are_kept(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path, NARROW)
    write_constant(store, "a", 1)
    before, limits = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a quota or a full disk would
    try:
        for video in ("a", "b"):
            with pytest.raises(OutputError, match=r"no room .* are complete are kept: make room and run the same"):
                write_constant(store, video, 1, frames=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


def test_a_disk_too_small_is_known_before_anything_is_computed(
    corpus: Corpus, encoder: ClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"0.00 GB of features are to be written and 0.00 GB are free"):
        extract(encoder, "abc", corpus, tmp_path)
    assert not stored_videos(tmp_path / "abc")


def test_the_size_is_told_before_the_work_and_progress_counts_frames(
    corpus: Corpus, extracted: Path, told: Told
) -> None:
    frames = sum(len(corpus.crop_numbers(video)) for video in corpus.crop_folders)
    log, seen = told
    assert f"{frames:,} crops × 512 × 2 bytes = 0.00 GB" in log[0]
    assert (seen[0], seen[-1]) == ((0, frames), (frames, frames))
    assert seen == sorted(seen)


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
    assert number not in store.crops(video).numbers
    before = store.path(video).stat().st_mtime_ns
    with pytest.warns(UserWarning, match="1 crops cannot be decoded"):
        extract(encoder, folder.name, broken, tmp_path / "out").warn()
    assert store.path(video).stat().st_mtime_ns == before
    path.write_bytes(good)
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "1 computed" in result.stdout
    store = FeatureStore(folder)
    assert store.crops(video).numbers.tolist() == list(broken.crops(video))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        pytest.param("", r"is no feature store: .*; expected the folder", id="none"),
        pytest.param(
            '{"schema_version": 1, "width": 4}', r"expected 2; delete .* run affserve train features", id="old"
        ),
        pytest.param('{"schema_version": 2, "size": 4}', r"cannot be understood.*; delete .* again", id="unknown-key"),
    ],
)
def test_a_folder_that_is_no_store_of_today_is_refused(description: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(description)
    with pytest.raises(DataError, match=message):
        FeatureStore.create(tmp_path, NARROW)
