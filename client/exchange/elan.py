"""ELAN: an EAF 3.0 document with tiers of spans per person, and the curves that its timeseries viewer draws.

Three files that link each other: NAME.eaf, NAME_timeseries.csv and NAME_tsconf.xml, by names relative to the EAF, which
expects the video beside it and asks for it elsewhere.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from affserve.client.drawing.palette import PALETTE
from affserve.client.results.output_file import write_whole
from affserve.client.results.people import Frames, Person, Span, frames_of, people_of, states_of, unseen_spans
from affserve.client.results.rows import ACTION_UNIT_MEANINGS
from affserve.client.results.table import Table, labels_in
from affserve.client.results.text import lines_of, printed

SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
PROVIDER = "mpi.eudico.client.annotator.timeseries.csv.CSVServiceProvider"
WRITTEN = "1970-01-01T00:00:00+00:00"  # ELAN wants a date; the same result gives the same bytes


def write_elan(table: Table, path: Path) -> list[str]:
    """Write the three files, the EAF last; return what became of the time."""
    frames = frames_of(table)
    people = people_of(table, frames)
    series, config = path.with_name(f"{path.stem}_timeseries.csv"), path.with_name(f"{path.stem}_tsconf.xml")
    write_whole(series, _series(table, frames, people).encode())
    write_whole(config, _xml(_config(table, people, series.name)))
    write_whole(path, _xml(_document(table, frames, people, (series, config))))
    return ["ELAN counts time in whole milliseconds: spans are rounded, the curves keep the exact times"]


def _xml(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text


def _child(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, attributes)
    child.text = text or None
    return child


def _document(table: Table, frames: Frames, people: list[Person], linked: tuple[Path, ...]) -> ElementTree.Element:
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT", {"AUTHOR": "affserve", "DATE": WRITTEN, "FORMAT": "3.0", "VERSION": "3.0"}
    )
    root.set(f"{{{INSTANCE}}}noNamespaceSchemaLocation", SCHEMA)
    header = _child(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    if table.source:
        kind = mimetypes.guess_type(table.source)[0] or "unknown"
        name = f"./{table.source}"
        _child(header, "MEDIA_DESCRIPTOR", MEDIA_URL=name, MIME_TYPE=kind, RELATIVE_MEDIA_URL=name)
    for file in linked:
        kind = "text/xml" if file.suffix == ".xml" else "text/plain"
        name = f"./{file.name}"
        _child(header, "LINKED_FILE_DESCRIPTOR", LINK_URL=name, RELATIVE_LINK_URL=name, MIME_TYPE=kind)
    order = _child(root, "TIME_ORDER")
    count = 0
    for tier, (person, spans) in _tiers(table, frames, people).items():
        element = _child(root, "TIER", LINGUISTIC_TYPE_REF="affect", TIER_ID=tier, PARTICIPANT=person)
        for span, value in spans:
            count += 1
            _add_annotation(element, order, span, value, count)
    _child(header, "PROPERTY", str(count), NAME="lastUsedAnnotationId")
    _child(root, "LINGUISTIC_TYPE", LINGUISTIC_TYPE_ID="affect", TIME_ALIGNABLE="true", GRAPHIC_REFERENCES="false")
    _child(
        root, "LANGUAGE", LANG_ID="eng", LANG_LABEL="English (eng)", LANG_DEF="http://cdb.iso.org/lg/CDB-00138502-001"
    )
    return root


def _tiers(table: Table, frames: Frames, people: list[Person]) -> dict[str, tuple[str, list[tuple[Span, str]]]]:
    """Return by name of tier the person and the spans with their words, in time."""
    states, labels = states_of(table), labels_in(table)
    tiers = {}
    for person in people:
        held = {name: person.frames.spans(holds[person.rows]) for name, holds in states.items()}
        expressions = [(span, name) for name in labels.get("expression", ()) for span in held[name]]
        tiers[f"{person.name}: expression"] = (person.name, sorted(expressions))
        for unit in labels.get("action_units", ()):
            words = f"{unit} {ACTION_UNIT_MEANINGS.get(unit, '')}".rstrip()
            tiers[f"{person.name}: {words}"] = (person.name, [(span, unit) for span in held[unit]])
        tiers[f"{person.name}: no face"] = (person.name, [(span, "no face") for span in unseen_spans(frames, person)])
    return {name: tier for name, tier in tiers.items() if tier[1]}


def _add_annotation(tier: ElementTree.Element, order: ElementTree.Element, span: Span, value: str, number: int) -> None:
    slots = [f"ts{2 * number - 1}", f"ts{2 * number}"]
    start, end = (round(time_s * 1000) for time_s in span)
    for slot, time_ms in zip(
        slots, (start, max(end, start + 1)), strict=True
    ):  # one without length is an error to ELAN
        _child(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(time_ms))
    names = {"ANNOTATION_ID": f"a{number}", "TIME_SLOT_REF1": slots[0], "TIME_SLOT_REF2": slots[1]}
    annotation = _child(_child(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", **names)
    _child(annotation, "ANNOTATION_VALUE", value)


def _series(table: Table, frames: Frames, people: list[Person]) -> str:
    """Return the curves as text: a line per frame, a column per person and number; ELAN skips lines with a #."""
    first = np.searchsorted(table["frame"], frames.number)
    columns = [printed(table, "timestamp_s", first)]
    for person in people:
        places = np.searchsorted(frames.number, person.frames.number).tolist()
        for name in table.measures:
            cells = ["NaN"] * len(first)
            for place, cell in zip(places, printed(table, name, person.rows, empty="NaN"), strict=True):
                cells[place] = cell
            columns.append(cells)
    meanings = [f"# {name}: {table.columns[name].description}\n" for name in table.measures]
    names = ["# time (s)", *(_curve(person, name) for person in people for name in table.measures)]
    return "".join(meanings) + ",".join(names) + "\n" + lines_of(columns)


def _curve(person: Person, name: str) -> str:
    return f"{person.name} {name}"


def _config(table: Table, people: list[Person], series: str) -> ElementTree.Element:
    root = ElementTree.Element("timeseries", {"date": WRITTEN, "version": "1.0"})
    place: dict[str, Any] = {"source-url": f"./{series}", "sample-type": "Discontinuous Rate", "time-column": "0"}
    source = _child(root, "tracksource", **place)
    _child(source, "property", key="provider", value=PROVIDER)
    curves = [(person, name) for person in people for name in table.measures]
    for number, (person, name) in enumerate(curves, start=1):
        column = table.columns[name]
        track = _child(source, "track", derivative="0", name=_curve(person, name))
        _child(track, "property", key="detect-range", value="false")
        _child(_child(track, "sample-position"), "pos", col=str(number), row="0")
        _child(track, "description", column.description)
        _child(track, "units", column.unit)
        _child(track, "range", min=f"{column.minimum or 0:g}", max=f"{column.maximum or 1:g}")
        _child(track, "color", ",".join(map(str, bytes.fromhex(PALETTE[number % len(PALETTE)].lstrip("#")))))
    return root
