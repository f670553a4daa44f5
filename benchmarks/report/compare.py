"""What changed between two runs beyond noise: two result files, or two folders of them.

Every list of raw times that both hold is compared by the ratio of its medians and a bootstrap interval of that ratio:
where the interval holds 1, nothing can be said to have changed. Lists are found by the unit in their names (`times_s`,
`samples_ms`, ...) and matched by where they stand; entries of lists are matched by what identifies them.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from affserve.benchmarks.measuring.samples import ratio_interval
from affserve.benchmarks.report.files import read_result, read_results
from affserve.train.errors import DataError

TIME_UNITS = ("_s", "_ms")
RATE_UNITS = ("_per_s", "_per_second")
LEAST_SAMPLES = 3  # of one list: below that nothing is known about noise
TOLERANCE = 0.05  # two runs also differ by what the machine did at the time, which no interval of one run knows
# What tells one entry of a list from another, and never what was measured.
IDENTITY = (
    "model", "engine", "precision", "transport", "loop", "concurrency", "rate_per_second", "streams", "frames",
    "batch", "clients", "servers", "faces", "threads", "settings", "in_flight", "name", "what", "tool",
)  # fmt: skip
WORSE, BETTER, SAME = "worse", "better", "within noise"
ORDER = (WORSE, BETTER, SAME)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One list of raw times in both results."""

    where: str  # path to it
    ratio: float  # of the medians, after / before
    low: float  # end of the 95 % interval
    high: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that both results hold."""

    before: str
    after: str
    notes: tuple[str, ...]  # why a change may not be the code's
    changes: tuple[Change, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse."""
        return tuple(change for change in self.changes if change.verdict == WORSE)

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=2)


def compare_results(before: Path, after: Path, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two files or two folders; DataError when they have nothing in common.

    tolerance: a change of at most this share is let through even when it is beyond noise.
    """
    pairs = dict(_pairs(before, after))
    changes: list[Change] = []
    notes: list[str] = []
    for name, (old, new) in pairs.items():
        notes += [f"{name}: {note}" for note in _differences(old["environment"], new["environment"])]
        known = dict(series(old["measured"], name))
        for where, values in series(new["measured"], name):
            if where in known:
                changes.append(_change(where, known[where], values, tolerance))
    if not changes:
        raise DataError(f"{before} and {after} have no raw times in common; compare results of the same measurements")
    changes.sort(key=lambda change: (ORDER.index(change.verdict), change.where))
    return Comparison(before=str(before), after=str(after), notes=tuple(notes), changes=tuple(changes))


def _pairs(before: Path, after: Path) -> Iterator[tuple[str, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    if before.is_dir() != after.is_dir():
        raise DataError(f"one of {before} and {after} is a folder; expected two files or two folders")
    if not before.is_dir():
        old, new = read_result(before), read_result(after)
        yield str(new["name"]), (old, new)
        return
    old_ones, new_ones = read_results(before).documents, read_results(after).documents
    for name in old_ones.keys() & new_ones.keys():
        yield name, (old_ones[name], new_ones[name])


def series(value: object, where: str) -> Iterator[tuple[str, list[float]]]:
    """Yield every list of raw values below a measurement, and where it stands; of a list of rounds, their medians."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key.endswith((*TIME_UNITS, *RATE_UNITS)) and isinstance(item, list):
                if samples := _samples(item):
                    yield f"{where} / {key}", samples
            else:
                yield from series(item, f"{where} / {key}")
    elif isinstance(value, list):
        seen: Counter[str] = Counter()
        for index, item in enumerate(value):
            identity = _identity(item, index)
            seen[identity] += 1
            again = f" #{seen[identity]}" if seen[identity] > 1 else ""  # the same measurement, repeated
            yield from series(item, f"{where} / {identity}{again}")


def _samples(values: Sequence[Any]) -> list[float]:
    if values and all(isinstance(one, list) and one for one in values):
        values = [statistics.median(one) for one in values]
    usable = len(values) >= LEAST_SAMPLES and all(type(one) in (int, float) and one > 0 for one in values)
    return [float(one) for one in values] if usable else []


def _identity(item: object, index: int) -> str:
    if isinstance(item, Mapping):
        named = [f"{key}={item[key]}" for key in IDENTITY if isinstance(item.get(key), (str, int, float))]
        if named:
            return " ".join(named)
    return str(index)


def _change(where: str, before: Sequence[float], after: Sequence[float], tolerance: float) -> Change:
    interval = ratio_interval(after, before, in_turns=False)
    verdict = SAME
    if 1 not in interval and abs(interval.value - 1) > tolerance:
        higher_is_better = where.endswith(RATE_UNITS)
        verdict = BETTER if (interval.value > 1) == higher_is_better else WORSE
    return Change(where=where, ratio=interval.value, low=interval.low, high=interval.high, verdict=verdict)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield what else than the code differs between two environments."""
    for key in ("cpu", "cpus", "gpus", "python", "system"):
        if before.get(key) != after.get(key):
            yield f"{key} was {before.get(key)}, is {after.get(key)}"
    old, new = before.get("packages", {}), after.get("packages", {})
    for package in sorted(old.keys() | new.keys()):
        if package != "affserve" and old.get(package) != new.get(package):
            yield f"{package} was {old.get(package)}, is {new.get(package)}"


def changes_table(comparison: Comparison) -> str:
    """Render a comparison for people: what changed first."""
    lines = [f"{comparison.before} -> {comparison.after}: time or rate afterwards, times as much as before"]
    lines += [f"note: {note}" for note in dict.fromkeys(comparison.notes)]
    for change in comparison.changes:
        interval = f"[{change.low:.3f}, {change.high:.3f}]"
        lines.append(f"{change.verdict:<12}  {change.ratio:6.3f}  {interval:<16}  {change.where}")
    counts = {verdict: sum(one.verdict == verdict for one in comparison.changes) for verdict in ORDER}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return "\n".join(lines)
