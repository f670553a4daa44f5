"""Finished checkpoints on the videos of a corpus: what they say of every frame, and both validators' scores of it.

In come an encoder and one to three heads (ensembles included), out go the predictions that a client would get, the
scores of the `official` and the `paper` validator with a report, and filled templates of the challenge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from affserve.train.corpus.affwild2 import VALIDATION, Corpus
from affserve.train.errors import CheckpointError, DataError
from affserve.train.evaluation.prediction import Segmenting, judge, predict_segments, predict_video
from affserve.train.evaluation.report import write_report
from affserve.train.evaluation.scores import OFFICIAL, PROTOCOLS, Scores, score
from affserve.train.evaluation.submission import Template, check_fillable, fill_template
from affserve.train.evaluation.tuning import AnsweredVideo, Gain, tune
from affserve.train.features.extraction import Progress, extract
from affserve.train.features.gaps import HOLD, CropFeatures, fill_gaps
from affserve.train.features.store import FeatureStore
from affserve.train.features.videos import LabelledVideo, load_videos
from affserve.train.files import write_file
from affserve.train.labels import task_by_key
from affserve.train.models.checkpoint import check_fits, load_encoder, load_head, save_processing
from affserve.train.models.device import check_device
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead
from affserve.train.processing.processor import processed
from affserve.train.processing.record import Processing, chosen_processing
from affserve.train.windows import STRIDE_FRAMES, WINDOW_FRAMES, Outputs

SCORES_FILE = "scores.json"
KEPT = ("intervals", "parts", "frames")  # of scores, beside the summary


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedHead:
    """A head or an ensemble of heads, ready to answer in the windows it was trained for."""

    model: TemporalHead | HeadEnsemble
    segmenting: Segmenting  # as in its training
    trained_on: str  # corpus name
    processing: Processing  # what is made of the answers

    @property
    def tasks(self) -> tuple[str, ...]:
        """Keys of what it answers."""
        return self.model.config.tasks

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names of its outputs, by task."""
        return {key: task_by_key(key).names for key in self.tasks}

    def validation(self, corpus: Corpus, features: Path) -> list[LabelledVideo]:
        """Load the videos that its answers are scored on; features: the folder of an extraction."""
        tasks = [task_by_key(key) for key in self.tasks]
        return load_videos(corpus, features, tasks, VALIDATION, gaps=self.segmenting.gaps)

    def predict(self, crops: CropFeatures, frames: int) -> Outputs:
        """Answer the frames 1..N of a video, crop or not, as `affserve infer` does: (N, K) by task."""
        features = fill_gaps(crops, np.arange(1, frames + 1), self.segmenting.gaps)
        return processed(predict_video(self.model, features, self.segmenting), self.processing, self.labels)


def load_served_heads(
    paths: Sequence[Path], encoder: str, device: str = "cpu", postprocess: str | None = None
) -> list[ServedHead]:
    """Load heads; CheckpointError unless all fit the encoder and no two answer one task.

    encoder: fingerprint of the encoder that computed the features. postprocess: file of what is made of the answers, or
    "none"; None: what the heads declare.
    """
    heads: list[ServedHead] = []
    for path in paths:
        model, checkpoint = load_head(path)
        provenance = checkpoint.provenance
        check_fits(checkpoint, encoder)
        taken = {key for head in heads for key in head.tasks}
        for key in model.config.tasks:
            if key in taken:
                raise CheckpointError(f"{path} answers {key}, and so does another head; name one head a task")
        window = provenance.window_frames or WINDOW_FRAMES
        stride = provenance.stride_frames or min(STRIDE_FRAMES, window)
        gaps = provenance.training.get("gaps") or HOLD
        segmenting = Segmenting(window=window, stride=stride, gaps=gaps, device=device)
        head = ServedHead(
            model=model.to(device),
            segmenting=segmenting,
            trained_on=provenance.trained_on,
            processing=checkpoint.processing,
        )
        heads.append(head)
    labels = {key: names for head in heads for key, names in head.labels.items()}
    chosen = chosen_processing(postprocess, labels, [head.processing for head in heads])
    return [replace(one, processing={key: chosen[key] for key in one.tasks if key in chosen}) for one in heads]


