"""Imports run down only, from folder to folder and package to package; no modules import one another in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Upper floors first; what shares a floor does not import one another. Modules at a folder's root count as packages.
FLOORS = {
    "benchmarks": "__main__ cli | peers | report video | engines everything load serving training | measuring",
    "client": "__main__ | cli | commands | page | corpora | annotate | infer live | connection | async_client | client"
    " | exchange summary | drawing sequences | faces results video wire | ahead",
    "export": "doctor | machine_findings | export_cli serve_cli | deployment | server | sharing | repository | engine"
    " | artefacts | precision | graphs machine | contract pins | engine_sets",
    "train": "__main__ | cli | study | stages | trainer | evaluation | features importing synthetic | corpus models"
    " | processing | crops files labels provenance signals windows | errors",
}
# The command line's root alone knows every folder.
EXCEPTIONS = {("client.cli", "benchmarks.cli")}


def module_files() -> dict[str, Path]:
    """Every module of the four folders by its dotted name, packages by theirs."""
    paths = (path for folder in FLOORS for path in (ROOT / folder).rglob("*.py") if "backends" not in path.parts)
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("affserve."):
            source = str(node.module).removeprefix("affserve.")
            yield from (name if (name := f"{source}.{one.name}") in modules else source for one in node.names)
        elif isinstance(node, ast.Import):
            names = (one.name for one in node.names)
            yield from (name.removeprefix("affserve.") for name in names if name.startswith("affserve."))


def arrows() -> dict[str, set[str]]:
    modules = module_files()
    return {name: {one for one in imported(path, modules) if one in modules} for name, path in modules.items()}


def broken_rule(importer: str, imports: str) -> str | None:
    """Say which rule an import breaks, if any."""
    (folder, *inside), (other, *below) = importer.split("."), imports.split(".")
    if (importer, imports) in EXCEPTIONS or not inside or not below:
        return None
    if folder != other:
        order = list(FLOORS)
        return None if order.index(other) > order.index(folder) else f"{other}/ lies above {folder}/"
    floors = [floor.split() for floor in FLOORS[folder].split("|")]
    here, there = (next((n for n, floor in enumerate(floors) if room in floor), None) for room in (inside[0], below[0]))
    if here is None or there is None:
        return f"{inside[0] if here is None else below[0]} stands on no floor of {folder}/: add it to FLOORS"
    return None if inside[0] == below[0] or there > here else f"{below[0]} does not lie below {inside[0]} in {folder}/"


def test_imports_run_down_only() -> None:
    broken = [
        f"{importer} imports {one}: {rule}"
        for importer, imports in arrows().items()
        for one in sorted(imports)
        if (rule := broken_rule(importer, one))
    ]
    assert not broken, "\n".join(broken)


def test_no_modules_import_one_another_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as circle:
        raise AssertionError(" <- ".join(circle.args[1])) from None


def test_a_package_is_small_enough_to_read_its_listing() -> None:
    rooms: dict[Path, list[str]] = {}
    for path in module_files().values():
        if path.stem != "__init__":
            rooms.setdefault(path.parent, []).append(path.stem)
    crowded = {str(room.relative_to(ROOT)): sorted(names) for room, names in rooms.items() if len(names) > 12}
    assert not crowded
