"""The training loop of both stages: order, step, save, validate, keep the best, go on after any end.

In come a model, its data and what is special about a stage (`Stage`), out come a best and a last checkpoint and a log.
Everything follows from (seed, step): which samples a step takes, how they are augmented, what dropout drops. So a state
is weights, optimiser and a place in the data, and a training that was killed ends in the very weights of one that was
not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from torch import nn  # noqa: TID253
from torch.nn.parallel import DistributedDataParallel  # noqa: TID253
from torch.utils.data import DataLoader, default_collate  # noqa: TID253

from affserve.train.errors import DataError
from affserve.train.evaluation.report import write_report
from affserve.train.evaluation.scores import OFFICIAL, Scores
from affserve.train.models.device import check_device, chosen_amp
from affserve.train.trainer.gradient import Batch, BatchGradient, parts_of, step_seed
from affserve.train.trainer.log import Log, TrainingLog, draw_curves
from affserve.train.trainer.ranks import Ranks, joined_ranks, local_device, share_batch_norms
from affserve.train.trainer.run_folder import Fresh, RunFolder
from affserve.train.trainer.stage import Stage, TrainingConfig
from affserve.train.trainer.stop import StopRequest, ignore_signals

PLACE = ("epoch", "step_in_epoch", "loss_sum", "seconds", "best")  # where a training stands, besides its tensors


def run_training(
    target: Path,
    config: TrainingConfig,
    description: Mapping[str, Any],
    prepare: Callable[[Ranks, str], Stage],
    log: Log,
    fresh: Fresh,
) -> Scores:
    """Train or go on training, put the best checkpoint at `target` and return its scores.

    description: what the training is, to be told from another one in its place. prepare: makes the stage; called only
    if there is something to do.
    """
    device = local_device(config.device)
    check_device(device)
    run = RunFolder(target)
    with joined_ranks(device) as ranks, run.disk_errors(), run.occupied(ranks), StopRequest().listening() as stop:
        told: Log = log if ranks.first else lambda _: None  # the first rank tells
        scores = run.open(description, fresh, ranks)
        if scores is not None:
            told(f"{target}: this training is finished; --fresh starts over")
            return scores
        torch.manual_seed(config.seed)
        stage = prepare(ranks, device)
        return Trainer(stage, config, run, ranks, device, stop, told).train()


class Trainer:
    """Where a training stands, and what moves it on."""

    def __init__(
        self,
        stage: Stage,
        config: TrainingConfig,
        run: RunFolder,
        ranks: Ranks,
        device: str,
        stop: StopRequest,
        log: Log,
    ) -> None:
        self.stage, self.config, self.run, self.ranks, self.device, self.stop = stage, config, run, ranks, device, stop
        stage.model.to(device)
        model: nn.Module = stage.model
        if ranks.world > 1:
            share_batch_norms(model)
            ids = [torch.device(device)] if device.startswith("cuda") else None
            model = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        self.gradient = BatchGradient(
            model,
            stage.forward,
            device=device,
            micro_batch=config.micro_batch or stage.micro_batch,
            amp=chosen_amp(config.amp, device),
            weights=stage.weights,
            ranks=ranks,
            seed=config.seed,
        )
        self.optimizer = torch.optim.AdamW(stage.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.steps_per_epoch = math.ceil(stage.samples / config.batch)
        self.steps = self.steps_per_epoch * config.passes
        self.epoch, self.step_in_epoch = 0, 0
        self.loss_sum, self.seconds = 0.0, 0.0  # of the steps of this epoch
        self.best: dict[str, Any] | None = None  # epoch, selected, scores, fingerprint
        self._saved = time.monotonic()
        size_bytes = self._resume()
        self.log: TrainingLog | None = None
        if ranks.first:
            self.log = TrainingLog(run, stage.name, log, steps=self.steps, done=self.step, size_bytes=size_bytes)
            if self.step:
                log(f"{stage.name}: goes on after step {self.step}/{self.steps}")

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def train(self) -> Scores:
        """Go on to the end and return the scores of the best epoch."""
        try:
            while self.epoch < self.config.passes:
                self._train_epoch()
                self._save_state()
                self.stop.stop_here(self.run.path)
                improved = self._validate()
                self.epoch, self.step_in_epoch, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
                if not improved and self._out_of_patience():
                    break
            return self._finish()
        finally:
            if self.log is not None:
                self.log.close()

    def _train_epoch(self) -> None:
        self.gradient.model.train()
        order = self.stage.order(self.epoch)
        starts = range(self.step_in_epoch * self.config.batch, len(order), self.config.batch)
        batches = [order[start : start + self.config.batch] for start in starts]
        began = time.monotonic()
        # Closed, so that its workers end before anything else does, whatever happens in between.
        with closing(self._load(batches)) as loaded:
            for chosen, batch in zip(batches, loaded, strict=True):
                loss, lr = self._step(batch, len(chosen))
                self.step_in_epoch += 1
                self.loss_sum += loss * len(chosen)
                taken, began = time.monotonic() - began, time.monotonic()
                self.seconds += taken
                if self.log is not None:
                    speed = len(chosen) * self.stage.frames_per_sample / taken
                    self.log.step(self.step, self.epoch + 1, loss, lr, speed)
                self._between_steps()

    def _step(self, batch: Batch, count: int) -> tuple[float, float]:
        """Take one optimiser step on this rank's share of a batch; return the batch's loss and the learning rate."""
        lr = self.config.lr * warmup_cosine(self.step, self.steps, self.stage.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradient(batch, count, self.step)
        scaler = self.gradient.scaler
        if self.config.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.stage.model.parameters(), self.config.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        return loss, lr

    def _load(self, batches: list[NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """Yield this rank's share of each batch; an empty share has all keys and no rows."""
        shares = [batch[self.ranks.share(len(batch))].tolist() for batch in batches]
        full = [share for share in shares if share]
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self.stage.dataset,
            batch_sampler=full,
            num_workers=self.config.workers,
            worker_init_fn=ignore_signals,
            pin_memory=self.device.startswith("cuda"),
            generator=torch.Generator().manual_seed(step_seed(self.config.seed, self.epoch)),
        )
        loaded = iter(loader)
        for share in shares:
            yield next(loaded) if share else parts_of(default_collate([self.stage.dataset[0]]), [slice(0, 0)])[0]

    def _between_steps(self) -> None:
        """Save the state when it is time to, or when somebody asks the training to stop; on all ranks alike."""
        due = time.monotonic() - self._saved >= self.config.checkpoint_every_s
        due, asked = self.ranks.any_of(due and self.ranks.first, self.stop.asked)
        if due or asked:
            self._save_state()
        if asked:
            self.stop.asked = True  # perhaps it was another rank that was asked
            self.stop.stop_here(self.run.path)

    def _validate(self) -> bool:
        """Score the epoch, write its checkpoints and say whether it is the best so far."""
        self.stage.model.eval()
        with torch.inference_mode():
            validation = self.stage.validate(self.ranks, lambda: self.stop.stop_here(self.run.path))
        scores = validation.scores.get(self.stage.validator)
        if scores is None or not scores.by_task:
            raise DataError(
                f"the {self.stage.validator} validator found nothing to score: no labelled frame, or no video as long "
                f"as a window; choose the validator {OFFICIAL} or other validation videos"
            )
        selected = float(np.mean(list(scores.by_task.values())))
        improved = self.best is None or selected > self.best["selected"]
        if improved:
            self.best = {"epoch": self.epoch, "selected": selected, "scores": asdict(scores), "fingerprint": None}
        if self.log is not None:
            if improved and self.best is not None:
                self.best["fingerprint"] = self.stage.save(self.run.best, scores)
                self.run.save_predictions(validation.arrays[self.stage.validator])
            self.stage.save(self.run.last, scores)
            line = {"step": self.step, "epoch": self.epoch + 1, "loss": self.loss_sum / self.stage.samples}
            line |= {"seconds": round(self.seconds, 3), "selected": selected, "best": improved}
            frames = self.stage.samples * self.stage.frames_per_sample
            speed = frames / self.seconds if self.seconds else 0.0
            self.log.epoch(line, validation.scores, epochs=self.config.passes, speed=speed)
        return improved

    def _out_of_patience(self) -> bool:
        """Say whether the best epoch lies too far back; `epoch` counts the finished ones."""
        if self.config.patience is None or self.best is None:
            return False
        return self.epoch - 1 - int(self.best["epoch"]) >= self.config.patience

    def _finish(self) -> Scores:
        """Write what looks back on the training, and put the best checkpoint in its place."""
        if self.best is None:
            raise DataError(f"{self.run.path} holds a state without a best epoch: start over with --fresh")
        scores = Scores(**self.best["scores"])
        if self.log is not None:
            self.log.size_bytes()
            draw_curves(self.run.log, self.run.curves)
            write_report(self.run.report, *self.run.load_predictions())
            self.run.finish(scores, self.best["fingerprint"])
        self.ranks.wait()
        return scores

    def _save_state(self) -> None:
        self._saved = time.monotonic()
        if self.log is None:
            return
        self.run.save_state(
            {
                "model": self.stage.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.gradient.scaler.state_dict(),
                **{name: getattr(self, name) for name in PLACE},
                "log_bytes": self.log.size_bytes(),
            }
        )

    def _resume(self) -> int:
        """Take up the saved state if there is one; return how much of the log belongs to it."""
        state = self.run.load_state(self.device)
        if state is None:
            return 0
        self.stage.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradient.scaler.load_state_dict(state["scaler"])
        for name in PLACE:
            setattr(self, name, state[name])
        return int(state["log_bytes"])


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the learning rate: linear up over `warmup` steps, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))
