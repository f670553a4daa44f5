"""The body of `affserve live`: which source, which server, what is told to whom, and how it ends.

Rows go to a file or to stdout as JSON lines, each written at once; everything else goes to stderr. Ctrl-C and SIGTERM
end a run as the end of a file does; so does a reader of stdout that has seen enough.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from affserve.client.connection import Connection, connected
from affserve.client.faces.cropper import Croppers
from affserve.client.live.analysis import LiveAnalysis, LiveSettings
from affserve.client.live.frames import LiveCounters, now_s
from affserve.client.live.lines import STANDARD_OUTPUT, LiveLines
from affserve.client.live.source import SourceSettings, open_file, open_live
from affserve.client.live.view import LiveSummary, LiveView, summary_text
from affserve.client.sequences.declared import as_done
from affserve.client.wire.calls import RetryPolicy
from affserve.export.contract import HeadDescription
from affserve.train.processing.record import words
from affserve.train.provenance import SYNTHETIC
from affserve.train.signals import handled

# A live frame is worth little when it is answered late: what fails is dropped rather than repeated for a minute.
LIVE_POLICY = RetryPolicy(timeout_s=5.0, retry_for_s=1.0)
JSON_DIGITS = 3
PERCENTILES = {"delay_p50_ms": 50, "delay_p95_ms": 95, "delay_p99_ms": 99}


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """What the command line asks for."""

    source: SourceSettings
    connection: Connection
    live: LiveSettings
    croppers: Croppers
    jsonl: Path | None = None  # "-" for stdout
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.json and self.rows_to_stdout:
            raise typer.BadParameter("--json and --jsonl - would mix on standard output; write the rows to a file")
        if self.source.loop and not self.source.is_file:
            raise typer.BadParameter("--loop plays a file over and over; a camera or a stream has no end")

    @property
    def rows_to_stdout(self) -> bool:
        """Whether the rows go to standard output."""
        return self.jsonl == STANDARD_OUTPUT


def run_live(options: LiveOptions) -> None:
    """Analyse a source until it ends or somebody stops it; then print a summary."""
    file = open_file(options.source)
    make = partial(options.croppers.cropper, file is not None and file.already_cropped)
    make()  # a detector that cannot be had is told before a server is started
    counters = LiveCounters()
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals().listening())
        client = stack.enter_context(connected(replace(options.connection, policy=LIVE_POLICY)))
        head = as_done(client.describe(), raw=options.live.raw)
        lines = stack.enter_context(LiveLines(options.jsonl, head, counters))
        source = open_live(options.source, file)
        analysis = LiveAnalysis(client, make, options.live, counters)
        known = {
            "source": source.name,
            "detector": analysis.detector,
            "engine": client.engine(),
            "trained_on": client.describe().trained_on,
        }
        began_s = now_s()
        view = LiveView(
            source.name,
            client.describe().labels,
            counters,
            notes=(known["engine"], f"faces: {known['detector']}", _how_often(analysis.hop, head), *_left_out(head)),
            warnings=_warnings(known["trained_on"], options),
        )
        stack.callback(lambda: _tell(_summary(counters, began_s, **known), options))
        if not options.quiet:
            stack.enter_context(view.shown(Console(stderr=True), moving=_moves(options)))
        for answer in analysis.run(source, signals.stopped):
            view.show(answer)
            if not lines.write(answer):
                break


def _summary(counters: LiveCounters, began_s: float, **known: Any) -> LiveSummary:
    """Return what a run did; known: source, detector, engine and trained_on."""
    delays = counters.delays
    percentiles_ms: dict[str, Any] = dict.fromkeys((*PERCENTILES, "delay_max_ms"))
    if len(delays):
        percentiles_ms = {name: 1000 * delays.percentile_s(percent) for name, percent in PERCENTILES.items()}
        percentiles_ms["delay_max_ms"] = 1000 * delays.largest_s
    return LiveSummary(
        seconds=now_s() - began_s,
        decoded=counters.decoded,
        analysed=counters.analysed,
        dropped=counters.dropped,
        reconnects=counters.reconnects,
        slipped_s=counters.slipped_s,
        **percentiles_ms,
        **known,
    )


class _Signals:
    """Ctrl-C and SIGTERM: the first one ends a run between two frames, the second at once.

    An exception in the middle of a request could leave the connection in a state that cannot be closed.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._running = False

    @contextmanager
    def listening(self) -> Iterator[_Signals]:
        """Take the signals while the block runs."""
        with handled(signal.SIGINT, signal.SIGTERM, by=self._received):
            yield self

    def stopped(self) -> bool:
        """Say whether the run shall end; from the first question on it can end without an exception."""
        self._running = True
        return self._stopped.is_set()

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        if self._stopped.is_set() or not self._running:
            raise KeyboardInterrupt
        self._stopped.set()


def _warnings(trained_on: str, options: LiveOptions) -> tuple[str, ...]:
    if trained_on != SYNTHETIC:
        return ()
    warning = "this model was trained on generated faces only: not for people"
    if not _moves(options):
        print(f"warning: {warning}", file=sys.stderr)
    return (warning,)


def _how_often(hop: int | None, head: HeadDescription) -> str:
    if hop is not None:
        return f"an answer every {hop} frames"
    late = head.stream.lookahead_frames if head.stream is not None else 0
    return f"every frame is answered{f' {late} frames later' if late else ''}"


def _left_out(head: HeadDescription) -> list[str]:
    """Say what of the declared post-processing cannot be done while it happens."""
    return [f"not done live: {line}" for line in words(head.processing, causal=True)]


def _moves(options: LiveOptions) -> bool:
    """Say whether there is a terminal of its own for the panel."""
    rows_in_terminal = options.rows_to_stdout and sys.stdout.isatty()
    return not options.quiet and sys.stderr.isatty() and not rows_in_terminal


def _tell(summary: LiveSummary, options: LiveOptions) -> None:
    if options.json:
        fields = asdict(summary).items()
        print(json.dumps({k: round(v, JSON_DIGITS) if isinstance(v, float) else v for k, v in fields}), flush=True)
    elif not options.quiet:
        print(summary_text(summary), file=sys.stderr, flush=True)
