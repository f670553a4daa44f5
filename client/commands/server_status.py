"""Is a server ready, and what has it done? Asked as a client asks: a server's own word is not enough.

Every model answers one true inference, because a Triton whose python process died goes on saying that it is ready.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tritonclient.utils import InferenceServerException

from affserve.client.wire.answers import engines_of, head_of
from affserve.client.wire.endpoint import Address, Endpoint, parse_endpoint
from affserve.client.wire.unreachable import START, way_out
from affserve.export.contract import CLIP_ENCODER, MODELS, OPTIONAL_MODELS, TEMPORAL_HEAD, HeadDescription, ModelSpec
from affserve.export.server.own_folder import notes
from affserve.export.server.probe import ModelStatistics, Prober
from affserve.export.server.security import CallerTls, is_loopback
from affserve.train.errors import RepositoryError, printable
from affserve.train.labels import TASKS

COLUMNS = (
    *("model", "version", "ready", "answer ms", "requests", "failed", "inferences", "per batch"),
    *("request ms", "queue ms", "compute ms"),
)
RESTART = "look at the server's log and restart it (affserve serve does that by itself)"


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model of a server."""

    name: str
    ready: bool  # it has answered a request just now
    answer_ms: float | None  # how long that took, one frame; None: there was no answer
    statistics: ModelStatistics | None  # until that request; None: the model is not loaded


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server."""

    url: str
    ready: bool
    version: str = ""  # of Triton
    engine: str = ""  # such as "onnxruntime fp32 on CPU"
    models: tuple[ModelStatus, ...] = ()
    head: HeadDescription | None = None  # None: it does not tell
    problems: tuple[str, ...] = ()  # what is wrong, and what to do

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return dataclasses.asdict(dataclasses.replace(self, head=None)) | {
            "head": None if self.head is None else self.head.to_parameters()
        }


def server_status(url: str, *, tls: CallerTls | None = None, timeout_s: float = 10.0) -> list[ServerStatus]:
    """Ask each server of `url`, HOST:PORT or several with commas between.

    timeout_s: of each question. What is wrong with a server is told in its status; ServerError only for an address that
    is none.
    """
    return [_status(address, tls, timeout_s) for address in parse_endpoint(url, tls).addresses]


def _status(address: Address, tls: CallerTls | None, timeout_s: float) -> ServerStatus:
    url, endpoint = f"{address.host}:{address.port}", Endpoint(addresses=(address,), tls=tls)
    with Prober(url, tls=tls) as prober:
        try:
            _, version = prober.identity(timeout_s)
            statistics = {one.name: one for one in prober.statistics(timeout_s)}
        except InferenceServerException as error:
            problem = _restarting(address) or f"no answer: {error.message()}; {way_out(endpoint)}"
            return ServerStatus(url=url, ready=False, problems=(problem,))
        lacking = _missing(statistics)
        problems = [*lacking]
        models = []
        for model in MODELS.values():
            if model.name in statistics:
                status, trouble = _ask(prober, model, statistics[model.name], timeout_s)
                models.append(status)
                problems += trouble
        engine, head, trouble = _described(prober, {model.name for model in models if model.ready}, timeout_s, url)
    problems += trouble
    return ServerStatus(
        url=url,
        ready=not lacking and all(model.ready for model in models),
        version=version,
        engine=engine,
        models=tuple(models),
        head=head,
        problems=tuple(problems),
    )


def _restarting(address: Address) -> str | None:
    """Say what the supervisor of a server of this user does about it; None where there is none."""
    if not is_loopback(address.host.strip("[]")):
        return None
    for note in notes():
        if str(note.get("url", "")).rpartition(":")[2] == str(address.port):
            at = datetime.fromtimestamp(note["next_start"]).strftime("%H:%M:%S")
            minutes = note["within_s"] / 60
            return (
                f"affserve serve restarts it, the next time at {at}: it failed {note['failures']} times within "
                f"{minutes:g} minutes, the last time because {note['reason']}"
            )
    return None


def _missing(loaded: Mapping[str, object]) -> list[str]:
    """Say which models the server lacks; those for JPEG are not in every repository."""
    missing = [name for name in MODELS if name not in loaded and name not in OPTIONAL_MODELS]
    if not missing:
        return []
    found = ", ".join(sorted(loaded)) or "none"
    return [f"the server has no {', '.join(missing)} (its models: {found}): it serves no affserve repository; {START}"]


def _ask(
    prober: Prober, model: ModelSpec, statistics: ModelStatistics, timeout_s: float
) -> tuple[ModelStatus, list[str]]:
    began_s = time.perf_counter()
    try:
        prober.infer(model, timeout_s)
    except InferenceServerException as error:
        status = ModelStatus(name=model.name, ready=False, answer_ms=None, statistics=statistics)
        return status, [f"{model.name} does not answer: {error.message()}; {RESTART}"]
    taken_ms = 1000 * (time.perf_counter() - began_s)
    return ModelStatus(name=model.name, ready=True, answer_ms=taken_ms, statistics=statistics), []


def _described(
    prober: Prober, ready: set[str], timeout_s: float, url: str
) -> tuple[str, HeadDescription | None, list[str]]:
    """Return what computes and what the head tells of itself, as far as the models answer."""
    engine, head = "", None
    try:
        configs = {
            model.name: prober.config(model, timeout_s)
            for model in (CLIP_ENCODER, TEMPORAL_HEAD)
            if model.name in ready
        }
        engine = engines_of(list(configs.values()))
        if CLIP_ENCODER.name in configs:
            instances = sum(group.count for group in configs[CLIP_ENCODER.name].instance_group)
            engine += f", {instances} instances" if instances > 1 else ""
        if TEMPORAL_HEAD.name in configs:
            head = head_of(configs[TEMPORAL_HEAD.name], url)
    except InferenceServerException as error:
        return engine, None, [f"the server does not tell its configuration: {error.message()}; {RESTART}"]
    except RepositoryError as error:
        return engine, None, [str(error)]
    return engine, head, []


def show(servers: Sequence[ServerStatus], console: Console) -> None:
    """Print the status of each server: a few words and a table."""
    for server in servers:
        console.print(Text(printable(_headline(server))), soft_wrap=True)
        if server.models:
            console.print(_table(server.models))
        for problem in server.problems:
            console.print(Text(printable(f"  {problem}")), soft_wrap=True)


def _headline(server: ServerStatus) -> str:
    """Return what a server is in a line or two."""
    line = f"{server.url}: {'ready' if server.ready else 'NOT READY'}"
    if versions := {model.statistics.version for model in server.models if model.statistics is not None}:
        line += f", serves version {' and '.join(sorted(versions))} of its repository"
    if server.version:
        line += f", Triton {server.version}"
    if server.engine:
        line += f", {server.engine}"
    if (head := server.head) is not None:
        tasks = "; ".join(f"{task} ({', '.join(names)})" for task, names in sorted(head.labels.items(), key=_order))
        line += f"\nwindows of {head.window_frames} frames, trained on {head.trained_on}: {tasks}"
    return line


def _order(labels: tuple[str, object]) -> int:
    """Sort tasks as the project does; those unknown here come last."""
    return [*TASKS, labels[0]].index(labels[0])


def _table(models: Sequence[ModelStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("model", "ready") else "right")
    for model in models:
        told = model.statistics
        cells: dict[str, object] = {"model": model.name, "ready": "yes" if model.ready else "NO"}
        if told is not None:
            cells |= {"version": told.version, "requests": told.succeeded, "failed": told.failed}
            cells |= {"inferences": told.frames, "per batch": told.mean_batch, "answer ms": model.answer_ms}
            cells |= {"request ms": told.request_ms, "queue ms": told.queue_ms, "compute ms": told.compute_ms}
        table.add_row(*(printable(_cell(cells.get(name))) for name in COLUMNS), style="" if model.ready else "red")
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)
