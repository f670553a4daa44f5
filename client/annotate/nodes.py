"""The machines of a Ray cluster: on each an actor with its own server and its own workers, as `infer --jobs` has them.

Frames never travel between machines: a video goes to a node by its name and comes back as what became of it. Nodes that
join are used, and one that dies costs the videos that it had, which others try once more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from affserve.client.annotate.annotator import CorpusSettings
from affserve.client.connection import Connection, connected
from affserve.client.infer.crew import Crew, Task, jobs_of_machine
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import Outcome
from affserve.train.errors import AffserveError, ServerError, UsageError, printable

TRIES = 3  # of a video whose node died
LOOK_EVERY_S = 5.0  # for nodes that have joined
NO_NODE_S = 60.0  # without any node: given up


class Annotators:
    """A node's share: a server for the repository, and workers that use it. Ray makes an actor of it."""

    def __init__(
        self, name: str, settings: CorpusSettings, connection: Connection, jobs: int, patience_s: float
    ) -> None:
        self._stack = ExitStack()
        client = self._stack.enter_context(connected(connection))
        told = replace(connection, repository=None, url=client.url, threads=None)
        crew = Crew(jobs, settings, told, ModelRecord.of(client), patience_s=patience_s, name=name)
        self._crew = self._stack.enter_context(crew)
        self._free = threading.Semaphore(jobs)

    def outcome(self, task: Task) -> Outcome:
        """Have a video analysed, when one of the workers is free."""
        with self._free:
            return self._crew.outcome(task)

    def close(self) -> None:
        """End the workers and the server."""
        self._stack.close()


@dataclass(eq=False, kw_only=True)
class _Node:
    """An actor and what it was given."""

    actor: Any
    jobs: int
    tasks: dict[Any, tuple[Task, int]] = field(default_factory=dict)  # by Ray's reference: with the tries so far


class Cluster:
    """The nodes of one cluster; a context manager that takes the actors back."""

    def __init__(
        self, address: str, settings: CorpusSettings, connection: Connection, jobs: int | None, patience_s: float
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # affserve sends nothing to anybody
        import ray

        self._ray = ray
        self._given = (settings, connection, patience_s)
        self._jobs = jobs
        self._nodes: dict[str, _Node] = {}
        self._looked_at = -LOOK_EVERY_S
        self._refused: dict[str, str] = {}  # nodes on which no server could be started, and why
        self._again: deque[tuple[Task, int]] = deque()
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise UsageError(
                f"--ray {address}: no cluster there ({error}); start one with: ray start --head"
            ) from error

    def __enter__(self) -> Cluster:
        """Return it; actors start with the first task."""
        return self

    def __exit__(self, *_: object) -> None:
        """End actors with their servers."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get([node.actor.close.remote() for node in self._nodes.values()], timeout=20)
        for node in self._nodes.values():
            self._ray.kill(node.actor)
        self._ray.shutdown()

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yield what became of the tasks as they finish; each node has one more than it works on, no more are taken."""
        waiting = iter(tasks)
        more, seen_at = True, time.monotonic()
        while True:
            self._look_for_nodes()
            while more and (node := self._least_busy()) is not None:
                task, tries = self._again.popleft() if self._again else (next(waiting, None), 1)
                more = task is not None
                if task is not None:
                    node.tasks[node.actor.outcome.remote(task)] = (task, tries)
            under_way = [reference for node in self._nodes.values() for reference in node.tasks]
            if not under_way and not more:
                return
            if self._nodes:
                seen_at = time.monotonic()
            elif time.monotonic() - seen_at > (LOOK_EVERY_S if self._refused else NO_NODE_S):
                why = next(iter(self._refused.values()), "none with a processor is alive")
                raise ServerError(f"no node of the cluster can work: {why}")
            for reference in self._ready(under_way):
                yield from self._heard(reference)
            more = more or bool(self._again)

    def _ready(self, references: list[Any]) -> list[Any]:
        if not references:
            time.sleep(1.0)
            return []
        return list(self._ray.wait(references, timeout=1.0)[0])

    def _least_busy(self) -> _Node | None:
        free = [node for node in self._nodes.values() if len(node.tasks) <= node.jobs]
        return min(free, key=lambda node: len(node.tasks) / node.jobs, default=None)

    def _heard(self, reference: Any) -> Iterator[Outcome]:
        name, node = next((name, node) for name, node in self._nodes.items() if reference in node.tasks)
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            del self._nodes[name]
            if error.actor_init_failed:
                self._refused[name] = str(error).strip().splitlines()[-1]
                print(printable(f"note: node {name[:8]} is left out: {self._refused[name]}"), file=sys.stderr)
            yield from self._lost(node, counts=not error.actor_init_failed)
            return
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            raise cause if isinstance(cause, AffserveError) else error from None
        del node.tasks[reference]
        yield outcome

    def _lost(self, node: _Node, *, counts: bool) -> Iterator[Outcome]:
        """Take a node's tasks back; counts: it may be their fault."""
        self._looked_at = time.monotonic()  # Ray needs a moment to know that a node is gone
        for task, tries in node.tasks.values():
            if tries < TRIES:
                self._again.append((task, tries + counts))
            else:
                reason = f"{task.path}: the node that worked on it died, {TRIES} times"
                yield Outcome(path=task.path, outputs=task.outputs, error=reason)

    def _look_for_nodes(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for node in self._ray.nodes():  # type: ignore[no-untyped-call]
            if (
                node["Alive"]
                and node["Resources"].get("CPU", 0) >= 1
                and node["NodeID"] not in {*self._nodes, *self._refused}
            ):
                self._nodes[node["NodeID"]] = self._node(node)

    def _node(self, node: dict[str, Any]) -> _Node:
        """Start the actor of a node; it takes all of its processors and GPUs."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores, gpus = int(node["Resources"]["CPU"]), node["Resources"].get("GPU", 0)
        jobs = self._jobs or jobs_of_machine(cores, gpu=gpus > 0)
        settings, connection, patience_s = self._given
        name = f"{node['NodeManagerAddress']}-{node['NodeID'][:4]}"
        actor = (
            self._ray.remote(Annotators)
            .options(
                name=f"affserve-annotate-{name}-{time.time_ns()}",
                num_cpus=cores,
                num_gpus=gpus,
                max_concurrency=jobs + 2,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(name, settings, replace(connection, threads=connection.threads or cores), jobs, patience_s)
        )
        return _Node(actor=actor, jobs=jobs)
