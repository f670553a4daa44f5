"""The whole study behind the paper's two tables, run by run.

Runs that are finished are not done again, a run that was interrupted goes on, a run that fails is reported and the
others go on. The tables are written anew after every run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from affserve.train.corpus.affwild2 import Corpus
from affserve.train.corpus.folds import OFFICIAL_FOLD
from affserve.train.errors import AffserveError, TrainingStopped
from affserve.train.evaluation.scores import OFFICIAL
from affserve.train.files import sole_user, write_file
from affserve.train.study.config import ABLATIONS, FULL, INITIAL, STREAMS, StudyConfig, Variant
from affserve.train.study.notes import notes_of, warnings_of
from affserve.train.study.runs import Runs, Summaries, readable
from affserve.train.study.tables import RunScores, Tables, as_document, as_markdown
from affserve.train.trainer.log import readable_s

MARKDOWN_FILE, JSON_FILE = "tables.md", "tables.json"
# What a run may fail of without the next one failing too: bad data, a full disk, too little memory, a bad combination.
RUN_ERRORS = (AffserveError, OSError, RuntimeError, ValueError)
ALREADY_DONE_S = 1.0  # a run that takes less has found its result in place: its time tells nothing of the others
LONG_KINDS = ("encoder", "features", "head")  # without the time of one of these no estimate is worth much


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of the plan."""

    name: str
    kind: str  # runs of a kind take about equally long
    do: Callable[[], str]  # returns what to tell
    needs: str | None = None  # name of the step whose result it takes


@dataclass(kw_only=True)
class Study:
    """The plan of a study and what has come of it so far."""

    corpus: Corpus
    config: StudyConfig
    out: Path  # folder
    tell: Callable[[str], None]  # takes a line for whoever watches
    scores: list[RunScores] = field(default_factory=list)
    ensemble: Summaries = field(default_factory=dict)
    constant: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # step -> why

    def __post_init__(self) -> None:
        self._runs = Runs(corpus=self.corpus, config=self.config, out=self.out)

    def run(self) -> Tables:
        """Do every step, write the tables after each and return them at the end."""
        self.out.mkdir(parents=True, exist_ok=True)
        with sole_user(self.out):
            return self._run()

    def _run(self) -> Tables:
        steps = self.plan()
        durations: dict[str, list[float]] = {}
        for number, step in enumerate(steps, start=1):
            started = time.monotonic()
            told = self._attempt(step)
            seconds = time.monotonic() - started
            if step.name not in self.failures and seconds > ALREADY_DONE_S:
                durations.setdefault(step.kind, []).append(seconds)
            left = time_left(steps[number:], durations)
            self.tell(f"[{number}/{len(steps)}] {step.name}: {told} ({seconds:.0f} s; {left})")
            self._write(self.tables())
        return self.tables()

    def _attempt(self, step: Step) -> str:
        if step.needs in self.failures:
            self.failures[step.name] = f"needs {step.needs}, which failed"
        else:
            try:
                return step.do()
            except TrainingStopped:
                raise
            except RUN_ERRORS as error:
                self.failures[step.name] = " ".join(f"{type(error).__name__}: {error}".split())
        return f"FAILED: {self.failures[step.name]}"

    def tables(self) -> Tables:
        """Return the tables as far as the runs have come."""
        return Tables(
            corpus=self.corpus.name,
            runs=tuple(self.scores),
            folds=self.config.folds,
            constant=self.constant,
            ensemble=self.ensemble,
            warnings=warnings_of(self.corpus),
            notes=notes_of(self.corpus, self.config),
            failures=tuple(f"{name}: {why}" for name, why in self.failures.items()),
        )

    def _write(self, tables: Tables) -> None:
        write_file(self.out / MARKDOWN_FILE, as_markdown(tables).encode())
        write_file(self.out / JSON_FILE, (json.dumps(as_document(tables), indent=2) + "\n").encode())

    def plan(self) -> list[Step]:
        """Return all steps in order: fold 0 and the ablations first, they fill the first row and the second table."""
        shared = not self.config.encoder_per_fold
        steps = self._encoder(OFFICIAL_FOLD) if shared or OFFICIAL_FOLD in self.config.folds else []
        if OFFICIAL_FOLD in self.config.folds:
            steps += self._heads(FULL, OFFICIAL_FOLD)
            steps.append(Step(name=_encoder_title(INITIAL), kind="initial encoder", do=self._runs.initial_encoder))
            steps.append(self._features(INITIAL))
            steps += [step for variant in (*ABLATIONS, *STREAMS) for step in self._heads(variant, OFFICIAL_FOLD)]
        for fold in (fold for fold in self.config.folds if fold != OFFICIAL_FOLD):
            steps += [] if shared else self._encoder(fold)
            steps += self._heads(FULL, fold)
        if shared and len(self.config.folds) > 1:
            steps += [
                Step(name=f"ensemble of the folds' heads, {name}", kind="ensemble", do=partial(self._ensemble, name))
                for name in self.config.heads
            ]
        return steps

    def _encoder(self, fold: int) -> list[Step]:
        name = f"fold{fold}"
        train = Step(name=_encoder_title(name), kind="encoder", do=partial(self._runs.encoder, fold))
        constant = Step(name="constant guess", kind="constant", do=self._constant, needs=_features_title(name))
        return [train, self._features(name), *([constant] if fold == OFFICIAL_FOLD else [])]

    def _features(self, encoder: str) -> Step:
        do = partial(self._runs.features, encoder)
        return Step(name=_features_title(encoder), kind="features", do=do, needs=_encoder_title(encoder))

    def _heads(self, variant: Variant, fold: int) -> list[Step]:
        return [
            Step(
                name=f"{variant.title}, fold {fold}, {name}, seed {seed}",
                kind=f"head {variant.key} {name}",
                do=partial(self._head, variant, fold, name, seed),
                needs=_features_title(self.config.encoder_of(variant, fold)),
            )
            for name in self.config.heads
            for seed in self.config.seeds
        ]

    def _head(self, variant: Variant, fold: int, name: str, seed: int) -> str:
        scores = self._runs.head(variant, fold, name, seed)
        self.scores.append(RunScores(variant=variant.key, fold=fold, seed=seed, scores=scores))
        return readable(scores[OFFICIAL])

    def _constant(self) -> str:
        self.constant = self._runs.constant()
        return readable(self.constant)

    def _ensemble(self, name: str) -> str:
        scores = self._runs.ensemble(name)
        for protocol, summary in scores.items():
            self.ensemble.setdefault(protocol, {}).update(summary)
        return readable(scores[OFFICIAL])


def _encoder_title(name: str) -> str:
    return "encoder without fine-tuning" if name == INITIAL else f"encoder of fold {name.removeprefix('fold')}"


def _features_title(name: str) -> str:
    return f"features of the {_encoder_title(name)}"


def time_left(steps: Sequence[Step], durations: dict[str, list[float]]) -> str:
    """Estimate the time that steps will take from the runs of their kind, or of a like kind, so far."""
    if not steps:
        return "done"
    means = {kind: sum(values) / len(values) for kind, values in durations.items()}
    seconds, unknown = 0.0, 0
    for step in steps:
        alike = [mean for kind, mean in means.items() if kind.split()[0] == step.kind.split()[0]]
        seconds += means.get(step.kind, sum(alike) / len(alike) if alike else 0.0)
        unknown += step.kind.split()[0] in LONG_KINDS and not alike
    return f"about {readable_s(seconds)} left" if seconds and not unknown else "time left not known yet"
