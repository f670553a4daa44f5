"""Which files a source's results become: their names, and the checks that need no work done first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from affserve.client.results.formats import CSV, RowFormat
from affserve.client.results.output_file import check_writable
from affserve.client.video.inputs import RESULT_MARK
from affserve.client.video.source import IMAGE_SUFFIXES
from affserve.train.errors import OutputError

STANDARD_OUTPUT = Path("-")
PLOT_SUFFIX = ".png"
OVERLAY_SUFFIXES = (".mp4", ".mkv", ".mov")  # the first is the usual one


@dataclass(frozen=True, kw_only=True)
class OutputPaths:
    """Where the results of one source go."""

    rows: Path  # STANDARD_OUTPUT writes the rows there, and nothing else anywhere
    row_format: RowFormat = CSV
    plot: Path | None = None
    overlay: Path | None = None

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
        return [path for path in (None if self.to_stdout else self.rows, self.plot, self.overlay) if path is not None]


@dataclass(frozen=True, kw_only=True)
class OutputWishes:
    """What is wanted of all sources."""

    row_format: RowFormat
    out: Path | None = None  # a file, a folder or STANDARD_OUTPUT; None: beside where the command is called
    plot: bool = True
    overlay: Path | None = None  # a file or a folder


def plan_outputs(sources: Sequence[Path], wishes: OutputWishes, *, several: bool) -> dict[Path, OutputPaths]:
    """Return the outputs of each source; several: whether `out` and `overlay` are folders even for one source.

    OutputError where two sources would write one file, or a source would be overwritten.
    """
    names = _names(sources, tree=several and wishes.out is not None)
    planned = {source: _outputs(source, names[source], wishes, several) for source in sources}
    files = Counter(path for outputs in planned.values() for path in outputs.files)
    if twice := [path for path, count in files.items() if count > 1]:
        raise OutputError(f"{twice[0]} would be written for two sources of the same name: give a folder with --out")
    for source, outputs in planned.items():
        if any(path.exists() and source.exists() and path.samefile(source) for path in outputs.files):
            raise OutputError(f"the result would overwrite the source {source}: choose another place")
    return planned


def make_folders(planned: dict[Path, OutputPaths], wishes: OutputWishes, *, several: bool) -> None:
    """Make the folders that the wishes name; a folder that a single file should lie in must be there already."""
    for folder in {wishes.out, wishes.overlay} - {None, STANDARD_OUTPUT}:
        if folder is None or not (several or folder.is_dir()):
            continue
        inside = {path.parent for outputs in planned.values() for path in outputs.files if folder in path.parents}
        for place in {folder, *inside}:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{place} cannot be made a folder for the results: {error.strerror}") from error


def _outputs(source: Path, name: str, wishes: OutputWishes, several: bool) -> OutputPaths:
    rows = wishes.out
    if rows != STANDARD_OUTPUT:
        rows = _placed(wishes.out or Path(), name + wishes.row_format.suffixes[0], several or wishes.out is None)
    return OutputPaths(
        rows=rows or STANDARD_OUTPUT,
        row_format=wishes.row_format,
        plot=rows.with_suffix(PLOT_SUFFIX) if wishes.plot and rows is not None else None,
        overlay=_overlay(source, name, wishes.overlay, several) if wishes.overlay is not None else None,
    )


def _overlay(source: Path, name: str, wanted: Path, several: bool) -> Path:
    still = source.suffix.lower() in IMAGE_SUFFIXES and not source.is_dir()
    suffixes = sorted(IMAGE_SUFFIXES) if still else OVERLAY_SUFFIXES
    path = _placed(wanted, f"{name}{'.overlay.png' if still else OVERLAY_SUFFIXES[0]}", several)
    if path.suffix.lower() not in suffixes:
        kind = "picture of an image" if still else "video"
        raise OutputError(f"--overlay {path}: the overlay is a {kind}; expected a name in {', '.join(suffixes)}")
    return path


def _placed(wanted: Path, name: str, several: bool) -> Path:
    return wanted / name if several or wanted.is_dir() else wanted


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
    return {source: name + RESULT_MARK for source, name in names.items()}
