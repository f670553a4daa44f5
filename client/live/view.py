"""What a person sees of a running analysis: a panel in a terminal, else a line a second; and a summary at the end.

All of it goes to stderr; stdout belongs to the rows.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live

from affserve.client.live.analysis import LiveAnswer
from affserve.client.live.frames import LiveCounters
from affserve.client.live.panel import Snapshot, in_words, panel
from affserve.client.results.rows import NO_TRACK, SeenPerson
from affserve.train.labels import VALENCE_AROUSAL

REFRESH_PER_S = 8
LINE_EVERY_S = 1.0
RATE_OVER_S = 3.0  # frames per second are averaged over this time
HISTORY_FRAMES = 600
SILENCE_S = 3.0  # without an answer, after which that is told


@dataclass(frozen=True, kw_only=True)
class LiveSummary:
    """What one run did; `affserve live --json` prints it."""

    source: str
    seconds: float  # wall-clock time from the first to the last moment
    decoded: int  # frames
    analysed: int  # frames that were answered
    dropped: int  # frames thinned out because the machine was too slow, or lost because the server was away
    reconnects: int
    slipped_s: float  # by which a file fell behind its own timestamps because decoding was too slow
    delay_p50_ms: float | None  # from frame to answer; None without any
    delay_p95_ms: float | None
    delay_p99_ms: float | None
    delay_max_ms: float | None
    detector: str
    engine: str
    trained_on: str


def summary_text(summary: LiveSummary) -> str:
    """Render a summary in a few lines."""
    delays = (summary.delay_p50_ms, summary.delay_p95_ms, summary.delay_p99_ms, summary.delay_max_ms)
    told = "no frame was answered"
    if summary.delay_p50_ms is not None:
        told = "delay from frame to answer: p50 {:.0f} ms, p95 {:.0f} ms, p99 {:.0f} ms, max {:.0f} ms".format(*delays)
    extra = f", {summary.reconnects} reconnects" if summary.reconnects else ""
    extra += f", {summary.slipped_s:.1f} s lost to slow decoding" if summary.slipped_s else ""
    return (
        f"{summary.source}: {summary.decoded} frames in {summary.seconds:.1f} s, {summary.analysed} analysed, "
        f"{summary.dropped} dropped{extra}\n  {told}\n"
        f"  faces: {summary.detector}; model: trained on {summary.trained_on}, {summary.engine}"
    )


class Rates:
    """Frames per second in and out, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def at(self, now_s: float, decoded: int, analysed: int) -> tuple[float, float]:
        """Take the counts of this moment; return frames per second decoded and analysed."""
        self._seen.append((now_s, decoded, analysed))
        while len(self._seen) > 2 and now_s - self._seen[1][0] > RATE_OVER_S:
            self._seen.popleft()
        then_s, *then = self._seen[0]
        span_s = now_s - then_s
        return ((decoded - then[0]) / span_s, (analysed - then[1]) / span_s) if span_s > 0 else (0.0, 0.0)


class LiveView:
    """Gathers what is to be shown from the answers; drawn by a thread of its own."""

    def __init__(
        self,
        source: str,
        labels: Mapping[str, tuple[str, ...]],
        counters: LiveCounters,
        *,
        notes: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._source = source
        self._labels = labels
        self._counters = counters
        self._notes = notes
        self._warnings = warnings
        self._rates = Rates()
        self._began_s = self._answered_s = time.monotonic()
        self._rates.at(self._began_s, 0, 0)
        self._people: tuple[SeenPerson, ...] = ()
        self._history: deque[NDArray[np.float32]] = deque(maxlen=HISTORY_FRAMES)  # of the person shown
        self._shown = NO_TRACK

    def show(self, answer: LiveAnswer) -> None:
        """Take the next answer."""
        self._answered_s = time.monotonic()
        rows = answer.rows
        last = np.flatnonzero((rows.frame == rows.frame[-1]) & (rows.track_id != NO_TRACK))
        by_area = sorted(last, key=lambda n: -rows.box_px[n, 2] * rows.box_px[n, 3])
        self._people = tuple(rows.person(n) for n in by_area)
        if self._people and self._people[0].track_id != self._shown:
            self._shown = self._people[0].track_id
            self._history.clear()
        if VALENCE_AROUSAL.key in rows.predictions:
            self._history.extend(rows.predictions[VALENCE_AROUSAL.key][rows.track_id == self._shown])

    def snapshot(self) -> Snapshot:
        """Return what there is to see now."""
        counters, now_s = self._counters, time.monotonic()
        decoded_fps, analysed_fps = self._rates.at(now_s, counters.decoded, counters.analysed)
        return Snapshot(
            source=self._source,
            labels=self._labels,
            notes=self._notes,
            warnings=(*self._warnings, *self._troubles(now_s - self._answered_s, decoded_fps)),
            decoded_fps=decoded_fps,
            analysed_fps=analysed_fps,
            dropped=counters.dropped,
            reconnects=counters.reconnects,
            delay_p50_s=counters.delays.recent_percentile_s(50),
            delay_p95_s=counters.delays.recent_percentile_s(95),
            people=self._people,
            history=np.array(list(self._history), dtype=np.float32).reshape(-1, 2),
        )

    def _troubles(self, silent_s: float, decoded_fps: float) -> Iterator[str]:
        if self._counters.trouble:
            yield self._counters.trouble
        elif silent_s > SILENCE_S and decoded_fps > 0:
            yield f"no answer from the server for {silent_s:.0f} s; frames are dropped meanwhile"
        elif silent_s > SILENCE_S:
            yield f"no frame from the source for {silent_s:.0f} s"

    def line(self) -> str:
        """Return what there is to see now as one line."""
        seen = self.snapshot()
        delay = "no answer yet"
        if not math.isnan(seen.delay_p50_s):
            delay = f"delay {1000 * seen.delay_p50_s:.0f} ms, p95 {1000 * seen.delay_p95_s:.0f} ms"
        people = (in_words(seen.labels, one) for one in seen.people)
        counts = f"{seen.decoded_fps:.1f} fps in, {seen.analysed_fps:.1f} analysed, {seen.dropped} dropped"
        told = (f"{time.monotonic() - self._began_s:.0f} s", counts, delay, *(people if seen.people else ("no face",)))
        troubles = (f"warning: {trouble}" for trouble in seen.warnings[len(self._warnings) :])
        return "; ".join((*told, *troubles))

    @contextmanager
    def shown(self, console: Console, *, moving: bool) -> Iterator[None]:
        """Draw the panel again and again, or print a line a second, for as long as the context lasts."""
        if moving:
            drawn = lambda: panel(self.snapshot(), console.width)  # noqa: E731
            with Live(get_renderable=drawn, console=console, refresh_per_second=REFRESH_PER_S, transient=True):
                yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._print_lines, args=(console, ended), name="affserve-live-view")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _print_lines(self, console: Console, ended: threading.Event) -> None:
        while not ended.wait(LINE_EVERY_S):
            console.print(self.line(), soft_wrap=True, markup=False, highlight=False)
