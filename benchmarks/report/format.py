"""How figures of a report are written: tables, medians with their interval, fits and bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from affserve.benchmarks.measuring.samples import median_interval

Measured = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (header, rule, *rows)]


def rows_table(header: str, cells: str, rows: Iterable[Measured]) -> list[str]:
    """Return a Markdown table of results, written as its lines are: headings, and formats of a row's fields."""
    return table(header.split(" | "), [[cells.format_map(row)] for row in rows])


def measured_rate(count: int, times_s: Sequence[float]) -> list[float]:
    """Return items per second of each run."""
    return [count / value for value in times_s]


def median_text(values: Sequence[float]) -> str:
    """Write a median with its 95 % interval; of a single value there is none."""
    interval = median_interval(values)
    if len(values) == 1:
        return short(interval.value)
    return f"{short(interval.value)} [{short(interval.low)}, {short(interval.high)}]"


def interval_text(value: Mapping[str, float] | None, unit: str = "") -> str:
    """Write a figure with its interval, where there is one."""
    return "" if value is None else f"{value['value']:.2f}{unit} [{value['low']:.2f}, {value['high']:.2f}]"


def request_text(point: Mapping[str, Any]) -> str:
    """Write what was asked: model, frames and transport."""
    return f"{point['model']} × {point['frames']}, {point['transport']}"


def short(value: float) -> str:
    """Write three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def fit_lines(measured: Measured, unit: str, cost: str, factor: float, told: str) -> Iterator[str]:
    """Write what a unit of work costs, if a line was fitted; factor: from the fit's cost to what is told."""
    if fit := measured.get("fit"):
        yield ""
        yield (
            f"Fitted: {fit['slope'] * factor:.3g} {told} for {unit}, {fit['intercept']:.3g} {cost} besides "
            f"(R² {fit['r_squared']:.4f}); cost grows with the power {measured['exponent']:.3f}."
        )


def bar_lines(measured: Measured) -> Iterator[str]:
    """Write the bars of a measurement and whether they are met."""
    bars = measured.get("bars", [])
    if bars:
        yield ""
        rows = [(one["what"], one["figure"], _limit(one), "yes" if one["met"] else "**no**") for one in bars]
        yield from table(("bar", "figure", "limit", "met"), rows)


def _limit(bar: Mapping[str, float]) -> str:
    return f"at least {bar['at_least']:g}" if "at_least" in bar else f"at most {bar['at_most']:g}"
