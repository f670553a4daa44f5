"""Trainings in processes of their own, to be killed at a step; the process that starts them has everything imported."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affserve.train.corpus.affwild2 import open_corpus
from affserve.train.errors import AffserveError, TrainingStopped
from affserve.train.evaluation import report_plot
from affserve.train.stages.fit import FitConfig, fit
from affserve.train.trainer import loop
from affserve.train.trainer.log import TrainingLog

START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(
    [
        "affserve.train.stages.fit",
        "affserve.train.stages.finetune",
        "torch.utils.tensorboard",
        "affserve.train.evaluation.report_plot",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A process that trains, and where its output goes."""

    process: multiprocessing.process.BaseProcess
    output: Path

    def end(self) -> int:
        """Return the exit code once the process has ended."""
        self.process.join(timeout=600)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode

    @property
    def told(self) -> str:
        return self.output.read_text()


def start(output: Path, work: Callable[..., None], *arguments: object) -> Training:
    process = START.Process(target=_run, args=(output, work, *arguments))
    process.start()
    return Training(process=process, output=output)


def draw_nothing(set_to: Callable[[Any, str, Callable[..., bytes]], None] = setattr) -> None:
    """Have trainings of this process end without their pictures."""
    set_to(loop, "draw_curves", lambda *_: b"")
    set_to(report_plot, "draw_evaluation", lambda _: b"")


def _run(output: Path, work: Callable[..., None], *arguments: object) -> None:
    multiprocessing.set_start_method("fork", force=True)  # data loaders start like this outside of tests
    torch.set_num_threads(1)
    draw_nothing()
    with output.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        work(*arguments)


def interrupted(where: str, step: int, number: signal.Signals, work: Callable[..., None], *arguments: object) -> None:
    """Do some work that sends itself a signal when it has logged this step in a log whose path contains `where`."""
    write = TrainingLog.step

    def logged(log: TrainingLog, at: int, *line: Any) -> None:
        write(log, at, *line)
        if at == step and where in log._file.name:
            os.kill(os.getpid(), number)

    TrainingLog.step = logged  # type: ignore[method-assign]
    work(*arguments)


def train_head(corpus: Path, features: Path, target: Path, config: FitConfig, limit_bytes: int | None = None) -> None:
    """Train as the command does; `limit_bytes` is the kernel's limit on the size of every file written."""
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    try:
        scores = fit(open_corpus(corpus), features, config, target)
    except TrainingStopped as stopped:
        print(stopped)
        sys.exit(143)
    except AffserveError as error:
        print(f"error: {error}")
        sys.exit(1)
    print(json.dumps(scores.summary()))


def run_command(*arguments: str) -> None:
    """Run `python -m affserve.train` with some arguments."""
    from affserve.train.__main__ import main

    sys.argv = ["affserve.train", *arguments]
    main()
