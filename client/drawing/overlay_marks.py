"""What an overlay shows of one face: its box, who it is, the top expression, a valence-arousal dial, active units.

Everything scales with the picture. The card with dial and action units stands beside the face where it hides least, and
stays there: a card that jumps from side to side cannot be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affserve.client.drawing.canvas import INK, WHITE, Canvas, Colour, TextMask, colour_of, readable_on, text_mask
from affserve.client.drawing.palette import track_colour
from affserve.client.faces.face import Box, shared_area
from affserve.client.results.people import ACTIVE_FROM
from affserve.client.results.rows import SeenPerson
from affserve.train.labels import ACTION_UNITS, EXPRESSION, VALENCE_AROUSAL

MOST_UNITS = 6  # rows of action units on a card; what is left is counted
TRAIL_FRAMES = 24  # that the dial's trail remembers
REFERENCE_PX = 360  # picture height at which a unit is one pixel
SMALLEST_TEXT_PX = 9
SMOOTHING = 0.8  # share of a card's place before that stays: faces tremble, cards should not
SIDE_CHANGE = 0.15  # part of its area that a card must hide less elsewhere before it moves there
SOFT: Colour = (176, 184, 194)
TRACK: Colour = (70, 78, 88)


@dataclass(kw_only=True)
class _Place:
    """Where a person's card is, and where the dial's dot has been."""

    side: int | None = None
    corner: NDArray[np.float64] | None = None  # (2,) x, y
    trail: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=TRAIL_FRAMES))


@dataclass(frozen=True, kw_only=True)
class _Card:
    """The measures of a card, in pixels."""

    unit: float
    size_px: int
    width: float
    height: float
    dial: float  # diameter; 0 without valence and arousal
    units: tuple[tuple[str, float], ...]  # active action units with their probability, the strongest first


class Marks:
    """Draws the people of each frame; remembers where their cards are."""

    def __init__(self, labels: Mapping[str, Sequence[str]], names: Mapping[int, str] | None = None) -> None:
        self._labels = labels
        self._names = names or {}
        self._places: dict[int, _Place] = {}

    def draw(self, canvas: Canvas, people: Sequence[SeenPerson]) -> None:
        """Draw the people of the next frame: boxes first, so that no box crosses a card."""
        unit = _unit(canvas, len(people))
        taken = [person.box_px for person in people]
        for person in people:
            _draw_box(canvas, person, unit)
        for person in people:
            taken += self._draw_card(canvas, person, unit, taken)
        for person in people:
            self._draw_chip(canvas, person, unit)

    def _draw_chip(self, canvas: Canvas, person: SeenPerson, unit: float) -> None:
        """Write the person's name or number and the top expression on the box's upper edge."""
        colour = _colour(person)
        size = _text_px(13, unit)
        parts = [text_mask(self._names.get(person.track_id, str(person.track_id)), size, bold=True)]
        if EXPRESSION.key in self._labels:
            values = person.predictions[EXPRESSION.key]
            top = int(person.decided(EXPRESSION.key).argmax())
            parts.append(text_mask(f"{self._labels[EXPRESSION.key][top]} {values[top]:.0%}", size))
        pad, gap = 0.45 * size, 0.5 * size
        width = sum(part.width_px for part in parts) + gap * (len(parts) - 1) + 2 * pad
        height = 1.55 * size
        x, y, _, _ = person.box_px
        left = min(max(x, 0.0), max(canvas.width - width, 0.0))
        top_px = y - height - 0.2 * size if y > height + 0.2 * size else max(y, 0.0) + 0.3 * size
        canvas.panel((left, top_px, width, height), colour, 0.92, 0.35 * size)
        ink, pen = readable_on(colour), left + pad
        for part in parts:
            canvas.text(pen, top_px + 1.12 * size, part, ink)
            pen += part.width_px + gap

    def _draw_card(self, canvas: Canvas, person: SeenPerson, unit: float, taken: Sequence[Box]) -> list[Box]:
        """Draw a person's card, if there is anything to say; return the place that it takes."""
        card = self._card(person, unit)
        if card.height <= 0:
            return []
        place = self._places.setdefault(person.track_id, _Place())
        left, top = _settle(place, card, person.box_px, taken, canvas)
        box = (left, top, card.width, card.height)
        canvas.panel(box, INK, 0.62, 6 * unit)
        canvas.panel((left + 6 * unit, top, card.width - 12 * unit, 2.5 * unit), _colour(person), 1.0, unit)
        if card.dial:
            _draw_dial(canvas, person, place, card, left, top)
            top += card.dial + 1.7 * card.size_px
        _draw_units(canvas, card, left, top)
        return [box]

    def _card(self, person: SeenPerson, unit: float) -> _Card:
        names = self._labels.get(ACTION_UNITS.key, ())
        values = person.predictions[ACTION_UNITS.key] if names else np.empty(0, dtype=np.float32)
        decided = person.decided(ACTION_UNITS.key) if names else values
        active = sorted(
            ((name, float(p)) for name, p, one in zip(names, values, decided, strict=True) if one >= ACTIVE_FROM),
            key=lambda pair: -pair[1],
        )
        size = _text_px(10.5, unit)
        dial = 78 * unit if VALENCE_AROUSAL.key in self._labels else 0.0
        rows = min(len(active), MOST_UNITS) + (len(active) > MOST_UNITS)
        height = (dial + 2.0 * size if dial else 0.0) + (rows * 1.45 * size + 0.9 * size if rows else 0.0)
        width = max(dial + 1.2 * size, 10.4 * size)
        return _Card(unit=unit, size_px=size, width=width, height=height, dial=dial, units=tuple(active))


