"""Which files a source's results become: their names, and the checks that need no work done first."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affserve.client.exchange.exchange import Exchange, beside
from affserve.client.results.formats import CSV, RowFormat
from affserve.client.results.output_file import check_writable
from affserve.client.video.inputs import RESULT_MARK
from affserve.client.video.source import IMAGE_SUFFIXES
from affserve.train.errors import OutputError

STANDARD_OUTPUT = Path("-")
PLOT_SUFFIX = ".png"
LONGEST_NAME_BYTES = 200  # of the 255 that a file system takes; `.affect.parquet`, `-metadata.json`, `.part` are added
NAME_DIGEST_DIGITS = 12
OVERLAY_SUFFIXES = (".mp4", ".mkv", ".mov")  # the first is the usual one


@dataclass(frozen=True, kw_only=True)
class OutputPaths:
    """Where the results of one source go."""

    rows: Path  # STANDARD_OUTPUT writes the rows there, and nothing else anywhere
    row_format: RowFormat = CSV
    plot: Path | None = None
    overlay: Path | None = None
    exchange: Exchange | None = None
    exchanged: Path | None = None  # the last of the files of `exchange`
    features: Path | None = None  # kept, for other heads

    @property
    def to_stdout(self) -> bool:
        """Whether the rows go to standard output."""
        return self.rows == STANDARD_OUTPUT

    def check_writable(self) -> None:
        """Raise an OutputError where a file could not be written."""
        for path in self.files:
            check_writable(path)

    @property
    def files(self) -> list[Path]:
        """The files that are wanted."""
        wanted = (None if self.to_stdout else self.rows, self.plot, self.overlay, self.exchanged, self.features)
        return [path for path in wanted if path is not None]


@dataclass(frozen=True, kw_only=True)
class OutputWishes:
    """What is wanted of all sources."""

    row_format: RowFormat
    out: Path | None = None  # a file, a folder or STANDARD_OUTPUT; None: the folder where the command is called
    plot: bool = True
    overlay: Path | None = None  # a file or a folder
    exchange: Exchange | None = None  # besides the rows, beside them


def names_a_file(path: Path) -> bool:
    """Say whether --out or --overlay names a file: a name with a suffix does, any other is a folder's.

    What is there already is what it is, a folder with a point in its name, say, or a device.
    """
    return not path.is_dir() and (path.suffix != "" or path.exists())


def plan_outputs(sources: Sequence[Path], wishes: OutputWishes) -> dict[Path, OutputPaths]:
    """Return the outputs of each source.

    OutputError where a file is named for several sources, two results would be one file, or a source would be
    overwritten.
    """
    for option, path in (("--out", wishes.out), ("--overlay", wishes.overlay)):
        if path not in (None, STANDARD_OUTPUT) and len(sources) > 1 and names_a_file(path):
            raise OutputError(
                f"{option} {path} names one file, and there are {len(sources)} sources: name a folder, as "
                f"{option} {path.with_suffix('')}"
            )
    names = _names(sources, tree=wishes.out is not None)
    planned = {source: _outputs(source, names[source], wishes) for source in sources}
    takers: dict[Path, Path] = {}
    for source, outputs in planned.items():
        for path in outputs.files:
            if takers.setdefault(path, source) != source:
                raise OutputError(f"{path} would be the result of {takers[path]} and of {source}: give --out a folder")
        if len(set(outputs.files)) < len(outputs.files):
            raise OutputError(
                f"the plot and the overlay of {source} would both be {outputs.plot}: give --overlay another name"
            )
        if any(path.exists() and source.exists() and path.samefile(source) for path in outputs.files):
            raise OutputError(f"the result would overwrite the source {source}: choose another place")
    return planned


def make_folders(planned: Mapping[Path, OutputPaths]) -> None:
    """Make the folders of all outputs; OutputError where that cannot be."""
    for folder in {path.parent for outputs in planned.values() for path in outputs.files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made a folder for the results: {error.strerror}") from error


def _outputs(source: Path, name: str, wishes: OutputWishes) -> OutputPaths:
    rows = wishes.out
    if rows != STANDARD_OUTPUT:
        rows = _placed(wishes.out or Path(), name + wishes.row_format.suffixes[0])
    return OutputPaths(
        rows=rows,
        row_format=wishes.row_format,
        plot=rows.with_suffix(PLOT_SUFFIX) if wishes.plot else None,
        overlay=_overlay(source, name, wishes.overlay) if wishes.overlay is not None else None,
        exchange=wishes.exchange,
        exchanged=beside(rows, wishes.exchange) if wishes.exchange else None,
    )


def _overlay(source: Path, name: str, wanted: Path) -> Path:
    still = source.suffix.lower() in IMAGE_SUFFIXES and not source.is_dir()
    suffixes = sorted(IMAGE_SUFFIXES) if still else OVERLAY_SUFFIXES
    path = _placed(wanted, f"{name}{'.overlay.png' if still else OVERLAY_SUFFIXES[0]}")
    if path.suffix.lower() not in suffixes:
        kind = "picture of an image" if still else "video"
        raise OutputError(f"--overlay {path}: the overlay is a {kind}; expected a name in {', '.join(suffixes)}")
    return path


def _placed(wanted: Path, name: str) -> Path:
    return wanted if names_a_file(wanted) else wanted / name


def _names(sources: Sequence[Path], *, tree: bool) -> dict[Path, str]:
    """Name each source's results: by its stem; where that is not unique by its whole name; else by its place, too."""
    places = {source: source.resolve() for source in sources}
    stems = {source: place.name if source.is_dir() else source.stem for source, place in places.items()}
    same_stem = Counter(stems.values())
    same_name = Counter(place.name for place in places.values())
    common = Path(os.path.commonpath([place.parent for place in places.values()])) if places else Path()
    names: dict[Path, str] = {}
    for source, place in places.items():
        if same_stem[stems[source]] == 1:
            names[source] = stems[source]
        elif same_name[place.name] == 1 or not tree:
            names[source] = place.name
        else:
            names[source] = str(place.relative_to(common))
    return {source: _fitting(name) + RESULT_MARK for source, name in names.items()}


def _fitting(name: str) -> str:
    """Shorten a name to which the suffixes of no result could be added any more; it stays one of its own."""
    folder, own = os.path.split(name)
    encoded = os.fsencode(own)
    if len(encoded) <= LONGEST_NAME_BYTES:
        return name
    kept = encoded[: LONGEST_NAME_BYTES - 1 - NAME_DIGEST_DIGITS].decode(errors="ignore")
    return os.path.join(folder, f"{kept}~{hashlib.sha256(encoded).hexdigest()[:NAME_DIGEST_DIGITS]}")
