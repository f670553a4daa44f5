"""Where a training stands, so that it can be ended at any moment and go on: `<target>.run/`.

    run.json       what is trained on what, and once it is finished its scores
    state/         weights, optimiser and place in the data, predictions of the best epoch; while the training runs
    best/          checkpoint of the best epoch, until the end puts it in the target's place
    last/          checkpoint of the last epoch
    log.jsonl      one line a step and an epoch
    tensorboard/   the same for TensorBoard
    curves.png     the same as a picture
    report/        confusion matrix, F1 of each class and action unit of the best epoch

Everything random follows from (seed, step), so the state holds no random numbers. It is written beside its place and
renamed into it: what stands there is always whole.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch  # noqa: TID253 - this file is about it
from numpy.typing import NDArray
from safetensors import SafetensorError

from affserve.train.errors import NO_SPACE, CheckpointError
from affserve.train.evaluation.scores import Scores
from affserve.train.files import replace_folder, sole_user, staged_file, write_file
from affserve.train.models.checkpoint import CONFIG_FILE
from affserve.train.trainer.ranks import Ranks

SCHEMA = 1
RUN_FILE = "run.json"
STATE_FILE = "state.pt"

Fresh = bool | Literal["if-changed"]
"""Whether a training starts over: never (another configuration in its place is an error), always, or if it changed."""


class RunFolder:
    """The folder beside a checkpoint in which its training lives."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.run")
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.log = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.curves = self.path / "curves.png"
        self.report = self.path / "report"
        self._state = self.path / "state" / STATE_FILE
        self._predictions = self.path / "state" / "best.npz"

    @contextmanager
    def occupied(self, ranks: Ranks) -> Iterator[None]:
        """Keep other trainings out of the folder; OutputError where one is at work in it."""
        if not ranks.first:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with sole_user(self.path):
            yield

    def open(self, description: Mapping[str, Any], fresh: Fresh, ranks: Ranks) -> Scores | None:
        """Make or find the folder of a training and return its scores if it is finished.

        description: everything the weights depend on; as JSON. CheckpointError when another training is there.
        """
        wanted = json.loads(json.dumps(description))
        scores = self._found(wanted, fresh) if ranks.first else None
        ranks.wait()
        return ranks.gather_objects(scores)[0]

    def _found(self, wanted: dict[str, Any], fresh: Fresh) -> Scores | None:
        known = self._read()
        changed = differences(known["training"], wanted) if known else []
        if known and fresh is False and changed:
            raise CheckpointError(
                f"{self.path} holds another training, which differs in {'; '.join(changed)}: choose another folder, or "
                "start over with --fresh"
            )
        if known and (fresh is True or changed or (known["scores"] and not self.target.exists())):
            for entry in self.path.iterdir():  # not the folder itself: this process holds its lock
                _remove(entry)
            known = None
        if known is None:
            self._write(wanted, None)
        elif known["scores"]:
            return Scores(**known["scores"])
        for leftover in [*self.path.glob(".*"), *self._state.parent.glob(".*")]:
            _remove(leftover)  # of a process that was killed while it wrote
        return None

    def _read(self) -> dict[str, Any] | None:
        path = self.path / RUN_FILE
        if not path.exists():
            return None
        try:
            known: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; remove {self.path} to start over") from error
        if known.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {known.get('schema')!r}, expected {SCHEMA}: start over with --fresh"
            )
        return known

    def _write(self, training: Mapping[str, Any], scores: Scores | None) -> None:
        document = {"schema": SCHEMA, "training": training, "scores": asdict(scores) if scores else None}
        write_file(self.path / RUN_FILE, (json.dumps(document, indent=2) + "\n").encode())

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state in one step, after it has reached the disk."""
        self._state.parent.mkdir(exist_ok=True)
        with staged_file(self._state, durable=True) as file:
            torch.save(dict(state), file)

    def load_state(self, device: str) -> dict[str, Any] | None:
        """Return the state that was saved last, or None at the very start."""
        if not self._state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self._state} cannot be read: {error}; start over with --fresh") from error
        return state

    def save_predictions(self, arrays: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Keep what the best epoch said about the validation set: arrays by task, as in Validation."""
        named = {f"{index}.{key}": values for index, one in enumerate(arrays) for key, values in one.items()}
        with staged_file(self._predictions) as file:
            np.savez(file, **named)

    def load_predictions(self) -> list[dict[str, NDArray[Any]]]:
        """Return what `save_predictions` was given."""
        arrays: list[dict[str, NDArray[Any]]] = [{}, {}, {}, {}]
        with np.load(self._predictions) as stored:
            for name in stored.files:
                index, _, key = name.partition(".")
                arrays[int(index)][key] = stored[name]
        return arrays

    def finish(self, scores: Scores, fingerprint: str) -> None:
        """Put the best checkpoint in the target's place, note the scores and drop the state.

        fingerprint: of the best checkpoint. A training that was killed in the middle of this does it again: only what
        carries the fingerprint is put in place, and only where it is not yet.
        """
        if _fingerprint(self.target) != fingerprint:
            replace_folder(self.best, self.target)
        self._write((self._read() or {})["training"], scores)
        for folder in (self.best, self._state.parent):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn a full disk into one clear error."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = _full_disk(error)
            if reason is None:
                raise
            raise CheckpointError(
                f"{self.path} cannot be written: {reason}; what was saved last is intact: make room, then the same "
                "command goes on from there"
            ) from error


def _full_disk(error: BaseException) -> str | None:
    """Return the system's words if an error, or what lies under it, is about room on a disk."""
    under: BaseException | None = error
    while under is not None:  # PyTorch's writer covers the error of its file by one of its own
        if isinstance(under, OSError) and under.errno in NO_SPACE:
            return str(under.strerror)
        if isinstance(under, SafetensorError) and any(f"(os error {code})" in str(under) for code in NO_SPACE):
            return str(under)
        under = under.__context__
    return None


def _fingerprint(checkpoint: Path) -> str | None:
    config = checkpoint / CONFIG_FILE
    return json.loads(config.read_text()).get("fingerprint") if config.exists() else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Name every field in which two nested JSON documents differ, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name} ({_short(old)} there, {_short(new)} here)"]
    prefix = f"{name}." if name else ""
    return [
        difference
        for key in dict.fromkeys([*old, *new])
        for difference in differences(old.get(key), new.get(key), f"{prefix}{key}")
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
