"""A built wheel holds the package and nothing else, and works outside the checkout."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"  # a copy: setuptools leaves build/ and *.egg-info where it builds
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not files:
        pytest.skip("not a git checkout: cannot tell the project's files from others")
    for name in files:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_only_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"affserve"}
    assert not [name for name in names if "tests" in name or name == "affserve/__init__.py"]
    for expected in (
        "affserve/model_repository/affect/config.pbtxt",
        "affserve/model_repository/temporal_head/configs/cpu.pbtxt",
        *(f"affserve/{path.relative_to(ROOT)}" for path in (ROOT / "export/backends").rglob("*.py")),
        "affserve/train/models/affserve-demo.json",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith("affserve/model_repository") and name.endswith(".py")]


def test_wheel_exports_and_serves_outside_the_checkout(
    wheel: Path, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    from clips import write_crops

    site = tmp_path / "site"
    lines = (ROOT / "README.md").read_text().splitlines()
    (given,) = [line for line in lines if line.startswith("pip install 'dist/")]
    built = shlex.split(given)[2].replace(f"dist/{wheel.name}", str(wheel))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, built], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = run("-c", "import affserve.export.server.server as t; print(t.__file__)").strip()
    assert Path(where).is_relative_to(site)
    affserve = ("-m", "affserve.client")
    quick = ("--target", "cpu", "--precision", "fp32")
    run(*affserve, "export", "--encoder", checkpoints[0], "--head", checkpoints[1], "--out", "repository", *quick)
    crops = write_crops(tmp_path / "crops", [1, 2, 3])
    run(*affserve, "infer", crops, "--repository", "repository", "--out", "rows.csv", "--no-plot")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4
