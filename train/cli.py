"""The commands of training: `affserve data` makes and checks a corpus, `affserve train` makes checkpoints of it,
`affserve evaluate` scores them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:  # an import of any of these takes seconds
    from affserve.train.corpus.affwild2 import Corpus
    from affserve.train.evaluation.scores import Scores
    from affserve.train.models.temporal_head import TemporalHeadConfig
    from affserve.train.synthetic.corpus import CorpusSummary

Number = TypeVar("Number", int, float)
STOPPED_EXIT_CODE = 128 + 15  # of a process that SIGTERM ended

# What more than one command asks for.
CorpusFolder = Annotated[
    Path, typer.Argument(metavar="CORPUS", help="An Aff-Wild2 release, or the output of affserve data synth.")
]
Corpora = Annotated[
    list[Path],
    typer.Argument(metavar="CORPUS...", help="Aff-Wild2, or what affserve data made; several are trained on together."),
]
CorpusWeights = Annotated[
    list[float] | None,
    typer.Option("--weight", min=0.001, help="How often a corpus is drawn beside the others; one each.  [default: 1]"),
]
ImageRoots = Annotated[
    list[Path] | None, typer.Option(help="Folder of crop folders, besides cropped_aligned*; may be repeated.")
]
Images = Annotated[
    str | None,
    typer.Option(help="Crops: official (cropped_aligned*) or served (of data crop).  [default: served, if any]"),
]
CheckpointFolder = Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")]
EncoderFolder = Annotated[Path, typer.Option(help="Checkpoint of affserve train encoder.")]
HeadFolders = Annotated[
    list[Path], typer.Option("--head", help="Checkpoint of a head or an ensemble; repeat it, one a task.")
]
Features = Annotated[Path, typer.Option(help="Folder of the features; what is missing there is computed.")]
FeatureFolder = Annotated[Path, typer.Option(help="Folder of the features; one folder an encoder below it.")]
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

data_app = typer.Typer(help="Make and inspect corpora.", no_args_is_help=True)
train_app = typer.Typer(help="Train the two stages of the model.", no_args_is_help=True)


def picked(given: Mapping[str, Any], config: type[Any]) -> dict[str, Any]:
    """Return those of a command's options, its `locals()`, that a configuration has a field for."""
    return {field.name: given[field.name] for field in fields(config) if field.name in given}


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
    films: Annotated[
        bool, typer.Option("--films", help="Also the video of each crop folder, in batch1/, for affserve data crop.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that draw.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate a corpus of drawn, animated faces in the layout of Aff-Wild2, defects included."""
    from affserve.train.synthetic.corpus import write_corpus, write_films
    from affserve.train.synthetic.plan import SyntheticConfig

    frames_min = min(frames_min, frames_max)
    config = SyntheticConfig(**picked(locals(), SyntheticConfig))
    with progress_bar("drawing frames") as progress:
        summary = write_corpus(out, config, workers, progress)
        if films:
            write_films(out, config, workers, progress)
    typer.echo(json.dumps(asdict(summary), default=str) if as_json else _one_line(summary))


def _one_line(summary: CorpusSummary) -> str:
    what = f"{summary.videos} videos, {summary.crops} crops, {summary.whole_frame_videos} whole-frame videos"
    if summary.reused:
        return f"{summary.root}: already holds exactly this corpus, reused: {what}"
    speed = f"{summary.seconds:.0f} s, {summary.frames_per_second:.0f} frames/s"
    return f"{summary.root}: {what} in {speed} (synthetic: a test instrument, not people)"


@data_app.command()
def check(
    root: Annotated[Path, typer.Argument(help="An Aff-Wild2 release, or the output of affserve data synth.")],
    image_root: ImageRoots = None,
    images: Images = None,
    decode: Annotated[int, typer.Option(min=0, help="Decode so many crops of each video, evenly spread.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Count what a corpus holds, name what cannot be read, and compare it with what was published of Aff-Wild2.

    The exit code is 1 when a file cannot be read.
    """
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.corpus.check import check_corpus
    from affserve.train.corpus.check_report import print_report

    with progress_bar("reading") as progress:
        report = check_corpus(open_corpus(root, image_root or (), images=images), decode=decode, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report)
    if report.unreadable:
        raise typer.Exit(1)


@train_app.command()
def tables(
    corpus: CorpusFolder,
    out: Annotated[Path, typer.Option(help="Folder of all runs and of tables.md and tables.json.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Demo sizes: minutes on two cores, for trying it out.")
    ] = False,
    folds: Annotated[str, typer.Option(help="0: the official split; 1 to 4: dealt from both sets.")] = "0,1,2,3,4",
    seeds: Annotated[str | None, typer.Option(help="Of the heads.  [default: 0,1,2; with --quick 0,1]")] = None,
    encoder_per_fold: Annotated[
        bool,
        typer.Option(
            "--encoder-per-fold/--shared-encoder",
            help="One encoder per fold that never saw its validation faces (five times the work), or that of fold 0 "
            "for all: then the folds' heads can be one ensemble, and only fold 0 is honest.",
        ),
    ] = False,
    multi_task: Annotated[
        bool | None,
        typer.Option(
            "--multi-task/--task-heads",
            help="One head for all tasks, or one a task.  [default: one a task; --quick all]",
        ),
    ] = None,
    hold_out: Annotated[
        str, typer.Option(help="Train on no video that the same task validates on, or that any does: task or any.")
    ] = "task",
    architecture: Annotated[str | None, typer.Option(help="open_clip's name.  [default: ViT-B-32]")] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip's tag or a file.  [default: openai]")] = None,
    encoder_epochs: Annotated[int | None, typer.Option(min=1, help="Of stage 1.  [default: 10]")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of stage 2.  [default: valence-arousal 40, expressions 10, units 30]")
    ] = None,
    image_root: ImageRoots = None,
    images: Images = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read crops for stage 1.")] = 0,
    device: Device = "cpu",
) -> None:
    """Train the paper's folds and ablations and print its Table 1 and Table 2 beside ours.

    Run again, it goes on where it stopped; finished runs are kept. A failed run is reported and does not stop the
    others; the exit code is then 1. One process does all of it. With several GPUs train the encoder first, by torchrun
    and with the same settings, to OUT/encoders/fold0: it is found there.
    """
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.errors import DataError
    from affserve.train.study.config import StudySizes, study_config
    from affserve.train.study.study import Study
    from affserve.train.study.tables import as_markdown
    from affserve.train.trainer.ranks import ranks_of_environment

    if (world := ranks_of_environment().world) > 1:
        raise DataError(f"affserve train tables is one process, torchrun started {world}; start it without torchrun")
    with _usage_errors():
        config = study_config(
            StudySizes(**picked(locals(), StudySizes)),
            folds=numbers(folds, int),
            seeds=numbers(seeds or ("0,1" if quick else "0,1,2"), int),
            encoder_per_fold=encoder_per_fold,
        )
    study = Study(corpus=open_corpus(corpus, image_root or (), images=images), config=config, out=out, tell=tell)
    finished = study.run()
    typer.echo(as_markdown(finished))
    if finished.failures:
        raise typer.Exit(1)


def evaluate(
    corpus: CorpusFolder,
    encoder: EncoderFolder,
    head: HeadFolders,
    features: Features,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report.  [default: evaluation; with --template none]")
    ] = None,
    template: Annotated[
        list[Path] | None, typer.Option(help="Official template of a task, to be filled; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the filled template goes; with several templates a folder.")] = Path(
        "predictions.txt"
    ),
    postprocess: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none", help="JSON of what is made of the answers, or none.  [default: what the heads declare]"
        ),
    ] = None,
    longest_tail: Annotated[
        int, typer.Option(min=0, help="In templates: frames past a video's last crop that may be asked for.")
    ] = 300,
    image_root: ImageRoots = None,
    images: Images = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a trained model on the validation set, or fill the challenge's templates with its answers.

    The official validator counts each labelled frame once; the paper's counts full windows only. In brackets: 95 %
    intervals of the official one's scores over people.
    """
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.evaluation.submission import read_template
    from affserve.train.evaluation.trained_model import TrainedModel, as_document

    paths = template or []
    targets = [out / path.name for path in paths] if len(paths) > 1 else [out]
    templates = [(read_template(path), target) for path, target in zip(paths, targets, strict=False)]
    opened = open_corpus(corpus, image_root or (), {video for one, _ in templates for video in one.videos}, images)
    with progress_bar("computing features") as progress:
        model = TrainedModel(encoder, head, opened, features, device, progress, postprocess)
        if templates:
            for told in model.fill(templates, longest_tail):
                typer.echo(told)
        if template and not report:
            return
        folder = report or Path("evaluation")
        scores = model.evaluate(folder)
    typer.echo(json.dumps(as_document(scores)) if as_json else _scores_table(scores, model.trained_on))
    typer.echo(f"report: {folder}", err=True)


def _scores_table(scores: Mapping[str, Scores], trained_on: Sequence[str]) -> str:
    from affserve.train.evaluation.metrics import metric_titles

    lines = [f"{'trained on ' + ', '.join(trained_on):<36}" + "".join(f"{protocol:>10}" for protocol in scores)]
    for name, title in metric_titles().items():
        values = [one.summary().get(name) for one in scores.values()]
        if any(value is not None for value in values):
            title += next(one.share(name) for one in scores.values() if name in one.summary())
            told = "".join(f"{'–' if v is None else f'{v:.4f}':>10}" for v in values)
            ends = next((one.intervals[name] for one in scores.values() if name in one.intervals), None)
            lines.append(f"{title:<36}{told}" + (f"  [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else ""))
    return "\n".join(lines)


def numbers(text: str | None, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Parse numbers with commas between; kind: int or float."""
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,8,32") from error


def tell(text: str) -> None:
    """Say on stderr what is being done or has been found."""
    typer.echo(text, err=True)


@train_app.command()
def encoder(
    corpus: Corpora,
    out: CheckpointFolder,
    image_root: ImageRoots = None,
    images: Images = None,
    weight: CorpusWeights = None,
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
    from affserve.train.labels import EXPRESSION
    from affserve.train.stages.finetune import FinetuneConfig, finetune
    from affserve.train.trainer.losses import BalanceConfig

    with _usage_errors():
        tasks, balance = tuple(task or [EXPRESSION.key]), BalanceConfig(**picked(locals(), BalanceConfig))
        chosen = picked(locals(), FinetuneConfig)
        config = FinetuneConfig(**{**chosen, "pretrained": None if pretrained == "none" else pretrained})
    opened = _joined(corpus, image_root, images, weight)
    _train(out, lambda: finetune(opened, config, out, tell, fresh=fresh))


@train_app.command()
def features(
    corpus: Corpora,
    encoder: EncoderFolder,
    out: FeatureFolder,
    image_root: ImageRoots = None,
    images: Images = None,
    device: Device = "cpu",
    amp: Amp = "none",
    batch: Annotated[int, typer.Option(min=1, help="Crops the encoder takes at once; 256 or more on a GPU.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode crops.")] = 2,
    rank: Annotated[int, typer.Option(envvar="RANK", help="This process among those that share the work.")] = 0,
    world: Annotated[int, typer.Option(envvar="WORLD_SIZE", help="Processes that share the work.")] = 1,
) -> None:
    """Between the stages: compute the features of every crop once; run again, it goes on where it stopped.

    Crops that cannot be decoded are named at the end; the exit code is then 1. To share the work, start one process per
    rank, or all of them by torchrun.
    """
    from affserve.train.features.extraction import ExtractConfig, describe_unreadable, extract
    from affserve.train.models.checkpoint import load_encoder
    from affserve.train.trainer.ranks import local_device

    config = ExtractConfig(**picked(locals(), ExtractConfig))
    model, checkpoint = load_encoder(encoder)
    opened = _joined(corpus, image_root, images)
    with progress_bar("computing features") as progress:
        done = extract(
            model,
            checkpoint.fingerprint,
            opened,
            out,
            device=local_device(device),
            config=config,
            progress=progress,
            log=tell,
        )
    rate = f"{done.computed} computed in {done.seconds:.0f} s, {done.computed / max(done.seconds, 1e-9):.0f} a second"
    typer.echo(f"{done.folder}: features of {done.videos} videos, {done.frames} crops ({rate})")
    if done.unreadable:
        typer.echo(f"error: {describe_unreadable(done.unreadable)}", err=True)
        raise typer.Exit(1)


@train_app.command()
def head(
    corpus: Corpora,
    encoder: EncoderFolder,
    features: FeatureFolder,
    out: CheckpointFolder,
    images: Images = None,
    weight: CorpusWeights = None,
    task: Tasks = None,
    size: Annotated[str, typer.Option(help="paper, or demo for a CPU.")] = "paper",
    use_tcn: Annotated[bool, typer.Option("--tcn/--no-tcn", help="The temporal convolutions.")] = True,
    use_encoder: Annotated[bool, typer.Option("--attention/--no-attention", help="The Transformer encoder.")] = True,
    recurrent: Annotated[
        bool, typer.Option("--gru/--no-gru", help="Two GRU layers of similar cost in place of both; streams.")
    ] = False,
    norm: Annotated[
        str, typer.Option(help="Where the Transformer normalises: post, as the paper, or pre, better on small corpora.")
    ] = "post",
    context_frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=300,
            help="Each layer looks at so many last frames only, and the head streams: 38 or so.  [default: whole "
            "segment, as the paper]",
        ),
    ] = None,
    lookahead_frames: Annotated[
        int, typer.Option(min=0, max=300, help="Frames that a head that streams answers late, to have seen them.")
    ] = 0,
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
    from affserve.train.labels import TASKS
    from affserve.train.models.checkpoint import load_encoder
    from affserve.train.models.temporal_head import TemporalHeadConfig
    from affserve.train.stages.fit import FitConfig, fit
    from affserve.train.trainer.losses import BalanceConfig

    with _usage_errors():
        balance = BalanceConfig(**picked(locals(), BalanceConfig))
        architecture = _architecture(size, tasks=tuple(task or TASKS), **picked(locals(), TemporalHeadConfig))
        config = FitConfig(head=architecture, **picked(locals(), FitConfig))
    _, checkpoint = load_encoder(encoder)
    opened = _joined(corpus, None, images, weight)
    _train(out, lambda: fit(opened, features / checkpoint.fingerprint, config, out, tell, fresh=fresh))


@train_app.command(name="tune")
def tune_head(
    corpus: CorpusFolder,
    encoder: EncoderFolder,
    head: HeadFolders,
    features: Features,
    folds: Annotated[int, typer.Option(min=2, help="Shares of the people, each scored by what the others chose.")] = 5,
    postprocess: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="JSON of what else is made of the answers, such as smoothing; none: nothing.  [default: what the head "
            "declares so far]",
        ),
    ] = None,
    image_root: ImageRoots = None,
    images: Images = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the gains as JSON.")] = False,
) -> None:
    """Tune thresholds of action units and biases of expressions on the validation set, for rare ones above all.

    What gains on people who had no part in choosing is declared in the checkpoint of the head: evaluate, export and
    with it every client apply it.
    """
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.evaluation.trained_model import TrainedModel
    from affserve.train.labels import TASKS

    opened = open_corpus(corpus, image_root or (), images=images)
    with progress_bar("computing features") as progress:
        gains = TrainedModel(encoder, head, opened, features, device, progress, postprocess).tune(folds)
    if as_json:
        typer.echo(json.dumps({task: gain.as_dict() for task, gain in gains.items()}))
        return
    for task, gain in gains.items():
        what = "declared" if gain.kept else "left as it was"
        typer.echo(
            f"{TASKS[task].title}, F1 on people who had no part in tuning: {gain.before:.4f} -> {gain.after:.4f} "
            f"({gain.after - gain.before:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over {gain.people} people): {what}"
        )


def _joined(
    roots: Sequence[Path],
    image_roots: Sequence[Path] | None,
    images: str | None,
    weights: Sequence[float] | None = None,
) -> Corpus:
    """Open the corpora of a command, as one."""
    from affserve.train.corpus.affwild2 import open_corpus
    from affserve.train.corpus.joined import join_corpora

    return join_corpora([open_corpus(root, image_roots or (), images=images) for root in roots], weights or ())


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn what a configuration says about its values into wrong usage."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _architecture(size: str, **choices: Any) -> TemporalHeadConfig:
    from affserve.train.models.temporal_head import TemporalHeadConfig, demo_head_config, gru_of_similar_cost

    if size not in ("paper", "demo"):
        raise typer.BadParameter(f"--size is {size!r}, expected paper or demo")
    config = (demo_head_config if size == "demo" else TemporalHeadConfig)(**choices)
    return gru_of_similar_cost(config) if config.recurrent else config


def _train(out: Path, train: Callable[[], Scores]) -> None:
    """Train and tell the scores; stopped by a signal, exit as schedulers expect of a process that was told to end."""
    from affserve.train.errors import TrainingStopped
    from affserve.train.trainer.ranks import ranks_of_environment

    try:
        scores = train()
    except TrainingStopped as stopped:
        if ranks_of_environment().first:
            tell(str(stopped))
        raise typer.Exit(STOPPED_EXIT_CODE) from stopped
    if ranks_of_environment().first:
        figures = ", ".join(f"{name} {value:.3f}{scores.share(name)}" for name, value in scores.summary().items())
        typer.echo(f"{out}: on videos never trained on: {figures}")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left; yield what is called with the numbers done and to do."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
