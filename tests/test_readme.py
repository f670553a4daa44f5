"""README and the pages behind it tell the truth: their commands exist as they are shown, their figures have a file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from affserve.benchmarks.report.report import fill_markers
from affserve.client.cli import app
from affserve.client.results.rows import columns_of
from affserve.export.contract import default_head_description

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
PAGES = {
    name: (ROOT / name).read_text()
    for name in ("README.md", "benchmarks/README.md", "export/README.md", "train/README.md", "client/README.md")
}
ALL_PAGES = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```sh\n(.*?)```", ALL_PAGES, flags=re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
TORCHRUN = re.compile(r"torchrun (--\S+ \S+ )+-m affserve\.(?=train )")


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(("affserve ", "torchrun "))])
def test_commands_are_understood(line: str) -> None:
    arguments = shlex.split(TORCHRUN.sub("affserve ", line))[1:]
    command: Any = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_no_other_kind_of_command_hides_here() -> None:
    assert {line.split()[0] for line in COMMANDS} <= {"make", "affserve", "pip", "torchrun", "git", "."}


def test_every_column_is_in_the_table() -> None:
    rows = [row for row in ALL_PAGES.splitlines() if row.startswith("| `")]
    described = " ".join(rows)
    labels = default_head_description().labels
    names = [column.name for column in columns_of(labels)]
    shown = [name for name in names if f"`{name}`" in described]
    ranges = {"box_y_px", "box_w_px"} | {f"p_{name}" for name in labels["expression"]} | set(labels["action_units"])
    assert set(names) - set(shown) <= ranges


def test_result_files_that_are_quoted_exist() -> None:
    quoted = re.findall(r"`(benchmarks/results/[^`]+\.(?:json|md))`", ALL_PAGES)
    assert quoted
    for path in quoted:
        assert (ROOT / path).exists(), path


def test_every_table_of_figures_names_files_that_are_there() -> None:
    """A row of what was measured ends in its file; it says which figures a reader can look up."""
    quoted = re.findall(r"\| `([\w-]+\.json)` \|$", ALL_PAGES, flags=re.MULTILINE)
    assert len(quoted) > 10
    missing = [name for name in quoted if not list(RESULTS.glob(f"*/{name}"))]
    assert missing == []


def test_the_table_of_machines_is_what_the_result_files_say(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README)
    # Those that the README names: who measures a machine of their own has one more, and no duty to write of it.
    machines = sorted(set(re.findall(r"benchmarks/results/([\w-]+)/", README)))
    fill_markers(copy, [RESULTS / machine for machine in machines])
    assert copy.read_text() == README


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z_]+@", ALL_PAGES)


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    missing = [one for one in targets if "://" not in one and not ((ROOT / page).parent / one).exists()]
    assert not missing