def evaluate_heads(
    heads: Sequence[ServedHead], corpus: Corpus, features: Path, report: Path | None = None
) -> dict[str, Scores]:
    """Return the scores of both validators on the validation set.

    features: the folder of an extraction. report: folder for the report on the official protocol's
    frames, and for `scores.json` with both protocols. A protocol that finds no frame to score has empty scores.
    """
    arrays: dict[str, list[dict[str, Any]]] = {name: [{}, {}, {}, {}] for name in PROTOCOLS}  # as in Validation
    for head in heads:
        videos = head.validation(corpus, features)
        predicted = [predict_segments(head.model, video.features(), head.segmenting) for video in videos]
        found = judge(videos, predicted, head.segmenting, head.tasks, head.processing)
        for protocol, four in found.arrays.items():
            for joined, part in zip(arrays[protocol], four, strict=True):
                joined.update(part)
    scores = {protocol: score(*four) for protocol, four in arrays.items()}
    if report:
        write_report(report, *arrays[OFFICIAL])
        write_file(report / SCORES_FILE, (json.dumps(as_document(scores), indent=2) + "\n").encode())
    return scores


def as_document(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return scores by protocol for JSON."""
    return {
        protocol: {"scores": one.summary(), **{name: dict(getattr(one, name)) for name in KEPT}}
        for protocol, one in scores.items()
    }


class TrainedModel:
    """An encoder, its heads, and a corpus whose features are computed as far as they are asked for."""

    def __init__(
        self,
        encoder: Path,
        heads: Sequence[Path],
        corpus: Corpus,
        store: Path,
        device: str,
        progress: Progress,
        postprocess: str | None = None,
    ) -> None:
        """Load checkpoints that belong together; progress: called with frames done and to do as features come.

        postprocess: see load_served_heads.
        """
        check_device(device)
        self._encoder, checkpoint = load_encoder(encoder)
        self._fingerprint = checkpoint.fingerprint
        self._heads = load_served_heads(heads, checkpoint.fingerprint, device, postprocess)
        self._paths = heads
        self._corpus, self._store, self._device, self._progress = corpus, store, device, progress
        self.tasks = tuple(key for head in self._heads for key in head.tasks)  # keys of all that is answered
        self.trained_on = tuple(sorted({head.trained_on for head in self._heads}))  # names of corpora

    def features(self, videos: Sequence[str] | None = None) -> Path:
        """Compute what is missing of some videos' features, labelled or not, and return the folder.

        None: of the validation set's.
        """
        if videos is None:
            videos = self._corpus.part_videos([task_by_key(key) for key in self.tasks], VALIDATION)
        done = extract(
            self._encoder,
            self._fingerprint,
            self._corpus,
            self._store,
            device=self._device,
            progress=self._progress,
            videos=videos,
        )
        return done.warn().folder

    def evaluate(self, report: Path | None) -> dict[str, Scores]:
        """Return both validators' scores on the validation set; see evaluate_heads."""
        return evaluate_heads(self._heads, self._corpus, self.features(), report)

    def tune(self, folds: int) -> dict[str, Gain]:
        """Tune thresholds and biases on the validation set, declare in the checkpoints what gains; return the gains."""
        gains: dict[str, Gain] = {}
        features = self.features()
        for path, head in zip(self._paths, self._heads, strict=True):
            declared, found = tune(self._answered(head, features), head.processing, folds)
            save_processing(path, declared)
            gains |= found
        return gains

    def _answered(self, head: ServedHead, features: Path) -> list[AnsweredVideo]:
        return [
            AnsweredVideo(
                person=video.person,
                outputs=predict_video(head.model, video.features(), head.segmenting),
                truth=video.truth,
                valid=video.valid,
            )
            for video in head.validation(self._corpus, features)
        ]

    def fill(self, templates: Sequence[tuple[Template, Path]], longest_tail: int) -> Iterator[str]:
        """Fill templates, each to its target; yield a line about each that is done.

        All are checked before the first is filled. The corpus must know of the templates' videos.
        """
        for template, _ in templates:
            if template.task.key not in self.tasks:
                answered = ", ".join(self.tasks)
                raise DataError(f"{template.path} asks for {template.task.key}; the heads answer {answered}")
            check_fillable(template, self._last_crop, longest_tail)
        store = FeatureStore(self.features([video for template, _ in templates for video in template.rows_of()]))
        for template, target in templates:
            head = next(head for head in self._heads if template.task.key in head.tasks)
            rows = fill_template(template, partial(_predict, head, store), target)
            yield f"{target}: {template.task.title}, {rows} rows of {len(template.rows_of())} videos"

    def _last_crop(self, video: str) -> int | None:
        return int(self._corpus.crop_numbers(video).max(initial=0)) or None


def _predict(head: ServedHead, store: FeatureStore, video: str, frames: int) -> Outputs:
    crops = store.crops(video)
    if not len(crops.numbers):
        raise DataError(f"{video}: none of its crops can be decoded; replace them")
    # A video is answered as a whole, however few of its frames a template asks for.
    return head.predict(crops, max(frames, int(crops.numbers[-1])))
