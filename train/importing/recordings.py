"""Labels of recordings, at times of their own, brought to the frames of the video: tables and ELAN files.

In come a table with a column of frames or of times, or a file of ELAN whose tiers the user names, and the times of the
frames that `affserve data crop` has written down; out come values for every frame. Numbers in between two labels are
interpolated, classes and units are those of the nearest label, and a frame with no label near is not labelled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from affserve.train.corpus.affwild2 import CROP_RECORDS, SERVED_ROOT
from affserve.train.errors import DataError
from affserve.train.importing.class_names import ClassNames, read_csv
from affserve.train.importing.photographs import columns_of, read_labels
from affserve.train.labels import ACTION_UNITS, EXPRESSION, TASKS, VALENCE_AROUSAL, Task

LABELS = (EXPRESSION.key, *VALENCE_AROUSAL.names, *ACTION_UNITS.names)
TIMES = ("time", "timestamp_s", "time_s", "timestamp", "seconds")
ELAN_SUFFIX = ".eaf"
LATE_S = 0.5  # labels this much past the last frame are of a longer video


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Labels of one task at their own times."""

    times_s: NDArray[np.float64]  # (M,), ascending
    values: NDArray[np.float32]  # (M, columns)
    ends_s: NDArray[np.float64] | None = None  # (M,) where each label holds for an interval


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files of labels are read."""

    names: ClassNames
    columns: Mapping[str, str]  # of tables: what they call frame, time, expression, ...
    tiers: Mapping[str, str]  # of ELAN: expression, valence, ... -> tier
    delay_s: float = 0.0  # a label at t + delay is of the frame at t: raters lag
    linear: bool = True  # numbers between two labels; False: of the nearest, as classes


def frame_times(root: Path) -> dict[str, NDArray[np.float64]]:
    """Return the times of the frames of each crop folder, (N,) seconds, that `affserve data crop` wrote down."""
    found: dict[str, NDArray[np.float64]] = {}
    for path in sorted((root / SERVED_ROOT / CROP_RECORDS).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            times = np.array(record["times_s"], np.float64)
            found |= dict.fromkeys(record["report"]["crops"], times)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no record of affserve data crop: {error}; remove it and crop again") from error
    return found


def read_recording(
    path: Path, times_s: NDArray[np.float64], reading: Reading
) -> tuple[dict[str, NDArray[np.float32]], str | None]:
    """Return the labels of each frame, (N, columns) by task, and what is odd about them.

    times_s: (N,), of the frames. DataError where the file cannot be understood.
    """
    samples = _read_elan(path, reading) if path.suffix.lower() == ELAN_SUFFIX else _read_table(path, times_s, reading)
    labels = {
        key: spread(TASKS[key], one, times_s + reading.delay_s, linear=reading.linear) for key, one in samples.items()
    }
    if not any((values != TASKS[key].invalid).any() for key, values in labels.items()):
        raise DataError(f"{path} labels none of the {len(times_s)} frames of its video; are its times in seconds?")
    last_s = max(float((one.times_s if one.ends_s is None else one.ends_s).max()) for one in samples.values())
    over_s = last_s - reading.delay_s - float(times_s[-1])
    odd = f"{path} has labels up to {last_s:.1f} s and its video ends {over_s:.1f} s earlier; those are left out"
    return labels, odd if over_s > LATE_S else None


def _read_table(path: Path, times_s: NDArray[np.float64], reading: Reading) -> dict[str, Samples]:
    rows = read_csv(path)
    header = [title.strip().lower() for title in rows[0]] if rows else []
    given = dict(reading.columns)
    if "time" not in given and (title := next((name for name in TIMES if name in header), None)):
        given["time"] = title
    places = columns_of(path, rows[0] if rows else [], given, ("frame", "time", *LABELS))
    # Frames are exact; a time that the user named comes before them.
    by_frame = "frame" in places and "time" not in reading.columns
    if not by_frame and "time" not in places:
        raise DataError(f"{path} has neither a column 'frame' nor one of times: name it, --columns time=NAME")
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = {name: row[place].strip() for name, place in places.items() if place < len(row)}
        when = _number(f"{path}:{number}", cells.get("frame" if by_frame else "time", ""))
        if by_frame and not 0 <= when < len(times_s):
            when = float(times_s[-1]) + 2 * LATE_S + (when - len(times_s)) * _step(times_s)  # told as past the end
        elif by_frame:
            when = float(times_s[int(when)])
        for key, values in read_labels(f"{path}:{number}", cells, reading.names).items():
            found.setdefault(key, []).append((when, values))
    if not found:
        raise DataError(
            f"{path} has no label; expected columns of {', '.join(LABELS[:3])}, AU1, ... (--columns names them)"
        )
    return {key: _sorted(path, parts) for key, parts in found.items()}


def _number(where: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: frame or time is {text!r}, expected a number") from error


def _sorted(path: Path, parts: list[tuple[float, list[float]]]) -> Samples:
    times = np.array([when for when, _ in parts])
    order = np.argsort(times, kind="stable")
    if (np.diff(times[order]) == 0).any():
        again = times[order][1:][np.diff(times[order]) == 0][0]
        raise DataError(f"{path} has several rows for {again:g} s; expected one, of one person: a file for each")
    return Samples(times_s=times[order], values=np.array([values for _, values in parts], np.float32)[order])


def _read_elan(path: Path, reading: Reading) -> dict[str, Samples]:
    """Read intervals: of expressions by name, of valence and arousal by number; a unit is active where one lies."""
    if not reading.tiers:
        raise DataError(f"{path}: say which tiers hold what: --tiers expression=TIER,... (or valence=, arousal=, AU1=)")
    tiers = elan_tiers(path)
    if absent := next(((name, tier) for name, tier in reading.tiers.items() if tier not in tiers), None):
        names = ", ".join(map(repr, tiers)) or "none"
        raise DataError(f"{path} has no tier {absent[1]!r} for {absent[0]}; it has {names}")
    held = {name: tiers[tier] for name, tier in reading.tiers.items()}
    found: dict[str, Samples] = {}
    for task in TASKS.values():
        wanted = (task.key,) if task.kind == "one_of" else task.names
        chosen = {name: held[name] for name in wanted if name in held}
        if task.kind == "regression" and len(chosen) == 1:
            raise DataError(f"{path}: tiers of {task.title}: only {', '.join(chosen)}; a corpus needs both")
        if chosen and (one := _intervals(path, task, chosen, reading.names)) is not None:
            found[task.key] = one
    if not found:
        raise DataError(f"{path} holds no label on the tiers {', '.join(reading.tiers.values())}")
    return found


def elan_tiers(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Return the tiers of an ELAN file (EAF 2 and 3) by name: start and end, seconds, and text of each annotation."""
    try:
        document = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as an ELAN file: {error}") from error
    slots = {one.get("TIME_SLOT_ID"): one.get("TIME_VALUE") for one in document.iter("TIME_SLOT")}
    spans: dict[str | None, tuple[float, float]] = {}  # by annotation
    for one in document.iter("ALIGNABLE_ANNOTATION"):
        start, end = (slots.get(one.get(name)) for name in ("TIME_SLOT_REF1", "TIME_SLOT_REF2"))
        if start is not None and end is not None:  # parts of a subdivision have no times of their own
            spans[one.get("ANNOTATION_ID")] = int(start) / 1000, int(end) / 1000
    for one in document.iter("REF_ANNOTATION"):  # says something of another annotation
        if (parent := spans.get(one.get("ANNOTATION_REF"))) is not None:
            spans[one.get("ANNOTATION_ID")] = parent
    return {
        tier.get("TIER_ID", ""): [
            (*spans[one.get("ANNOTATION_ID")], one.findtext("ANNOTATION_VALUE") or "")
            for one in tier.iterfind("ANNOTATION/*")
            if one.get("ANNOTATION_ID") in spans
        ]
        for tier in document.iter("TIER")
    }


