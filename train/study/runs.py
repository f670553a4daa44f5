"""The runs of a study, each in a folder of its own: fine-tune, compute features, train a head, join heads.

Every method may be called again after it was interrupted or finished: the stages go on by themselves and what is there
is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch  # noqa: TID253 - this file is about it

from affserve.train.corpus.affwild2 import VALIDATION, Corpus
from affserve.train.corpus.folds import OFFICIAL_FOLD, fold_corpus
from affserve.train.errors import CheckpointError
from affserve.train.evaluation.scores import Scores, constant_guess, score
from affserve.train.evaluation.trained_model import evaluate_heads, load_served_heads
from affserve.train.features.extraction import ExtractConfig, extract
from affserve.train.features.videos import labels_of, load_videos
from affserve.train.labels import task_by_key
from affserve.train.models.checkpoint import fingerprint_of, load_encoder, load_head, save_encoder, save_head
from affserve.train.models.encoder import create_encoder
from affserve.train.models.temporal_head import HeadEnsemble, TemporalHead
from affserve.train.provenance import Provenance
from affserve.train.stages.finetune import finetune
from affserve.train.stages.fit import fit
from affserve.train.study.config import FULL, INITIAL, StudyConfig, Variant
from affserve.train.trainer.log import read_log
from affserve.train.trainer.run_folder import RunFolder

LOG_FILE = "study.log"  # what the stages say while they train

Summaries = dict[str, dict[str, float]]  # protocol -> Scores.summary()


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Does the runs of a study below one folder."""

    corpus: Corpus
    config: StudyConfig
    out: Path
    _folds: dict[int, Corpus] = field(default_factory=dict)  # as far as they were needed

    def encoder(self, fold: int) -> str:
        """Fine-tune an encoder on a fold's training set; return what to tell of it."""
        scores = finetune(self._fold(fold), self.config.encoder, self._encoder_path(f"fold{fold}"), self._log)
        return "single frames: " + readable(scores.summary())

    def initial_encoder(self) -> str:
        """Save the encoder as fine-tuning finds it."""
        target = self._encoder_path(INITIAL)
        if not target.exists():
            torch.manual_seed(self.config.encoder.seed)
            encoder = create_encoder(self.config.encoder.architecture, self.config.encoder.pretrained)
            # The weights were trained on what open_clip's tag says, or on nothing; heads know what they learned from.
            training = {"pretrained": self.config.encoder.pretrained}
            save_encoder(target, encoder, Provenance(trained_on=self.corpus.name, training=training))
        return "saved"

    def features(self, encoder: str) -> str:
        """Compute an encoder's features of every crop."""
        model, checkpoint = load_encoder(self._encoder_path(encoder))
        store = self.out / "features"
        base = self.config.encoder
        reading = ExtractConfig(workers=max(base.workers, ExtractConfig().workers))
        extract(model, checkpoint.fingerprint, self.corpus, store, device=base.device, config=reading).warn()
        return "computed"

    def head(self, variant: Variant, fold: int, name: str, seed: int) -> Summaries:
        """Train one head and return what it achieves on the fold's validation set, by protocol."""
        target = self.head_path(variant, fold, name, seed)
        base = self.config.heads[name]
        config = replace(base, head=variant.applied(base.head), seed=seed)
        features = self._features_of(self.config.encoder_of(variant, fold))
        fit(self._fold(fold), features, config, target, self._log)
        return scores_of_best_epoch(target)

    def ensemble(self, name: str) -> Summaries:
        """Join the full model's heads of all folds into one checkpoint and return what it achieves on fold 0."""
        members = [self.head_path(FULL, fold, name, self.config.seeds[0]) for fold in self.config.folds]
        loaded = [load_head(path) for path in members]
        heads = [head for head, _ in loaded if isinstance(head, TemporalHead)]
        first = loaded[0][1].provenance
        features = self._features_of(self.config.encoder_of(FULL, OFFICIAL_FOLD))
        training = {
            "members": [
                {"fold": fold, "fingerprint": one.fingerprint, "metrics": one.provenance.metrics}
                for fold, (_, one) in zip(self.config.folds, loaded, strict=True)
            ],
            "gaps": first.training.get("gaps"),  # inference fills gaps as training did
            "note": "the official validation videos were trained on by the heads of folds other than 0",
        }
        target = self.out / "ensemble" / name
        save_head(target, HeadEnsemble(heads), replace(first, data={}, metrics={}, training=training))
        device = self.config.heads[name].device
        scores = evaluate_heads(load_served_heads([target], features.name, device), self.corpus, features)
        return {protocol: one.summary() for protocol, one in scores.items()}

    def constant(self) -> dict[str, float]:
        """Return what the best constant guess achieves on the official validation set."""
        features = self._features_of(self.config.encoder_of(FULL, OFFICIAL_FOLD))
        summary: dict[str, float] = {}
        for key in (key for config in self.config.heads.values() for key in config.head.tasks):
            truth, valid = labels_of(load_videos(self.corpus, features, [task_by_key(key)], VALIDATION), [key])
            summary |= score(constant_guess(truth, valid), truth, valid).summary()
        return summary

    def head_path(self, variant: Variant, fold: int, name: str, seed: int) -> Path:
        """Return the checkpoint of a head."""
        return self.out / "heads" / variant.key / f"fold{fold}" / name / f"seed{seed}"

    def _encoder_path(self, name: str) -> Path:
        return self.out / "encoders" / name

    def _fold(self, fold: int) -> Corpus:
        if fold not in self._folds:
            self._folds[fold] = fold_corpus(self.corpus, fold)
        return self._folds[fold]

    def _features_of(self, encoder: str) -> Path:
        return self.out / "features" / fingerprint_of(self._encoder_path(encoder))

    def _log(self, text: str) -> None:
        with (self.out / LOG_FILE).open("a") as file:
            file.write(text + "\n")


def scores_of_best_epoch(target: Path) -> Summaries:
    """Return what a finished head's log says of the epoch that became its checkpoint, by protocol."""
    log = RunFolder(target).log
    best = [line for line in read_log(log) if line["kind"] == "epoch" and line["best"]]
    if not best:
        raise CheckpointError(f"{log} tells of no finished epoch; remove {target} and its run to train it again")
    return {protocol: Scores(**one).summary() for protocol, one in best[-1]["scores"].items()}


def readable(summary: Mapping[str, float]) -> str:
    """Render the numbers of a summary in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in summary.items())
