"""The paper's Table 1 and Table 2, and ours beside them, as Markdown and as JSON.

In come the scores of finished runs, out go the tables with the spread over seeds. The paper's figures stand here and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affserve.train.corpus.folds import FOLDS, OFFICIAL_FOLD
from affserve.train.evaluation.scores import OFFICIAL, PAPER, PROTOCOLS
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL
from affserve.train.study.config import (
    ABLATIONS,
    FULL,
    STREAMS,
    WITHOUT_ENCODER,
    WITHOUT_FINE_TUNING,
    WITHOUT_TCN,
    Variant,
)

_ROWS_2 = (*ABLATIONS, FULL, *STREAMS)
VALENCE, AROUSAL = VALENCE_AROUSAL.names
METRICS_1 = {VALENCE: "valence CCC", AROUSAL: "arousal CCC", EXPRESSION.key: "EXPR F1", ACTION_UNITS.key: "AU F1"}
METRICS_2 = {VALENCE_AROUSAL.key: "VA mean CCC", EXPRESSION.key: "EXPR F1", ACTION_UNITS.key: "AU F1"}

# Zhou, Ling, Cai: "Emotion Recognition with CLIP and Sequential Learning", arXiv 2503.09929, validation sets.
PAPER_TABLE_1: Mapping[str, tuple[float, ...]] = {  # by metric, folds 0 to 4
    VALENCE: (0.5615, 0.6102, 0.5025, 0.5712, 0.5504),
    AROUSAL: (0.6125, 0.5782, 0.6231, 0.6712, 0.6298),
    EXPRESSION.key: (0.4651, 0.4274, 0.4562, 0.4485, 0.4702),
    ACTION_UNITS.key: (0.5801, 0.5461, 0.5120, 0.5642, 0.5719),
}
PAPER_BASELINE_1 = {VALENCE: 0.24, AROUSAL: 0.20, EXPRESSION.key: 0.23, ACTION_UNITS.key: 0.39}
PAPER_TABLE_2: Mapping[str, Mapping[str, float]] = {  # by variant, on fold 0
    variant.key: dict(zip(METRICS_2, figures, strict=True))
    for variant, figures in (
        (WITHOUT_FINE_TUNING, (0.5049, 0.4123, 0.5274)),
        (WITHOUT_TCN, (0.5698, 0.4473, 0.5621)),
        (WITHOUT_ENCODER, (0.5712, 0.4528, 0.5724)),
        (FULL, (0.5870, 0.4651, 0.5801)),
    )
}
PAPER_BASELINE_2 = {VALENCE_AROUSAL.key: 0.220, EXPRESSION.key: 0.230, ACTION_UNITS.key: 0.390}


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """What one finished head achieved: the challenge's numbers by protocol."""

    variant: str  # key of a Variant
    fold: int
    seed: int
    scores: Mapping[str, Mapping[str, float]]  # protocol -> Scores.summary()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: the values of all seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None while no run has finished."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (of a sample, n - 1); None with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def text(self) -> str:
        """Render it as a table shows it."""
        if self.mean is None:
            return "–"
        return f"{self.mean:.4f}" if self.spread is None else f"{self.mean:.4f} ± {self.spread:.4f}"

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"mean": self.mean, "standard_deviation": self.spread, "seeds": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Everything the two documents tell."""

    corpus: str  # its name
    runs: Sequence[RunScores]
    folds: tuple[int, ...] = FOLDS
    constant: Mapping[str, float]  # scores of a constant guess on the official validation set
    ensemble: Mapping[str, Mapping[str, float]]  # protocol -> scores of the mean of the folds' heads, on fold 0
    warnings: Sequence[str] = ()  # printed first, in bold
    notes: Sequence[str] = ()  # what was different from the paper, and how to read the tables
    failures: Sequence[str] = ()

    def cell(self, protocol: str, variant: str, fold: int, metric: str) -> Cell:
        """Collect one number over the seeds."""
        chosen = (run for run in self.runs if (run.variant, run.fold) == (variant, fold))
        return Cell(values=tuple(v for run in chosen if (v := run.scores.get(protocol, {}).get(metric)) is not None))


def as_document(tables: Tables) -> dict[str, Any]:
    """Return both tables for JSON."""
    return {
        "schema": 1,
        "corpus": tables.corpus,
        "table_1": {protocol: _document_1(tables, protocol) for protocol in PROTOCOLS},
        "table_2": {protocol: _document_2(tables, protocol) for protocol in PROTOCOLS},
        "baseline": {"paper_table_1": PAPER_BASELINE_1, "paper_table_2": PAPER_BASELINE_2},
        "constant_guess": dict(tables.constant),
        "ensemble": {protocol: dict(scores) for protocol, scores in tables.ensemble.items()},
        "warnings": list(tables.warnings),
        "notes": list(tables.notes),
        "failures": list(tables.failures),
    }


def _document_1(tables: Tables, protocol: str) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "ours": {metric: tables.cell(protocol, FULL.key, fold, metric).document() for metric in METRICS_1},
            "paper": {metric: PAPER_TABLE_1[metric][fold] for metric in METRICS_1},
        }
        for fold in tables.folds
    ]


def _document_2(tables: Tables, protocol: str) -> list[dict[str, Any]]:
    return [
        {
            "variant": variant.key,
            "ours": {
                metric: tables.cell(protocol, variant.key, OFFICIAL_FOLD, metric).document() for metric in METRICS_2
            },
            "paper": dict(PAPER_TABLE_2.get(variant.key, {})),
        }
        for variant in _ROWS_2
    ]


def as_markdown(tables: Tables) -> str:
    """Render both tables for people."""
    lines = ["# The paper's tables", "", f"Corpus: {tables.corpus}. Validation videos; ours beside the paper's.", ""]
    lines += [line for warning in tables.warnings for line in (f"**{warning}**", "")]
    for protocol in PROTOCOLS:
        lines += [f"## Table 1: folds ({_PROTOCOL_TITLES[protocol]})", "", *_table_1(tables, protocol), ""]
        lines += [
            f"## Table 2: ablations, and heads that stream, on fold 0 ({_PROTOCOL_TITLES[protocol]})",
            "",
            *_table_2(tables, protocol),
            "",
        ]
    if tables.failures:
        lines += ["## Runs that failed", "", *(f"- {failure}" for failure in tables.failures), ""]
    lines += ["## How to read them", "", *(f"- {note}" for note in tables.notes)]
    return "\n".join(lines) + "\n"


_PROTOCOL_TITLES = {
    OFFICIAL: "`official`: each labelled frame once",
    PAPER: "`paper`: full windows only, shared frames twice",
}


def _table_1(tables: Tables, protocol: str) -> list[str]:
    lines = _heading("fold", METRICS_1)
    for fold in tables.folds:
        ours = [tables.cell(protocol, FULL.key, fold, metric).text() for metric in METRICS_1]
        title = "0 (official split)" if fold == OFFICIAL_FOLD else str(fold)
        lines.append(_row(title, ours, [f"{PAPER_TABLE_1[metric][fold]:.4f}" for metric in METRICS_1]))
    means = [_mean_of_folds(tables, protocol, metric) for metric in METRICS_1]
    theirs = [f"{np.mean([PAPER_TABLE_1[metric][fold] for fold in tables.folds]):.4f}" for metric in METRICS_1]
    lines.append(_row("mean of these folds", means, theirs))
    if protocol in tables.ensemble:
        scores = tables.ensemble[protocol]
        lines.append(_row("mean of the folds' heads, fold 0", [_number(scores.get(m)) for m in METRICS_1], None))
    if protocol == OFFICIAL:
        lines.append(_row("constant guess, fold 0", [_number(tables.constant.get(m)) for m in METRICS_1], None))
    lines.append(_row("challenge baseline", None, [f"{PAPER_BASELINE_1[metric]:.2f}" for metric in METRICS_1]))
    return lines


def _table_2(tables: Tables, protocol: str) -> list[str]:
    lines = _heading("option", METRICS_2)
    lines.append(_row("challenge baseline", None, [f"{PAPER_BASELINE_2[metric]:.3f}" for metric in METRICS_2]))
    for variant in _ROWS_2:
        cells = {metric: tables.cell(protocol, variant.key, OFFICIAL_FOLD, metric) for metric in METRICS_2}
        full = {metric: tables.cell(protocol, FULL.key, OFFICIAL_FOLD, metric).mean for metric in METRICS_2}
        ours = [cell.text() + _change(cell.mean, full[metric], variant.key) for metric, cell in cells.items()]
        lines.append(_row(variant.title, ours, _papers_row(variant)))
    return lines


def _papers_row(variant: Variant) -> list[str] | None:
    paper = PAPER_TABLE_2.get(variant.key)
    if paper is None:
        return None
    return [
        f"{paper[metric]:.4f}" + _change(paper[metric], PAPER_TABLE_2[FULL.key][metric], variant.key)
        for metric in METRICS_2
    ]


def _change(value: float | None, full: float | None, variant: str) -> str:
    if value is None or full is None or variant == FULL.key:
        return ""
    return f" ({value - full:+.3f})"


def _mean_of_folds(tables: Tables, protocol: str, metric: str) -> str:
    means = [tables.cell(protocol, FULL.key, fold, metric).mean for fold in tables.folds]
    there = [mean for mean in means if mean is not None]
    return f"{np.mean(there):.4f}" if len(there) == len(means) else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _heading(first: str, metrics: Mapping[str, str]) -> list[str]:
    titles = [title for name in metrics.values() for title in (name, "paper")]
    return [f"| {first} | {' | '.join(titles)} |", "|---|" + "--:|" * len(titles)]


def _row(title: str, ours: Sequence[str] | None, paper: Sequence[str] | None) -> str:
    width = len(ours or paper or ())
    pairs = zip(ours or [""] * width, paper or [""] * width, strict=True)
    return f"| {title} | {' | '.join(cell for pair in pairs for cell in pair)} |"
