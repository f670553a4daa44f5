"""The picture of a running analysis in a terminal: one panel, drawn from a snapshot.

On the left the plane of valence and arousal with the trail of the last seconds, on the right the same as bars with
their history, the most likely expressions and the active action units of the person whose face is largest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from affserve.client.results.people import ACTIVE_FROM
from affserve.client.results.rows import ACTION_UNIT_MEANINGS, SeenPerson
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL

LARGEST_WIDTH = 100  # characters
WIDTH_WITH_MEANINGS = 96  # below, action units are told by their numbers alone
WIDTH_WITH_ONE_LINE = 80  # below, the delay stands under the counts
WIDTH_WITH_PLANE = 64  # below, there are bars only
PLANE_WIDTH, PLANE_HEIGHT = 22, 9  # characters; a braille character is 2 x 4 dots
GAP = 3  # characters between columns
FRAME_WIDTH = 4  # of the panel, left and right together
BAR_WIDTH = 18
AFFECT_WIDTH = 35  # name, bar and number
HISTORY_WIDTH = 24
SHOWN_EXPRESSIONS = 4
SHOWN_ACTION_UNITS = 4
SHOWN_OTHERS = 3
BLOCKS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
BRAILLE = 0x2800
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of the dots of one character
PLEASANT, UNPLEASANT, ACTIVATED, CALM = "green3", "red3", "orange1", "deep_sky_blue1"
FAINT, ACCENT = "grey42", "bold white"


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Everything that the panel shows."""

    source: str
    labels: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()  # engine and detector
    warnings: tuple[str, ...] = ()
    decoded_fps: float = 0.0
    analysed_fps: float = 0.0
    dropped: int = 0  # frames
    reconnects: int = 0
    delay_p50_s: float = math.nan
    delay_p95_s: float = math.nan
    people: Sequence[SeenPerson] = ()  # largest face first
    history: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 2), dtype=np.float32))  # valence, arousal


def panel(snapshot: Snapshot, terminal_width: int = LARGEST_WIDTH) -> RenderableType:
    """Draw a snapshot as wide as the terminal, within reason."""
    width = min(terminal_width, LARGEST_WIDTH)
    parts: list[RenderableType] = [_counts(snapshot, width), Rule(style=FAINT)]
    if snapshot.people:
        parts.append(_person(snapshot, snapshot.people[0], width))
    else:
        parts.append(Padding(Text("no face in sight", style=FAINT, justify="center"), (4, 0)))
    if len(snapshot.people) > 1:
        parts.append(_others(snapshot))
    parts.append(Rule(style=FAINT))
    parts.append(Text("  ".join(snapshot.notes), style=FAINT, overflow="ellipsis", no_wrap=True))
    parts.extend(Text(f"⚠ {warning}", style="yellow") for warning in snapshot.warnings)
    return Panel(
        Group(*parts),
        box=ROUNDED,
        title=Text.assemble((" affserve live ", "bold"), (f"{snapshot.source} ", "cyan")),
        title_align="left",
        border_style="grey50",
        padding=(0, 1),
        width=width,
    )


def _counts(snapshot: Snapshot, width: int) -> Table:
    """Frames in, analysed and dropped; delay, in the same line where there is room."""
    dropped = "yellow" if snapshot.dropped else FAINT
    left = Text.assemble(
        (f"{snapshot.decoded_fps:4.1f}", ACCENT),
        " fps in  ",
        (f"{snapshot.analysed_fps:4.1f}", ACCENT),
        " analysed  ",
        (f"{snapshot.dropped} dropped", dropped),
    )
    if snapshot.reconnects:
        left.append(f"  {snapshot.reconnects} reconnect{'s' if snapshot.reconnects > 1 else ''}", style="yellow")
    right = Text("waiting for the first answer", style=FAINT)
    if not math.isnan(snapshot.delay_p50_s):
        median, late = (f"{1000 * value:.0f} ms" for value in (snapshot.delay_p50_s, snapshot.delay_p95_s))
        right = Text.assemble("delay ", (median, ACCENT), " · p95 ", (late, ACCENT))
    line = Table.grid(expand=True)
    if width < WIDTH_WITH_ONE_LINE:
        line.add_row(left)
        line.add_row(right)
        return line
    line.add_column()
    line.add_column(justify="right")
    line.add_row(left, right)
    return line