def _colour(person: SeenPerson) -> Colour:
    return colour_of(track_colour(person.track_id))


def _unit(canvas: Canvas, people: int) -> float:
    """Return the pixels of one unit: as the picture is high, and less where many people share it."""
    crowd = 1.0 if people <= 2 else 0.85 if people <= 4 else 0.7
    return min(canvas.height, 0.8 * canvas.width) / REFERENCE_PX * crowd


def _text_px(points: float, unit: float) -> int:
    return max(SMALLEST_TEXT_PX, round(points * unit))


def _draw_box(canvas: Canvas, person: SeenPerson, unit: float) -> None:
    """Draw the box as four corners, with a dark edge that stands out on light pictures too."""
    x, y, width, height = person.box_px
    arm = 0.22 * min(width, height)
    colour = _colour(person)
    for stroke, line_px in ((INK, 4 * unit), (colour, 2.2 * unit)):
        for corner_x, corner_y, right, down in (
            (x, y, 1, 1),
            (x + width, y, -1, 1),
            (x, y + height, 1, -1),
            (x + width, y + height, -1, -1),
        ):
            points = [(corner_x + right * arm, corner_y), (corner_x, corner_y), (corner_x, corner_y + down * arm)]
            canvas.line(np.array(points), stroke, max(line_px, 1.0 if stroke is colour else 2.0))


def _draw_dial(canvas: Canvas, person: SeenPerson, place: _Place, card: _Card, left: float, top: float) -> None:
    """Draw valence to the right and arousal upwards, with the way that the last frames have come."""
    valence, arousal = (float(value) for value in person.predictions[VALENCE_AROUSAL.key][:2])
    radius = card.dial / 2 - 0.6 * card.size_px
    x, y = left + card.width / 2, top + card.dial / 2 + 0.2 * card.size_px
    colour = _colour(person)
    line_px = max(1.0, card.unit)
    canvas.line(np.array([(x - radius, y), (x + radius, y)]), TRACK, line_px)
    canvas.line(np.array([(x, y - radius), (x, y + radius)]), TRACK, line_px)
    canvas.ring(np.array((x, y)), radius, SOFT, line_px)
    place.trail.append((valence, arousal))
    trail = np.array(place.trail) * (radius, -radius) + (x, y)
    for k in range(1, len(trail)):
        fade = k / len(trail)
        shade = tuple(round(tone * fade + dark * (1 - fade)) for tone, dark in zip(colour, INK, strict=True))
        canvas.line(trail[k - 1 : k + 1], (shade[0], shade[1], shade[2]), 1.6 * card.unit)
    canvas.disc(trail[-1], 4.6 * card.unit, WHITE)
    canvas.disc(trail[-1], 3.2 * card.unit, colour)
    text = text_mask(f"V {valence:+.2f}   A {arousal:+.2f}".replace("-", "−"), card.size_px)
    canvas.text(left + (card.width - text.width_px) / 2, top + card.dial + 1.3 * card.size_px, text, WHITE)


def _draw_units(canvas: Canvas, card: _Card, left: float, top: float) -> None:
    """Draw the active action units, each with a bar of its probability."""
    pad, line = 0.7 * card.size_px, 1.45 * card.size_px
    for name, probability in card.units[:MOST_UNITS]:
        top += line
        canvas.text(left + pad, top - 0.2 * card.size_px, text_mask(name, card.size_px), WHITE)
        bar_left = left + pad + 3.6 * card.size_px
        length, thick = card.width - 2 * pad - 3.6 * card.size_px, 0.42 * card.size_px
        middle = top - 0.2 * card.size_px - 0.36 * card.size_px
        canvas.panel((bar_left, middle - thick / 2, length, thick), TRACK, 1.0, thick / 2)
        canvas.panel((bar_left, middle - thick / 2, length * probability, thick), WHITE, 0.95, thick / 2)
    if (rest := len(card.units) - MOST_UNITS) > 0:
        canvas.text(left + pad, top + line - 0.2 * card.size_px, text_mask(f"and {rest} more", card.size_px), SOFT)


def _settle(place: _Place, card: _Card, box: Box, taken: Sequence[Box], canvas: Canvas) -> tuple[float, float]:
    """Return the card's corner: beside the face where it hides least, and near where it was in the frame before."""
    x, y, width, height = box
    gap = 6 * card.unit
    wanted = [(x + width + gap, y), (x - card.width - gap, y), (x, y + height + gap), (x, y - card.height - 4 * gap)]
    corners = [
        (min(max(cx, gap), canvas.width - card.width - gap), min(max(cy, gap), canvas.height - card.height - gap))
        for cx, cy in wanted
    ]
    hidden = [sum(shared_area((*corner, card.width, card.height), other) for other in taken) for corner in corners]
    best = int(np.argmin(hidden))
    if place.side is None or hidden[place.side] - hidden[best] > SIDE_CHANGE * card.width * card.height:
        place.side = best
    target = np.array(corners[place.side])
    place.corner = target if place.corner is None else SMOOTHING * place.corner + (1 - SMOOTHING) * target
    return float(place.corner[0]), float(place.corner[1])


def draw_notice(canvas: Canvas, text: str) -> None:
    """Write a line at the foot of the picture that nobody should overlook."""
    size = _text_px(10.5, _unit(canvas, 1))
    mask: TextMask = text_mask(text, size)
    left, top = 0.8 * size, canvas.height - 2.3 * size
    canvas.panel((left, top, mask.width_px + 1.2 * size, 1.6 * size), INK, 0.62, 0.4 * size)
    canvas.text(left + 0.6 * size, top + 1.15 * size, mask, (255, 196, 120))
