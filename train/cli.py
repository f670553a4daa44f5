"""The command line of this stage: `affserve data` makes corpora, `affserve train` makes checkpoints of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from affserve.train.evaluation import Scores
    from affserve.train.synthetic import CorpusSummary, SyntheticConfig

data_app = typer.Typer(help="Make and inspect corpora.", no_args_is_help=True)
train_app = typer.Typer(help="Train the two stages of the model.", no_args_is_help=True)

CorpusFolder = Annotated[Path, typer.Argument(help="An Aff-Wild2 release, or the output of affserve data synth.")]
CheckpointFolder = Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")]
EncoderFolder = Annotated[Path, typer.Option(help="Checkpoint of affserve train encoder.")]
FeatureStore = Annotated[Path, typer.Option(help="Folder of the features; one folder an encoder below it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Label set to train on; may be repeated.")]


@data_app.callback()
def _data() -> None:
    # With a callback Typer keeps `synth` a command of its own while it is the only one.
    """Make and inspect corpora."""


@data_app.command()
def synth(
    out: Annotated[
        Path, typer.Argument(help="Folder to make; an existing one is kept if it holds exactly this corpus.")
    ],
    videos: Annotated[int, typer.Option(help="Crop folders of both sets together.")] = 60,
    seed: Annotated[int, typer.Option(help="Another seed gives other people doing other things.")] = 0,
    frames_min: Annotated[int, typer.Option(help="Frames of the shortest ordinary video.")] = 280,
    frames_max: Annotated[int, typer.Option(help="Frames of the longest video.")] = 400,
    whole_frame_videos: Annotated[int, typer.Option(help="Videos (mp4) for trying the client.")] = 6,
    whole_frame_frames: Annotated[int, typer.Option(help="Frames of each of those.")] = 600,
    workers: Annotated[int, typer.Option(help="Processes that draw.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate a corpus of drawn, animated faces in the layout of Aff-Wild2, defects included."""
    from affserve.train.synthetic import SyntheticConfig

    config = SyntheticConfig(
        seed=seed,
        videos=videos,
        frames_min=min(frames_min, frames_max),
        frames_max=frames_max,
        whole_frame_videos=whole_frame_videos,
        whole_frame_frames=whole_frame_frames,
    )
    summary = _write_with_progress(out, config, workers)
    if as_json:
        typer.echo(json.dumps(asdict(summary), default=str))
    else:
        typer.echo(_one_line(summary))


def _write_with_progress(out: Path, config: SyntheticConfig, workers: int) -> CorpusSummary:
    from affserve.train.synthetic import write_corpus

    with _bar("drawing frames") as progress:
        return write_corpus(out, config, workers, progress)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; yield what is called with the numbers done and to do."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _one_line(summary: CorpusSummary) -> str:
    what = f"{summary.videos} videos, {summary.crops} crops, {summary.whole_frame_videos} whole-frame videos"
    if summary.reused:
        return f"{summary.root}: already holds exactly this corpus, reused: {what}"
    speed = f"{summary.seconds:.0f} s, {summary.frames_per_second:.0f} frames/s"
    return f"{summary.root}: {what} in {speed} (synthetic: a test instrument, not people)"


@train_app.command()
def encoder(
    corpus: CorpusFolder,
    out: CheckpointFolder,
    architecture: Annotated[str, typer.Option(help="open_clip's name; affserve-demo is small.")] = "ViT-B-32",
    pretrained: Annotated[str, typer.Option(help="open_clip's tag, a file of weights, or none.")] = "openai",
    task: Tasks = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Frames.")] = 256,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-4,
    frame_step: Annotated[int, typer.Option(min=1, help="Use every n-th frame.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read crops.")] = 0,
    device: Device = "cpu",
    seed: int = 0,
) -> None:
    """Stage 1: fine-tune the CLIP encoder on single frames; on the expressions, unless --task says otherwise."""
    from affserve.train.affwild2 import open_corpus
    from affserve.train.finetune import FinetuneConfig, finetune
    from affserve.train.labels import EXPRESSION

    config = FinetuneConfig(
        architecture=architecture,
        pretrained=None if pretrained == "none" else pretrained,
        tasks=tuple(task or [EXPRESSION.key]),
        epochs=epochs,
        batch=batch,
        lr=lr,
        frame_step=frame_step,
        workers=workers,
        device=device,
        seed=seed,
    )
    _tell_scores(out, finetune(open_corpus(corpus), config, out, _to_stderr))


@train_app.command()
def features(corpus: CorpusFolder, encoder: EncoderFolder, out: FeatureStore, device: Device = "cpu") -> None:
    """Between the stages: compute the features of every crop once; run again, it goes on where it stopped."""
    from affserve.train.affwild2 import open_corpus
    from affserve.train.checkpoint import load_encoder
    from affserve.train.features import extract_features

    model, checkpoint = load_encoder(encoder)
    opened = open_corpus(corpus)
    with _bar("computing features") as progress:
        folder = extract_features(model, checkpoint.fingerprint, opened, out, device=device, progress=progress)
    typer.echo(f"{folder}: features of {len(list(folder.glob('*.npz')))} videos")


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
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Windows.")] = 32,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 3e-5,
    stride: Annotated[int, typer.Option(min=1, max=300, help="Frames between training windows.")] = 200,
    device: Device = "cpu",
    seed: int = 0,
) -> None:
    """Stage 2: train a temporal head over windows of features; for all tasks, unless --task says otherwise."""
    from affserve.train.affwild2 import open_corpus
    from affserve.train.checkpoint import load_encoder
    from affserve.train.fit import FitConfig, fit
    from affserve.train.labels import TASKS
    from affserve.train.temporal_head import TemporalHeadConfig, demo_head_config

    if size not in ("paper", "demo"):
        raise typer.BadParameter(f"--size is {size!r}, expected paper or demo")
    sized = demo_head_config if size == "demo" else TemporalHeadConfig
    architecture = sized(tasks=tuple(task or TASKS), use_tcn=tcn, use_encoder=attention)
    config = FitConfig(head=architecture, epochs=epochs, batch=batch, lr=lr, stride=stride, device=device, seed=seed)
    _, checkpoint = load_encoder(encoder)
    _tell_scores(out, fit(open_corpus(corpus), features / checkpoint.fingerprint, config, out, _to_stderr))


def _tell_scores(out: Path, scores: Scores) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.summary().items())
    typer.echo(f"{out}: on videos never trained on: {figures}")


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
