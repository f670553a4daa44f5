"""How large a study is: the paper's sizes, or the demo's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from affserve.train.affwild2 import HOLD_OUTS
from affserve.train.clip_encoder import DEMO_ARCHITECTURE
from affserve.train.finetune import FinetuneConfig
from affserve.train.fit import FitConfig
from affserve.train.labels import TASKS
from affserve.train.study_runs import StudyConfig
from affserve.train.temporal_head import TemporalHeadConfig, demo_head_config

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
