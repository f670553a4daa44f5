"""Edits of a result: who is who, who is left out; the same by block and by table, and nothing else is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from result_rows import LABELS, people

from affserve.client.results.edits import Edits, Part, PersonEdit, edits_path, parse_edits, read_edits, write_edits
from affserve.client.results.rows import NO_TRACK
from affserve.client.results.table import Columns, Table, table_of
from affserve.train.errors import OutputError

ROWS = people(12, {0: range(6), 1: range(4, 9), 2: range(8, 11)})
EDITS = Edits(
    people={
        0: PersonEdit(name="Anna", merged_into=1),
        2: PersonEdit(excluded=True),
        3: PersonEdit(split_from=1, at_frame=7, name="Ben"),
    }
)


def in_blocks(table: Table, size: int) -> Iterator[Columns]:
    for at in range(0, len(table["frame"]), size):
        yield {name: values[at : at + size] for name, values in table.items()}


def test_splits_then_merges_then_exclusions() -> None:
    table = EDITS.table(table_of([ROWS], LABELS))

    seen = list(zip(table["frame"].tolist(), table["track_id"].tolist(), strict=True))
    alone = [(9, NO_TRACK), (10, NO_TRACK), (11, NO_TRACK)]
    assert seen == [*((frame, 1) for frame in range(7)), (7, 3), (8, 3), *alone]
    assert np.isnan(table["valence"][-3:]).all()
    assert table["expression"][-1] is None
    # In frames 4 and 5 both were seen: the rows of the one merged into stay.
    original = table_of([ROWS], LABELS)
    kept = original["valence"][(original["frame"] == 4) & (original["track_id"] == 1)]
    assert table["valence"][4] == kept[0]
    assert [EDITS.name(track) for track in (1, 3)] == ["person 1", "Ben"]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_of_any_size_give_the_table(size: int) -> None:
    table = table_of([ROWS], LABELS)
    blocks = list(EDITS.applied(in_blocks(table, size)))

    for name, values in EDITS.table(table).items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), values, err_msg=name)


def test_no_edits_change_nothing() -> None:
    table = table_of([ROWS], LABELS)
    blocks = list(in_blocks(table, 5))
    assert list(map(id, Edits(parts=(Part(name="all", from_s=0, to_s=1),)).applied(blocks))) == list(map(id, blocks))
    for name, values in Edits().table(table).items():
        np.testing.assert_array_equal(table[name], values, err_msg=name)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = tmp_path / "talk.csv"
    assert read_edits(rows) == Edits()
    edits = Edits(people=EDITS.people, parts=(Part(name="Größe <b>", from_s=1.5, to_s=2),))
    write_edits(rows, edits)
    assert read_edits(rows) == edits
    assert edits_path(rows).name == "talk.csv.edits.json"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "expected an object"),
        ({"person": {}}, "expected people, parts"),
        ({"people": {"x": {}}}, "the number of a person"),
        ({"people": {"0": {"nmae": "A"}}}, "expected name, hidden"),
        ({"people": {"0": {"merged_into": 1}, "1": {"merged_into": 0}}}, "leads back to itself"),
        ({"people": {"1": {"split_from": 0}}}, "belong together"),
        ({"people": {"1": {"excluded": 1}}}, "true or false"),
        ({"people": {"1": {"name": "a\u202eb"}}}, "printable"),
        ({"parts": [{"name": "a", "from_s": 2, "to_s": 1}]}, "before it begins"),
        ({"parts": [{"name": "a", "from_s": float("nan"), "to_s": 1}]}, "a number of seconds"),
        ({"parts": [{"name": "a", "from_s": 0}]}, "no to_s"),
    ],
)
def test_what_is_no_edit_is_told(document: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        parse_edits(document)
    edits_path(tmp_path / "talk.csv").write_text(json.dumps(document))
    with pytest.raises(OutputError, match=told):
        read_edits(tmp_path / "talk.csv")
