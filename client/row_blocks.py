"""Rows of a finished file, whatever its format, back into the blocks they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affserve.client.results import NO_TRACK, Rows, prediction_columns

BLOCK_ROWS = 1024
BOX_COLUMNS = ("box_x_px", "box_y_px", "box_w_px", "box_h_px")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A block of n rows as a file holds them: the cells of each column, None where a cell is empty."""

    columns: Mapping[str, Sequence[Any]]

    @classmethod
    def blocks(cls, names: Sequence[str], lines: Iterable[Sequence[Any]]) -> Iterator[Cells]:
        """Gather lines of cells into blocks."""
        lines = iter(lines)
        while block := list(islice(lines, BLOCK_ROWS)):
            yield cls(columns=dict(zip(names, zip(*block, strict=True), strict=True)))

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column (n,) with NaN where it is empty."""
        return np.array([np.nan if cell is None else cell for cell in self.columns[name]], dtype=np.float64)

    def whole(self, name: str, *, empty: int = 0) -> NDArray[np.int64]:
        """Return a column (n,) of whole numbers."""
        return np.array([empty if cell is None else cell for cell in self.columns[name]], dtype=np.int64)


def rows_of(cells: Cells, labels: Mapping[str, Sequence[str]]) -> Rows:
    """Turn the cells of a file back into a block of rows."""
    return Rows(
        frame=cells.whole("frame"),
        timestamp_s=cells.numbers("timestamp_s"),
        track_id=cells.whole("track_id", empty=NO_TRACK),
        box_px=np.stack([cells.numbers(name) for name in BOX_COLUMNS], axis=1),
        face_score=cells.numbers("face_score"),
        predictions={
            task: np.stack([cells.numbers(name) for name in prediction_columns(task, names)], axis=1).astype(np.float32)
            for task, names in labels.items()
        },
    )
