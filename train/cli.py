"""The command line of training: `affserve train` makes checkpoints of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affserve.train.study_cli import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from affserve.train.balance import BalanceConfig
    from affserve.train.evaluation import Scores
    from affserve.train.temporal_head import TemporalHeadConfig

STOPPED_EXIT_CODE = 128 + 15  # of a process that SIGTERM ended

train_app = typer.Typer(help="Train the two stages of the model.", no_args_is_help=True)
train_app.command()(tables)

CorpusFolder = Annotated[Path, typer.Argument(help="An Aff-Wild2 release, or the output of affserve data synth.")]
ImageRoots = Annotated[
    list[Path] | None, typer.Option(help="Folder of crop folders, besides cropped_aligned*; may be repeated.")
]
CheckpointFolder = Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")]
EncoderFolder = Annotated[Path, typer.Option(help="Checkpoint of affserve train encoder.")]
FeatureStore = Annotated[Path, typer.Option(help="Folder of the features; one folder an encoder below it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
MicroBatch = Annotated[
    int | None, typer.Option(min=1, help="Samples that go through the model at once.  [default: what fits 24 GB]")
]
Amp = Annotated[str, typer.Option(help="Autocast: none, bf16, fp16, or auto, by the device.")]
ClassWeights = Annotated[str, typer.Option(help="Of expressions: none, inverse_frequency or effective_number.")]
LabelSmoothing = Annotated[float, typer.Option(min=0, max=0.99, help="Share of an expression's label spread over all.")]
UnitWeights = Annotated[bool, typer.Option("--unit-weights", help="Weigh rare action units more.")]
HoldOut = Annotated[str, typer.Option(help="Not trained on: validation videos of any task, or of the same task.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Epochs without a better score before it ends.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read samples.")]
CheckpointEvery = Annotated[float, typer.Option(min=0, help="Seconds between saved states, besides one an epoch.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, whatever training is there.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Label set to train on; may be repeated.")]


@train_app.command()
def encoder(
    corpus: CorpusFolder,
    out: CheckpointFolder,
    image_root: ImageRoots = None,
    architecture: Annotated[str, typer.Option(help="open_clip's name; affserve-demo is small.")] = "ViT-B-32",
    pretrained: Annotated[str, typer.Option(help="open_clip's tag, a file of weights, or none.")] = "openai",
    task: Tasks = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Frames of an optimiser step, over all processes.")] = 256,
    micro_batch: MicroBatch = None,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-4,
    amp: Amp = "auto",
    augment: Annotated[bool, typer.Option(help="Turn, shift, scale, mirror and relight crops.")] = True,
    frame_step: Annotated[int, typer.Option(min=1, help="Use every n-th frame.")] = 1,
    class_weights: ClassWeights = "none",
    label_smoothing: LabelSmoothing = 0.0,
    unit_weights: UnitWeights = False,
    sampling: Annotated[str, typer.Option(help="uniform, or balanced: every expression equally often.")] = "uniform",
    hold_out: HoldOut = "any",
    patience: Patience = None,
    workers: Workers = 0,
    checkpoint_every_s: CheckpointEvery = 600.0,
    device: Device = "cpu",
    seed: int = 0,
    fresh: Fresh = False,
) -> None:
    """Stage 1: fine-tune the CLIP encoder on single frames; on the expressions, unless --task says otherwise.

    Stopped or killed, the same command goes on where it was. With several GPUs: torchrun --nproc-per-node 2 -m
    affserve.train encoder CORPUS --device cuda ...
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.finetune import FinetuneConfig, finetune
    from affserve.train.labels import EXPRESSION

    with _usage_errors():
        config = FinetuneConfig(
            architecture=architecture,
            pretrained=None if pretrained == "none" else pretrained,
            tasks=tuple(task or [EXPRESSION.key]),
            epochs=epochs,
            batch=batch,
            micro_batch=micro_batch,
            lr=lr,
            amp=amp,
            augment=augment,
            frame_step=frame_step,
            balance=_balance(class_weights, label_smoothing, unit_weights, sampling),
            hold_out=hold_out,
            patience=patience,
            workers=workers,
            checkpoint_every_s=checkpoint_every_s,
            device=device,
            seed=seed,
        )
    opened = open_corpus(corpus, image_root or ())
    _train(out, lambda: finetune(opened, config, out, _to_stderr, fresh=fresh))


