"""Data sets of photographs as their owners hand them out: where their labels, images and splits are.

RAF-DB (basic), AffectNet (both releases), FER2013 and ExpW. Their codes mean what their owners' notes say; a file of
names (class_names) overrules that. None of them tells who is on an image: the owners' split is kept, and ExpW, which
has none, is split by the words that its images were searched with, which the file names tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from affserve.train.errors import DataError
from affserve.train.importing.class_names import CLASS_NAMES, LEFT_OUT, read_csv
from affserve.train.importing.photographs import Record, columns_of, grey_pixels
from affserve.train.labels import EXPRESSION, VALENCE_AROUSAL


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How one data set is read."""

    title: str
    read: Callable[[Path], Iterator[Record | DataError]]
    codes: Sequence[str]  # what the expression codes mean, from the first
    first_code: int = 0

    @property
    def names(self) -> Mapping[str, str]:
        """The table of names: the codes, and what is known of names."""
        return {**CLASS_NAMES, **{str(code): name for code, name in enumerate(self.codes, self.first_code)}}


def _rafdb(root: Path) -> Iterator[Record]:
    labels = _the_file(root, "list_patition_label.txt")
    base = labels.parents[1] if labels.parent.name == "EmoLabel" else labels.parent
    original = base / "Image" / "original"
    for where, cells in _lines(labels, 2):
        name = Path(cells[0])
        aligned = base / "Image" / "aligned" / f"{name.stem}_aligned.jpg"
        labelled = {"split": name.stem.partition("_")[0], EXPRESSION.key: cells[1]}
        box = base / "Annotation" / "boundingbox" / f"{name.stem}_boundingbox.txt"
        record = Record(where=where, cells=labelled, image=aligned)
        if not original.is_dir():
            yield record
        elif not box.is_file():
            yield replace(record, image=original / name)
        else:
            left, top, right, bottom = (float(cell) for cell in box.read_text().split()[:4])
            yield replace(record, image=original / name, box_px=(left, top, right - left, bottom - top))


def _affectnet(root: Path) -> Iterator[Record]:
    if any(root.rglob("*_exp.npy")):
        yield from _affectnet_folders(root)
        return
    for name, split in (("training.csv", "train"), ("validation.csv", "validation")):
        table = _the_file(root, name)
        images = next(iter(sorted(root.rglob("Manually_Annotated_Images"))), root)
        rows = read_csv(table)
        titles = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", EXPRESSION.key)
        places = columns_of(table, rows[0], {title: title for title in titles}, (*titles, *VALENCE_AROUSAL.names))
        for number, row in enumerate(rows[1:], start=2):
            x, y, width, height = (float(row[places[title]]) for title in titles[1:5])
            rating = {name: row[places[name]] for name in VALENCE_AROUSAL.names if name in places}
            rated = rating if all(abs(float(value)) <= 1 for value in rating.values()) else {}  # -2: not rated
            yield Record(
                where=f"{table}:{number}",
                cells={"split": split, EXPRESSION.key: row[places[EXPRESSION.key]], **rated},
                image=images / row[places[titles[0]]],
                box_px=(x, y, width, height),
            )


def _affectnet_folders(root: Path) -> Iterator[Record]:
    """Of the later release: `train_set/images/7.jpg` with `train_set/annotations/7_exp.npy`, `7_val`, `7_aro`."""
    for path in sorted(root.rglob("*_exp.npy")):
        number, folder = path.name.removesuffix("_exp.npy"), path.parents[1]
        cells = {"split": "train" if folder.name.startswith("train") else "validation"}
        for name, what in ((EXPRESSION.key, "exp"), ("valence", "val"), ("arousal", "aro")):
            cells[name] = str(np.load(path.with_name(f"{number}_{what}.npy")).item())
        yield Record(where=str(path), cells=cells, image=folder / "images" / f"{number}.jpg")


def _fer2013(path: Path) -> Iterator[Record | DataError]:
    names = ("fer2013.csv", "icml_face_data.csv")
    found = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    table = found[0] if found else path / names[0]
    rows = read_csv(table)
    titles = {"split": "Usage", "pixels": "pixels", "emotion": "emotion"}
    places = columns_of(table, rows[0], titles, tuple(titles))
    for number, row in enumerate(rows[1:], start=2):
        where = f"{table}:{number}"
        try:
            pixels = grey_pixels(where, row[places["pixels"]])
        except (DataError, IndexError) as error:
            yield DataError(str(error))
            continue
        cells = {"split": row[places["split"]].strip(), EXPRESSION.key: row[places["emotion"]]}
        yield Record(where=where, cells=cells, image=pixels)


def _expw(root: Path) -> Iterator[Record]:
    labels = _the_file(root, "label.lst")
    images = next(iter(sorted(path for path in root.rglob("origin") if path.is_dir())), root)
    for where, cells in _lines(labels, 8):
        top, left, right, bottom = (float(cell) for cell in cells[2:6])
        searched = re.sub(r"_?[0-9]+$", "", Path(cells[0]).stem)
        yield Record(
            where=where,
            cells={"subject": searched or cells[0], EXPRESSION.key: cells[7]},
            image=images / cells[0],
            box_px=(left, top, right - left, bottom - top),
        )


def _the_file(root: Path, name: str) -> Path:
    found = sorted(root.rglob(name)) if root.is_dir() else []
    if not found:
        raise DataError(f"{root} holds no {name}; expected the folder that the owners' archives unpack to")
    return found[0]


def _lines(path: Path, cells: int) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        parts = line.split()
        if parts and len(parts) != cells:
            raise DataError(f"{path}:{number}: found {line!r}, expected {cells} words")
        if parts:
            yield f"{path}:{number}", parts


PRESETS = {
    "rafdb": Preset(
        title="RAF-DB",
        read=_rafdb,
        codes=("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"),
        first_code=1,
    ),
    "affectnet": Preset(
        title="AffectNet",
        read=_affectnet,
        codes=(
            *("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger"),
            *("Other", LEFT_OUT, LEFT_OUT, LEFT_OUT),  # contempt, none, uncertain, no face
        ),
    ),
    "fer2013": Preset(
        title="FER2013",
        read=_fer2013,
        codes=("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral"),
    ),
    "expw": Preset(
        title="ExpW", read=_expw, codes=("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
    ),
}
