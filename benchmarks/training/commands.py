"""The commands about training: `affserve bench generator`, `features` and `training`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from affserve.benchmarks.measuring.command_line import Folder, keep


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


def features(
    frames: Annotated[int, typer.Option(min=1000, help="Frames of the generated corpus.")] = 3_000_000,
    files: Annotated[int, typer.Option(min=0, help="Crops that exist as empty files, for `data check`.")] = 300_000,
    work_s: Annotated[float, typer.Option(help="Seconds of writing features, and of decoding crops.")] = 10.0,
    folder: Folder = None,
) -> None:
    """Check and sample a generated corpus of Aff-Wild2's size, write features, decode crops; nothing is encoded."""
    from affserve.benchmarks.training.feature_scale import measure_feature_scale

    with tempfile.TemporaryDirectory() as scratch:
        keep("feature_scale", measure_feature_scale(frames, files, work_s, Path(scratch)), folder)


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


COMMANDS = (generator, features, training)
