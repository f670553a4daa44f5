"""What a study runs and how large: the paper's folds, its ablations, and the paper's sizes or the demo's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from affserve.train.corpus.affwild2 import HOLD_OUTS
from affserve.train.corpus.folds import FOLDS, OFFICIAL_FOLD
from affserve.train.labels import TASKS
from affserve.train.models.encoder import DEMO_ARCHITECTURE
from affserve.train.models.temporal_head import TemporalHeadConfig, demo_head_config, gru_of_similar_cost
from affserve.train.stages.finetune import FinetuneConfig
from affserve.train.stages.fit import FitConfig

STREAM_CONTEXT_FRAMES = 38  # 8 layers that look so far back see about as much as a window of 300 holds
STREAM_LOOKAHEAD_FRAMES = 10


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of Table 2: an ablation of the paper's, or a head that streams."""

    key: str
    title: str  # as the paper says it
    fine_tuned: bool = True  # features of the fine-tuned encoder, or of the one it started from
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the head's configuration

    def applied(self, head: TemporalHeadConfig) -> TemporalHeadConfig:
        """Return a head's configuration with what the variant changes."""
        changed = replace(head, **self.changes)
        return gru_of_similar_cost(changed) if changed.recurrent else changed


FULL = Variant(key="full", title="full model")
WITHOUT_FINE_TUNING = Variant(key="without-fine-tuning", title="without fine-tuning", fine_tuned=False)
WITHOUT_TCN = Variant(key="without-tcn", title="without TCN", changes={"use_tcn": False})
WITHOUT_ENCODER = Variant(key="without-encoder", title="without temporal encoder", changes={"use_encoder": False})
ABLATIONS = (WITHOUT_FINE_TUNING, WITHOUT_TCN, WITHOUT_ENCODER)
_STREAM: dict[str, Any] = {"causal": True, "context_frames": STREAM_CONTEXT_FRAMES}
STREAM = Variant(key="stream", title=f"stream, {STREAM_CONTEXT_FRAMES} frames a layer", changes=_STREAM)
STREAM_LATE = Variant(
    key="stream-late",
    title=f"the same, {STREAM_LOOKAHEAD_FRAMES} frames late",
    changes={**_STREAM, "lookahead_frames": STREAM_LOOKAHEAD_FRAMES},
)
GRU = Variant(key="gru", title="stream, a GRU", changes={"causal": True, "recurrent": True})
STREAMS = (STREAM, STREAM_LATE, GRU)  # rows of ours: the paper has none
INITIAL = "initial"  # name of the encoder that fine-tuning starts from


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What the tables are made of."""

    encoder: FinetuneConfig  # stage 1
    heads: Mapping[str, FitConfig]  # stage 2, by name of the head: one a task, or one for all
    folds: tuple[int, ...] = FOLDS
    seeds: tuple[int, ...] = (0, 1, 2)  # of the heads
    encoder_per_fold: bool = False  # an encoder for each fold, or that of fold 0 for all

    def __post_init__(self) -> None:
        for name in ("heads", "folds", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one")
        unknown = [fold for fold in self.folds if fold not in FOLDS]
        if unknown:
            raise ValueError(f"folds holds {unknown}; expected some of {', '.join(map(str, FOLDS))}")
        object.__setattr__(self, "folds", tuple(sorted(set(self.folds))))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))

    @property
    def hold_out(self) -> str:
        """Whose validation videos are not trained on."""
        return self.encoder.hold_out

    def encoder_of(self, variant: Variant, fold: int) -> str:
        """Return the name of the encoder whose features a head is trained on."""
        if not variant.fine_tuned:
            return INITIAL
        return f"fold{fold if self.encoder_per_fold else OFFICIAL_FOLD}"


MULTI_TASK = "multi_task"
QUICK_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class StudySizes:
    """What may be chosen of a study's sizes; None: the default of the paper's sizes, or of the demo's."""

    quick: bool = False  # demo sizes
    multi_task: bool | None = None  # one head for all tasks, or one a task; None: with demo sizes one for all
    hold_out: str = "task"  # whose validation videos are not trained on: the task's own, or any task's
    architecture: str | None = None  # open_clip's name
    pretrained: str | None = None  # open_clip's tag, a file, or "none" for random weights
    encoder_epochs: int | None = None  # of stage 1
    epochs: int | None = None  # of stage 2
    workers: int = 0  # processes that read crops for stage 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.hold_out not in HOLD_OUTS:
            raise ValueError(f"hold_out is {self.hold_out!r}; expected one of {', '.join(HOLD_OUTS)}")


def study_config(
    sizes: StudySizes, *, folds: tuple[int, ...], seeds: tuple[int, ...], encoder_per_fold: bool = False
) -> StudyConfig:
    """Return the configuration of a whole study."""
    multi_task = sizes.quick if sizes.multi_task is None else sizes.multi_task
    names = [MULTI_TASK] if multi_task else list(TASKS)
    return StudyConfig(
        encoder=_encoder(sizes),
        heads={name: _head(sizes, name) for name in names},
        folds=folds,
        seeds=seeds,
        encoder_per_fold=encoder_per_fold,
    )


def _encoder(sizes: StudySizes) -> FinetuneConfig:
    base = FinetuneConfig(device=sizes.device, hold_out=sizes.hold_out, workers=sizes.workers)
    if sizes.quick:
        # It starts from random weights and has no features to fall back on: it learns from all three label sets.
        base = replace(
            base,
            architecture=DEMO_ARCHITECTURE,
            pretrained=None,
            tasks=tuple(TASKS),
            epochs=3,
            batch=64,
            lr=1e-3,
            frame_step=2,
        )
    pretrained = base.pretrained if sizes.pretrained is None else sizes.pretrained
    return replace(
        base,
        architecture=sizes.architecture or base.architecture,
        pretrained=None if pretrained == "none" else pretrained,
        epochs=sizes.encoder_epochs or base.epochs,
    )


def _head(sizes: StudySizes, name: str) -> FitConfig:
    tasks = tuple(TASKS) if name == MULTI_TASK else (name,)
    # The paper's epochs, and its windows: full ones only.
    base = FitConfig(head=TemporalHeadConfig(tasks=tasks), full_only=True, device=sizes.device, hold_out=sizes.hold_out)
    if sizes.quick:
        # The TCN may look ahead, as in the demo: a whole video is there when it is served.
        head = demo_head_config(tasks=tasks, causal=False, dropout=0.2)
        base = replace(base, head=head, epochs=QUICK_EPOCHS, batch=4, lr=1e-3, stride=150, full_only=False)
    return base if sizes.epochs is None else replace(base, epochs=sizes.epochs)
