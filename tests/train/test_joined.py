"""Several corpora as one: each taught for what it has, weighed as wanted; photographs and heads over time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import write_annotation, write_crops

from affserve.train.corpus.affwild2 import CORPUS_FILE, PHOTOGRAPHS, TRAIN, VALIDATION, Corpus, open_corpus
from affserve.train.corpus.joined import join_corpora
from affserve.train.errors import DataError
from affserve.train.features.extraction import extract
from affserve.train.labels import ACTION_UNITS, EXPRESSION, Task
from affserve.train.models.checkpoint import load_encoder
from affserve.train.models.encoder import DEMO_ARCHITECTURE
from affserve.train.models.temporal_head import demo_head_config
from affserve.train.provenance import UNTAUGHT
from affserve.train.stages.finetune import FinetuneConfig, finetune
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.stages.frames import labelled_frames
from affserve.train.trainer.losses import drawn_order

ROWS = {EXPRESSION.key: "4\n1\n", ACTION_UNITS.key: "1,0,0,0,0,0,1,0,0,0,0,-1\n" * 2}


def corpus_of(root: Path, task: Task) -> Corpus:
    """Two videos of one name in every corpus, each of two frames, labelled for one task."""
    for part in (TRAIN, VALIDATION):
        write_annotation(root, task.challenge, part, part[:1], task.header + "\n" + ROWS[task.key])
        write_crops(root / "cropped_aligned" / part[:1], [1, 2])
    return open_corpus(root)


@pytest.fixture
def two(tmp_path: Path) -> list[Corpus]:
    return [corpus_of(tmp_path / "a", EXPRESSION), corpus_of(tmp_path / "b", ACTION_UNITS)]


def test_each_frame_is_labelled_for_what_its_corpus_has(two: list[Corpus]) -> None:
    joined = join_corpora(two, [1, 3])
    frames = labelled_frames(joined, [EXPRESSION, ACTION_UNITS], TRAIN)
    assert [path.parts[-4] for path in frames.paths] == ["a", "a", "b", "b"]
    assert frames.valid[EXPRESSION.key].tolist() == [True, True, False, False]
    assert frames.valid[ACTION_UNITS.key].tolist() == [False, False, True, True]
    assert frames.weights.tolist() == [1, 1, 3, 3]
    assert joined.fingerprint() != join_corpora(two).fingerprint()
    assert join_corpora(two[:1]) is two[0]
    assert not {joined.person(video) for video in joined.videos(EXPRESSION, TRAIN)} & {
        joined.person(video) for video in joined.videos(ACTION_UNITS, TRAIN)
    }
    with pytest.raises(DataError, match="found 1 weights for 2 corpora"):
        join_corpora(two, [2])
    with pytest.raises(DataError, match="named twice"):
        join_corpora([two[0], two[0]])


def test_a_weight_says_how_often_a_sample_is_drawn() -> None:
    order = drawn_order(np.random.default_rng(0), np.repeat([1.0, 3.0], 500))
    assert (order >= 500).mean() == pytest.approx(0.75, abs=0.05)
    assert sorted(drawn_order(np.random.default_rng(0), np.full(9, 2.0))) == list(range(9))  # all alike: each once


def test_an_encoder_and_a_head_learn_from_both_and_photographs_teach_no_time(two: list[Corpus], tmp_path: Path) -> None:
    joined = join_corpora(two, [1, 2])
    tasks = (EXPRESSION.key, ACTION_UNITS.key)
    config = FinetuneConfig(architecture=DEMO_ARCHITECTURE, pretrained=None, tasks=tasks, epochs=1, batch=4)
    scores = finetune(joined, config, tmp_path / "encoder", lambda text: None)
    assert set(scores.by_task) == set(tasks)
    provenance = json.loads((tmp_path / "encoder" / "config.json").read_text())["provenance"]
    assert provenance["trained_on"] == "Aff-Wild2 + Aff-Wild2"
    assert provenance["data"]["images"] == "official"
    assert provenance["data"][UNTAUGHT] == ["AU26"]

    encoder, checkpoint = load_encoder(tmp_path / "encoder")
    features = extract(encoder, checkpoint.fingerprint, joined, tmp_path / "features").folder
    head = demo_head_config(tasks=tasks, use_tcn=False, use_encoder=False)
    told = fit(joined, features, FitConfig(head=head, epochs=1), tmp_path / "head", lambda text: None)
    assert set(told.by_task) == set(tasks)
    over_time = FitConfig(head=replace(head, use_tcn=True), epochs=1)
    with pytest.raises(DataError, match="photographs, which do not follow one another"):
        fit(replace(joined, kind=PHOTOGRAPHS), features, over_time, tmp_path / "h2", lambda text: None)


def test_what_a_corpus_says_of_itself_is_read(tmp_path: Path) -> None:
    corpus_of(tmp_path, EXPRESSION)
    described = {"corpus": "Ours", "kind": PHOTOGRAPHS, "people": {"T": "ann", "V": "ann"}}
    (tmp_path / CORPUS_FILE).write_text(json.dumps(described))
    corpus = open_corpus(tmp_path)
    assert (corpus.name, corpus.kind, corpus.person("T")) == ("Ours", PHOTOGRAPHS, "ann")