def _intervals(
    path: Path, task: Task, tiers: Mapping[str, list[tuple[float, float, str]]], names: ClassNames
) -> Samples | None:
    """Cut the tiers of a task at every border, so that each piece has one label."""
    borders = sorted({edge for tier in tiers.values() for start, end, _ in tier for edge in (start, end)})
    pieces: list[tuple[float, float, list[float]]] = []
    for start, end in pairwise(borders):
        over = {name: [text for a, b, text in tier if a <= start and end <= b] for name, tier in tiers.items()}
        if task.kind == "any_of":
            cells = {name: str(len(texts[:1])) for name, texts in over.items()}
        else:
            cells = {name: texts[-1] for name, texts in over.items() if texts}
        if (values := read_labels(f"{path} at {start:g} s", cells, names).get(task.key)) is not None:
            pieces.append((start, end, values))
    if not pieces:
        return None
    return Samples(
        times_s=np.array([start for start, _, _ in pieces]),
        ends_s=np.array([end for _, end, _ in pieces]),
        values=np.array([values for _, _, values in pieces], np.float32),
    )


def spread(task: Task, samples: Samples, times_s: NDArray[np.float64], *, linear: bool) -> NDArray[np.float32]:
    """Return the labels (N, columns) at some times (N,); invalid where no label is near.

    Near is as far as labels lie from one another: rated twice a second, within half a second.
    """
    known, values = samples.times_s, samples.values
    rows = np.full((len(times_s), task.columns), task.invalid, np.float32)
    after = np.searchsorted(known, times_s, side="right")  # first label later than the frame
    before = np.clip(after - 1, 0, len(known) - 1)
    if samples.ends_s is not None:
        inside = (after > 0) & (times_s < samples.ends_s[before])
        rows[inside] = values[before[inside]]
        return rows
    reach = max(_step(known), _step(times_s)) * 1.01
    later = np.clip(after, 0, len(known) - 1)
    nearer = np.where(np.abs(known[later] - times_s) < np.abs(times_s - known[before]), later, before)
    near = np.abs(known[nearer] - times_s) <= reach / 2 + 1e-9
    rows[near] = values[nearer[near]]
    if linear and task.kind == "regression":
        between = (after > 0) & (after < len(known)) & (known[later] - known[before] <= 2 * reach)
        for column in range(task.columns):
            rows[between, column] = np.interp(times_s[between], known, values[:, column])
    return rows


def _step(times_s: NDArray[np.float64]) -> float:
    """Return the usual distance of times, seconds."""
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0


def described(reading: Reading) -> dict[str, Any]:
    """Return how labels came to the frames, for corpus.json."""
    between = "linear" if reading.linear else "nearest"
    return {"between_labels": {"numbers": between, "classes and units": "nearest"}, "delay_s": reading.delay_s}