def _person(snapshot: Snapshot, person: SeenPerson, width: int) -> Table:
    """Plane on the left, bars on the right."""
    meanings = width >= WIDTH_WITH_MEANINGS
    below = Table.grid(padding=(0, GAP))
    below.add_row(*filter(None, (_expressions(snapshot, person), _action_units(snapshot, person, meanings))))
    sides = Table.grid(padding=(0, GAP))
    if VALENCE_AROUSAL.key not in person.predictions:
        sides.add_row(below)
        return sides
    values = person.predictions[VALENCE_AROUSAL.key]
    with_plane = width >= WIDTH_WITH_PLANE
    room = width - FRAME_WIDTH - (PLANE_WIDTH + GAP if with_plane else 0)
    right = Group(_affect(snapshot.history, values, room), Text(""), below)
    sides.add_row(*([plane(snapshot.history, values)] if with_plane else []), right)
    return sides


def plane(history: NDArray[np.float32], now: NDArray[np.float32]) -> Text:
    """Draw the plane: valence to the right, arousal upwards, trail (n, 2), the present point (2,)."""
    height, width = 4 * PLANE_HEIGHT, 2 * PLANE_WIDTH
    dots = np.zeros((height, width), dtype=bool)
    if len(history):
        dots[_place(history, (height, width))] = True
    rows, columns = _place(now[None], (PLANE_HEIGHT, PLANE_WIDTH))
    text = Text(no_wrap=True)
    for row in range(PLANE_HEIGHT):
        for column in range(PLANE_WIDTH):
            if (row, column) == (rows[0], columns[0]):
                text.append("●", style=f"bold {PLEASANT if now[0] >= 0 else UNPLEASANT}")
            else:
                text.append(*_plane_cell(dots[4 * row : 4 * row + 4, 2 * column : 2 * column + 2], row, column))
        if row < PLANE_HEIGHT - 1:
            text.append("\n")
    return text


