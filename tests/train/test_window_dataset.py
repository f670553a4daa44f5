"""What stage 2 sees: windows that cover what they should, gaps filled as asked, and no row of another frame."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from corpora import write_annotation
from feature_corpora import Rows
from torch.utils.data import DataLoader, default_collate

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, open_corpus
from affserve.train.corpus.annotations import format_annotation
from affserve.train.errors import DataError
from affserve.train.features.gaps import GAP_POLICIES
from affserve.train.features.store import FeatureStore, StoreDescription
from affserve.train.features.videos import LabelledVideo, load_videos
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.stages.fit import WindowDataset


def video_of(numbers: list[int], frames: int, gaps: str = "hold") -> LabelledVideo:
    """A video in which the feature of crop k is k."""
    crops = np.array(numbers, np.int32)
    return LabelledVideo(
        name="a",
        frames=frames,
        truth={EXPRESSION.key: np.arange(frames, dtype=np.float32)[:, None]},
        valid={EXPRESSION.key: np.ones(frames, bool)},
        crops=Rows(crops, crops[:, None].astype(np.float16)),
        gaps=gaps,
    )


@pytest.mark.parametrize(
    ("policy", "seen"),
    [
        ("hold", [3, 3, 3, 4, 4, 4, 4, 8, 8, 8]),
        ("nearest", [3, 3, 3, 4, 4, 4, 8, 8, 8, 8]),
        ("interpolate", [3, 3, 3, 4, 5, 6, 7, 8, 8, 8]),
        ("mask", [0, 0, 3, 4, 0, 0, 0, 8, 0, 0]),
    ],
)
def test_frames_without_a_crop_look_as_the_policy_says(policy: str, seen: list[float]) -> None:
    video = video_of([3, 4, 8], 10, policy)
    assert video.features()[:, 0].tolist() == seen
    for start in range(10):  # wherever a window begins or ends, its frames look the same
        for stop in range(start + 1, 11):
            assert video.features(slice(start, stop))[:, 0].tolist() == seen[start:stop]


@pytest.mark.parametrize("policy", GAP_POLICIES)
def test_a_video_without_crops_and_one_of_later_crops_only_are_defined(policy: str) -> None:
    assert not video_of([], 5, policy).features().any()
    late = video_of([9, 12], 5, policy).features()[:, 0]  # all crops lie past the annotation's end
    assert late.tolist() == ([0] * 5 if policy == "mask" else [9] * 5)


def test_an_unknown_policy_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'repeat', expected one of hold, nearest, interpolate, mask"):
        video_of([1], 2, "repeat").features()


def test_a_window_reads_no_more_rows_than_it_has_frames_and_one_on_either_side() -> None:
    video = video_of(list(range(1, 10_000, 2)), 10_000, "interpolate")
    video.features(slice(5000, 5300))
    assert isinstance(video.crops, Rows)
    assert video.crops.most_read <= 152


@pytest.mark.parametrize(
    ("frames", "starts", "full"),
    [
        pytest.param(650, [0, 200, 400], [0, 200], id="tail"),
        pytest.param(700, [0, 200, 400], [0, 200, 400], id="exact"),
        pytest.param(300, [0], [0], id="one-window"),
        pytest.param(301, [0, 200], [0], id="one-frame-more"),
        pytest.param(299, [0], [], id="short"),
        pytest.param(1, [0], [], id="one-frame"),
        pytest.param(0, [], [], id="empty"),
    ],
)
def test_windows_cover_every_frame_or_are_all_full(frames: int, starts: list[int], full: list[int]) -> None:
    video = video_of(list(range(1, frames + 1)), frames)
    everything = WindowDataset([video], window=300, stride=200)
    assert [start for _, start in everything.starts] == starts
    paper = WindowDataset([video], window=300, stride=200, full_only=True)
    assert [start for _, start in paper.starts] == full
    assert all(paper[k]["present"].all() for k in range(len(paper)))
    covered = [everything[k] for k in range(len(everything))]
    seen = {t for item in covered for t in item["features"][item["present"], 0].tolist()}
    assert seen == set(map(float, range(1, frames + 1)))


@pytest.mark.parametrize(("frames", "starts"), [(1, [0]), (2, [0]), (3, [0]), (4, [0, 1])])
def test_no_window_holds_only_what_another_one_holds(frames: int, starts: list[int]) -> None:
    windows = WindowDataset([video_of(list(range(1, frames + 1)), frames)], window=3, stride=1)
    assert [start for _, start in windows.starts] == starts


def test_frames_around_a_window_are_shown_and_teach_nothing() -> None:
    video = video_of(list(range(1, 651)), 650)
    windows = WindowDataset([video], window=300, stride=200, lead=120, tail=10)
    shown = [item["features"][item["present"], 0].astype(int).tolist() for item in (windows[k] for k in range(3))]
    assert shown == [list(range(1, 311)), list(range(81, 511)), list(range(281, 651))]
    taught = [windows[k]["truth"][EXPRESSION.key][windows[k]["valid"][EXPRESSION.key], 0].tolist() for k in range(3)]
    assert taught == [list(range(300)), list(range(200, 500)), list(range(400, 650))]


def test_padding_is_marked_and_never_labelled() -> None:
    last = WindowDataset([video_of(list(range(1, 651)), 650)], window=300, stride=200)[2]
    assert last["present"].tolist() == [True] * 250 + [False] * 50
    assert last["features"][:250, 0].tolist() == list(range(401, 651))
    assert not last["features"][250:].any()
    assert not last["valid"][EXPRESSION.key][250:].any()
    assert last["truth"][EXPRESSION.key][:250, 0].tolist() == list(range(400, 650))
    assert (last["features"].dtype, last["features"].shape) == (np.float32, (300, 1))


def stored_corpus(root: Path, videos: dict[str, list[int]], frames: int = 30) -> tuple[Corpus, Path]:
    """Write a corpus of AU and EXPR labels with the features of some crops: frame k of video v is 100 v + k / 16."""
    for index, video in enumerate(videos):
        part = VALIDATION if video.startswith("val") else TRAIN
        labels = np.full((frames, 1), index % 8, np.float32)
        write_annotation(root, EXPRESSION.challenge, part, video, format_annotation(EXPRESSION, labels))
        (root / "cropped_aligned" / video).mkdir(parents=True)
    folder = root / "features" / "0123456789abcdef"
    store = FeatureStore.create(folder, StoreDescription(width=4, corpus="Aff-Wild2"))
    for index, (video, numbers) in enumerate(videos.items()):
        rows = np.repeat(100 * index + np.array(numbers)[:, None] / 16, 4, axis=1).astype(np.float16)
        store.write(video, np.array(numbers), rows)
    return open_corpus(root), folder


def test_labels_meet_the_features_of_their_own_frames(tmp_path: Path) -> None:
    videos = {"a": [3, 4, 5, 9, 10, 40], "b": list(range(1, 31)), "val": [1]}
    _, folder = stored_corpus(tmp_path, videos)
    write_annotation(
        tmp_path, ACTION_UNITS.challenge, TRAIN, "a", format_annotation(ACTION_UNITS, np.full((33, 12), 1, np.float32))
    )
    corpus = open_corpus(tmp_path)
    a, b = load_videos(corpus, folder, [EXPRESSION, ACTION_UNITS], TRAIN)
    assert (a.name, a.frames, b.name, b.frames) == ("a", 33, "b", 30)
    assert (np.flatnonzero(a.valid[EXPRESSION.key]) + 1).tolist() == [3, 4, 5, 9, 10]
    assert a.features(slice(8, 10))[:, 0].tolist() == [9 / 16, 10 / 16]
    assert b.features()[:, 0].tolist() == [100 + k / 16 for k in range(1, 31)]
    assert not b.valid[ACTION_UNITS.key].any()
    assert a.truth[EXPRESSION.key][30:, 0].tolist() == [-1] * 3
    assert not a.valid[EXPRESSION.key][30:].any()


@pytest.mark.parametrize("hold_out", ["any", "task"])
def test_who_is_held_out_can_be_chosen(hold_out: str, tmp_path: Path) -> None:
    _, folder = stored_corpus(tmp_path, {"a": [1], "b": [1]})
    write_annotation(tmp_path, VALENCE_AROUSAL.challenge, VALIDATION, "a", VALENCE_AROUSAL.header + "\n0,0\n")
    videos = load_videos(open_corpus(tmp_path), folder, [EXPRESSION], TRAIN, hold_out=hold_out)
    assert [video.name for video in videos] == (["b"] if hold_out == "any" else ["a", "b"])


def test_features_of_another_corpus_or_not_all_of_them_are_refused(tmp_path: Path) -> None:
    corpus, folder = stored_corpus(tmp_path, {"a": [1], "b": [1]})
    write_annotation(tmp_path, EXPRESSION.challenge, TRAIN, "later", EXPRESSION.header + "\n0\n")
    with pytest.raises(DataError, match=r"lacks features of 1 videos \(later\); run affserve train features again"):
        load_videos(open_corpus(tmp_path), folder, [EXPRESSION], TRAIN)
    (tmp_path / "corpus.json").write_text('{"corpus": "synthetic"}')
    (tmp_path / "annotations" / EXPRESSION.challenge / TRAIN / "later.txt").unlink()
    with pytest.raises(DataError, match="features of Aff-Wild2, not of synthetic"):
        load_videos(open_corpus(tmp_path), folder, [EXPRESSION], TRAIN)
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(DataError, match="no videos in Train_Set for valence_arousal"):
        load_videos(corpus, folder, [VALENCE_AROUSAL], TRAIN)
    assert len(load_videos(corpus, folder, [EXPRESSION], TRAIN)) == 2


def test_windows_are_the_same_in_worker_processes(tmp_path: Path) -> None:
    corpus, folder = stored_corpus(tmp_path, {"a": list(range(1, 31)), "b": [2, 5, 6]})
    windows = WindowDataset(load_videos(corpus, folder, [EXPRESSION], TRAIN), window=12, stride=8)
    windows[0]  # what a process opens does not travel
    here = next(iter(DataLoader(windows, batch_size=len(windows))))
    # No DataLoader's worker: its handler of SIGCHLD has no room to run after AMX was used in this process.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = default_collate(list(pool.map(windows.__getitem__, range(len(windows)))))
    for key in ("features", "present"):
        np.testing.assert_array_equal(here[key].numpy(), there[key].numpy())
    assert len(pickle.dumps(windows)) < 20_000
