"""The commands that judge models: `affserve train tables` makes the paper's tables, `affserve evaluate` scores one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from affserve.train.evaluation import Scores

Corpus_ = Annotated[Path, typer.Argument(metavar="CORPUS", help="An Aff-Wild2 release, or the output of data synth.")]
ImageRoots = Annotated[list[Path] | None, typer.Option("--image-root", help="Another folder of crops; repeatable.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


def tables(
    corpus: Corpus_,
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
    workers: Annotated[int, typer.Option(min=0, help="Processes that read crops for stage 1.")] = 0,
    device: Device = "cpu",
) -> None:
    """Train the paper's folds and ablations and print its Table 1 and Table 2 beside ours.

    Run again, it goes on where it stopped; finished runs are kept. A failed run is reported and does not stop the
    others; the exit code is then 1. One process does all of it. With several GPUs train the encoder first, by torchrun
    and with the same settings, to OUT/encoders/fold0: it is found there.
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.distributed import ranks_of_environment
    from affserve.train.errors import DataError
    from affserve.train.study import Study
    from affserve.train.study_sizes import StudySizes, study_config
    from affserve.train.tables import as_markdown

    if (world := ranks_of_environment().world) > 1:
        raise DataError(f"affserve train tables is one process, torchrun started {world}; start it without torchrun")
    try:
        config = study_config(
            StudySizes(
                quick=quick,
                multi_task=multi_task,
                hold_out=hold_out,
                architecture=architecture,
                pretrained=pretrained,
                encoder_epochs=encoder_epochs,
                epochs=epochs,
                workers=workers,
                device=device,
            ),
            folds=_numbers("--folds", folds),
            seeds=_numbers("--seeds", seeds or ("0,1" if quick else "0,1,2")),
            encoder_per_fold=encoder_per_fold,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    study = Study(corpus=open_corpus(corpus, image_root or ()), config=config, out=out, tell=_to_stderr)
    finished = study.run()
    typer.echo(as_markdown(finished))
    if finished.failures:
        raise typer.Exit(1)


def evaluate(
    corpus: Corpus_,
    encoder: Annotated[Path, typer.Option(help="Checkpoint of affserve train encoder.")],
    head: Annotated[list[Path], typer.Option(help="Checkpoint of a head or an ensemble; repeat it, one a task.")],
    features: Annotated[Path, typer.Option(help="Folder of the features; what is missing there is computed.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report.  [default: evaluation; with --template none]")
    ] = None,
    template: Annotated[
        list[Path] | None, typer.Option(help="Official template of a task, to be filled; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the filled template goes; with several templates a folder.")] = Path(
        "predictions.txt"
    ),
    smooth_expressions: Annotated[
        int, typer.Option(min=1, help="In templates: the most frequent expression within so many frames; 40 or so.")
    ] = 1,
    longest_tail: Annotated[
        int, typer.Option(min=0, help="In templates: frames past a video's last crop that may be asked for.")
    ] = 300,
    image_root: ImageRoots = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score a trained model on the validation set, or fill the challenge's templates with its answers.

    The official validator counts each labelled frame once; the paper's counts full windows only.
    """
    from affserve.train.affwild2 import open_corpus
    from affserve.train.evaluate import as_document, open_model
    from affserve.train.progress_bar import progress_bar
    from affserve.train.submission import FillOptions, read_template

    paths = template or []
    targets = [out / path.name for path in paths] if len(paths) > 1 else [out]
    templates = [(read_template(path), target) for path, target in zip(paths, targets, strict=False)]
    opened = open_corpus(corpus, image_root or (), {video for one, _ in templates for video in one.videos})
    with progress_bar("computing features") as progress:
        model = open_model(encoder, head, opened, features, device, progress)
        if templates:
            options = FillOptions(smooth_frames=smooth_expressions, longest_tail=longest_tail)
            for told in model.fill(templates, options):
                typer.echo(told)
        if template and not report:
            return
        folder = report or Path("evaluation")
        scores = model.evaluate(folder)
    typer.echo(json.dumps(as_document(scores)) if as_json else _scores_table(scores, model.trained_on))
    typer.echo(f"report: {folder}", err=True)


def _scores_table(scores: Mapping[str, Scores], trained_on: Sequence[str]) -> str:
    from affserve.train.evaluation_report import METRIC_NAMES
    from affserve.train.labels import TASKS

    lines = [f"{'trained on ' + ', '.join(trained_on):<36}" + "".join(f"{protocol:>10}" for protocol in scores)]
    for key, metric in METRIC_NAMES.items():
        names = {key: f"{TASKS[key].title}, {metric}"}
        if TASKS[key].columns == 2:
            names |= {name: f"  {name}, CCC" for name in TASKS[key].names}
        for name, title in names.items():
            values = [one.summary().get(name) for one in scores.values()]
            if any(value is not None for value in values):
                lines.append(f"{title:<36}" + "".join(f"{'–' if v is None else f'{v:.4f}':>10}" for v in values))
    return "\n".join(lines)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{option} is {text!r}, expected numbers like 0,1,2") from error


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)