def _place(points: NDArray[np.float32], shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column in a grid of (rows, columns) for points (n, 2) of the plane."""
    height, width = shape
    scaled = (np.clip(points, -1, 1) + 1) / 2
    rows = np.minimum(((1 - scaled[:, 1]) * height).astype(np.int64), height - 1)
    return rows, np.minimum((scaled[:, 0] * width).astype(np.int64), width - 1)


def _plane_cell(dots: NDArray[np.bool_], row: int, column: int) -> tuple[str, str]:
    """Return character and style of the trail (4, 2) in one place, or of the axes behind it."""
    bits = sum(BRAILLE_BITS[y][x] for y, x in zip(*np.nonzero(dots), strict=True))
    if bits:
        return chr(BRAILLE + bits), "cyan"
    on_x, on_y = row == PLANE_HEIGHT // 2, column == PLANE_WIDTH // 2
    axes = {(True, True): "┼", (True, False): "─", (False, True): "│", (False, False): "·"}
    return axes[on_x, on_y], FAINT if on_x or on_y else "grey19"


def _affect(history: NDArray[np.float32], now: NDArray[np.float32], room: int) -> Table:
    """Valence and arousal as bars from the middle, with numbers and, where there is room, history."""
    history_width = max(0, min(HISTORY_WIDTH, room - AFFECT_WIDTH))
    grid = Table.grid(padding=(0, 1))
    hues = ((UNPLEASANT, PLEASANT), (CALM, ACTIVATED))
    for k, (name, (below, above)) in enumerate(zip(VALENCE_AROUSAL.names, hues, strict=True)):
        value = float(now[k])
        hue = above if value >= 0 else below
        past = sparkline(history[:, k], history_width)
        grid.add_row(Text(name, style="bold"), signed_bar(value, hue), Text(f"{value:+.2f}", style=hue), past)
    return grid


def signed_bar(value: float, hue: str) -> Text:
    """Draw a value in [-1, 1] as a bar that starts in the middle."""
    half = BAR_WIDTH // 2
    cells = min(round(abs(value) * half), half)
    filled, empty = "━" * cells, "─" * (half - cells)
    if value < 0:
        return Text.assemble((empty, FAINT), (filled, hue), ("┃", "white"), ("─" * half, FAINT))
    return Text.assemble(("─" * half, FAINT), ("┃", "white"), (filled, hue), (empty, FAINT))


def sparkline(values: NDArray[np.float32], width: int = HISTORY_WIDTH) -> Text:
    """Draw values (n,) in [-1, 1], oldest first, as one line of at most `width` blocks."""
    if not len(values) or not width:
        return Text("")
    parts = np.array_split(values, min(width, len(values)))
    heights = (min(int((float(part.mean()) + 1) / 2 * len(LEVELS)), len(LEVELS) - 1) for part in parts)
    return Text("".join(LEVELS[max(0, height)] for height in heights), style="cyan")


def _expressions(snapshot: Snapshot, person: SeenPerson) -> Table | None:
    names = snapshot.labels.get(EXPRESSION.key)
    if names is None:
        return None
    values = person.predictions[EXPRESSION.key]
    grid = Table.grid(padding=(0, 1))
    for place, k in enumerate(np.argsort(-values)[:SHOWN_EXPRESSIONS]):
        style = ACCENT if place == 0 else ""
        grid.add_row(Text(names[k], style=style), *_share(float(values[k]), "magenta" if place == 0 else "grey62"))
    return grid


def _action_units(snapshot: Snapshot, person: SeenPerson, meanings: bool) -> Table | None:
    names = snapshot.labels.get(ACTION_UNITS.key)
    if names is None:
        return None
    values = person.predictions[ACTION_UNITS.key]
    decided = person.decided(ACTION_UNITS.key)
    active = [k for k in np.argsort(-values) if decided[k] >= ACTIVE_FROM]
    grid = Table.grid(padding=(0, 1))
    for k in active[:SHOWN_ACTION_UNITS]:
        meaning = ACTION_UNIT_MEANINGS.get(names[k], "") if meanings else ""
        grid.add_row(Text(names[k], style=ACCENT), Text(meaning), Text(f"{100 * values[k]:3.0f} %", style="green3"))
    more = len(active) - SHOWN_ACTION_UNITS
    if not active or more > 0:
        grid.add_row("", Text(f"and {more} more" if active else "no action unit is active", style=FAINT))
    return grid


def _share(value: float, hue: str) -> tuple[Text, Text]:
    """A probability as a bar and a number."""
    half = BAR_WIDTH // 2
    eighths = round(value * 8 * half)
    bar = "█" * (eighths // 8) + (BLOCKS[eighths % 8] if eighths % 8 else "")
    return Text(bar.ljust(half), style=hue), Text(f"{100 * value:3.0f} %", style=hue)


def _others(snapshot: Snapshot) -> Text:
    """The other people in one line."""
    others = snapshot.people[1:]
    told = " · ".join(in_words(snapshot.labels, other) for other in others[:SHOWN_OTHERS])
    more = len(others) - SHOWN_OTHERS
    return Text(f"also {told}{f' · and {more} more' if more > 0 else ''}", style="grey62", overflow="ellipsis")


def in_words(labels: Mapping[str, tuple[str, ...]], person: SeenPerson) -> str:
    """Say what is known of a person in a few words: valence and arousal, the expression."""
    told = [f"person {person.track_id}:"]
    if VALENCE_AROUSAL.key in labels:
        valence, arousal = person.predictions[VALENCE_AROUSAL.key]
        told.append(f"valence {valence:+.2f} arousal {arousal:+.2f}")
    if EXPRESSION.key in labels:
        told.append(labels[EXPRESSION.key][int(person.decided(EXPRESSION.key).argmax())])
    return " ".join(told)