@train_app.command()
def features(
    corpus: CorpusFolder,
    encoder: EncoderFolder,
    out: FeatureStore,
    image_root: ImageRoots = None,
    device: Device = "cpu",
    amp: Annotated[str, typer.Option(help="Autocast: none, bf16, fp16, or auto, by the device.")] = "none",
    batch: Annotated[int, typer.Option(min=1, help="Crops the encoder takes at once; 256 or more on a GPU.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode crops.")] = 2,
    rank: Annotated[int, typer.Option(envvar="RANK", help="This process among those that share the work.")] = 0,
    world: Annotated[int, typer.Option(envvar="WORLD_SIZE", help="Processes that share the work.")] = 1,
) -> None:
    """Between the stages: compute the features of every crop once; run again, it goes on where it stopped.

    Crops that cannot be decoded are named at the end; the exit code is then 1. To share the work, start one process per
    rank, or all of them by torchrun.
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.checkpoint import load_encoder
    from affserve.train.distributed import local_device
    from affserve.train.features import ExtractConfig, describe_unreadable, extract
    from affserve.train.progress_bar import progress_bar

    config = ExtractConfig(batch=batch, workers=workers, amp=amp, rank=rank, world=world)
    model, checkpoint = load_encoder(encoder)
    opened = open_corpus(corpus, image_root or ())
    with progress_bar("computing features") as progress:
        done = extract(
            model,
            checkpoint.fingerprint,
            opened,
            out,
            device=local_device(device),
            config=config,
            progress=progress,
            log=_to_stderr,
        )
    rate = f"{done.computed} computed in {done.seconds:.0f} s, {done.computed / max(done.seconds, 1e-9):.0f} a second"
    typer.echo(f"{done.folder}: features of {done.videos} videos, {done.frames} crops ({rate})")
    if done.unreadable:
        typer.echo(f"error: {describe_unreadable(done.unreadable)}", err=True)
        raise typer.Exit(1)


@train_app.command()
def head(
    corpus: CorpusFolder,
    encoder: EncoderFolder,
    features: FeatureStore,
    out: CheckpointFolder,
    task: Tasks = None,
    size: Annotated[str, typer.Option(help="paper, or demo for a CPU.")] = "paper",
    tcn: Annotated[bool, typer.Option(help="The temporal convolutions.")] = True,
    attention: Annotated[bool, typer.Option(help="The Transformer encoder.")] = True,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: as the paper, VA 40, EXPR 10, AU 30]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Windows of an optimiser step, over all processes.")] = 32,
    micro_batch: MicroBatch = None,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 3e-5,
    amp: Amp = "none",
    stride: Annotated[int, typer.Option(min=1, max=300, help="Frames between training windows.")] = 200,
    full_only: Annotated[bool, typer.Option(help="Train on full windows only, as the paper.")] = False,
    gaps: Annotated[str, typer.Option(help="Frames without a crop: hold, nearest, interpolate or mask.")] = "hold",
    validator: Annotated[str, typer.Option(help="Whose scores choose the best epoch: official, paper.")] = "official",
    class_weights: ClassWeights = "none",
    label_smoothing: LabelSmoothing = 0.0,
    unit_weights: UnitWeights = False,
    hold_out: HoldOut = "any",
    patience: Patience = None,
    workers: Workers = 0,
    checkpoint_every_s: CheckpointEvery = 600.0,
    device: Device = "cpu",
    seed: int = 0,
    fresh: Fresh = False,
) -> None:
    """Stage 2: train a temporal head over windows of features; for all tasks, unless --task says otherwise.

    Stopped or killed, the same command goes on where it was.
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.checkpoint import load_encoder
    from affserve.train.fit import FitConfig, fit

    with _usage_errors():
        config = FitConfig(
            head=_architecture(size, task, tcn, attention),
            epochs=epochs,
            batch=batch,
            micro_batch=micro_batch,
            lr=lr,
            amp=amp,
            stride=stride,
            full_only=full_only,
            gaps=gaps,
            validator=validator,
            balance=_balance(class_weights, label_smoothing, unit_weights),
            hold_out=hold_out,
            patience=patience,
            workers=workers,
            checkpoint_every_s=checkpoint_every_s,
            device=device,
            seed=seed,
        )
    _, checkpoint = load_encoder(encoder)
    opened = open_corpus(corpus)
    _train(out, lambda: fit(opened, features / checkpoint.fingerprint, config, out, _to_stderr, fresh=fresh))


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what a configuration says about its values into wrong usage."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _architecture(size: str, tasks: list[str] | None, tcn: bool, attention: bool) -> TemporalHeadConfig:
    from affserve.train.labels import TASKS
    from affserve.train.temporal_head import TemporalHeadConfig, demo_head_config

    if size not in ("paper", "demo"):
        raise typer.BadParameter(f"--size is {size!r}, expected paper or demo")
    sized = demo_head_config if size == "demo" else TemporalHeadConfig
    return sized(tasks=tuple(tasks or TASKS), use_tcn=tcn, use_encoder=attention)


def _balance(classes: str, smoothing: float, units: bool, sampling: str = "uniform") -> BalanceConfig:
    from affserve.train.balance import BalanceConfig

    return BalanceConfig(class_weights=classes, label_smoothing=smoothing, unit_weights=units, sampling=sampling)


def _train(out: Path, train: Callable[[], Scores]) -> None:
    """Train and tell the scores; stopped by a signal, exit as schedulers expect of a process that was told to end."""
    from affserve.train.distributed import ranks_of_environment
    from affserve.train.errors import TrainingStopped

    try:
        scores = train()
    except TrainingStopped as stopped:
        if ranks_of_environment().first:
            _to_stderr(str(stopped))
        raise typer.Exit(STOPPED_EXIT_CODE) from stopped
    if ranks_of_environment().first:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.summary().items())
        typer.echo(f"{out}: on videos never trained on: {figures}")


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
