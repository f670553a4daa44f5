"""The command line as a user meets it: exit codes, what is on stdout and stderr, and which files appear."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import moving_square, noise, truncated, write_crops, write_sound, write_video

from affserve.client.cli import app, main
from affserve.client.faces.detector_file import YUNET_FILE
from affserve.client.results.rows import described_columns
from affserve.export.contract import default_head_description

Refused = Callable[..., tuple[int, str]]
CLIENT = Path(__file__).parents[2] / "client"
CLIENT_MODULES = sorted(".".join(path.relative_to(CLIENT).with_suffix("").parts) for path in CLIENT.rglob("[a-z]*.py"))


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A folder that needs no face detector."""
    return write_crops(tmp_path / "crops", [1, 2, 5])


def affserve(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, with no face model in reach and a proxy that does not answer."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AFFSERVE_")}
    clean |= {"XDG_CACHE_HOME": str(cwd / ".cache"), "https_proxy": "http://127.0.0.1:9", **environment}
    command = [sys.executable, "-m", "affserve.client", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """The command in this process, for what it refuses: its exit code and stderr."""
    for name in [name for name in os.environ if name.startswith("AFFSERVE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["affserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return run


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_help_lists_the_commands(tmp_path: Path) -> None:
    result = affserve("--help", cwd=tmp_path)

    assert result.returncode == 0
    assert {"data", "train", "export", "serve", "infer", "demo", "bench"} <= set(result.stdout.split())
    assert "..." not in result.stdout.partition("Commands:")[2]
    assert affserve("--version", cwd=tmp_path).stdout.startswith("affserve 0.")


def test_no_command_hides_another_of_its_name() -> None:
    for group in (app, *(one.typer_instance for one in app.registered_groups)):
        names = [command.name or getattr(command.callback, "__name__", "") for command in group.registered_commands]
        assert len(names) == len(set(names)), names


def test_help_of_infer_describes_every_column(tmp_path: Path) -> None:
    result = affserve("infer", "--help", cwd=tmp_path)

    words = result.stdout.split()
    assert all(name in words for name, _ in described_columns(default_head_description().labels))


def test_client_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'affserve.client.{name}')\n"
        "    heavy = {'torch', 'onnx', 'onnxruntime', 'open_clip', 'matplotlib.pyplot'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {heavy}'"
    )
    subprocess.run([sys.executable, "-c", code, *CLIENT_MODULES], check=True)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, affserve.client as client\nassert client.__all__\nfrom affserve.client.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'cv2', 'av', 'tritonclient', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_infer_writes_table_metadata_and_plot_where_it_is_called(
    server_url: str, shared_data: Path, tmp_path: Path
) -> None:
    model = shared_data / YUNET_FILE
    result = affserve(
        "infer", shared_data / "single_face.mp4", "--url", server_url, "--face-model", model, "--plot", cwd=tmp_path
    )

    assert result.returncode == 0, result.stderr
    assert len(table(tmp_path / "single_face.affect.csv")) == 72
    assert (
        json.loads((tmp_path / "single_face.affect.csv-metadata.json").read_text())["url"] == "single_face.affect.csv"
    )
    assert (tmp_path / "single_face.affect.png").read_bytes().startswith(b"\x89PNG")
    assert "72 frames, 72 with a face" in result.stdout
    assert result.stderr == "warning: this model was trained on generated faces only: not for people\n"


def test_infer_starts_its_own_server_and_stops_it(repository: Path, crops: Path, tmp_path: Path) -> None:
    result = affserve("infer", crops, "--repository", repository, "--json", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    assert (summary["frames"], summary["frames_with_face"], summary["out"]) == (3, 3, "crops.affect.csv")
    assert summary["stages"].keys() >= {"decode_s", "detect_s", "encode_wait_s", "head_s", "write_s"}
    assert affserve("infer", crops, "--url", summary["url"], cwd=tmp_path).returncode == 1


def test_no_face_gives_all_rows_without_predictions(server_url: str, shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / YUNET_FILE
    clip = shared_data / "no_face.mp4"
    result = affserve("infer", clip, "--url", server_url, "--face-model", model, "--out", "rows.csv", cwd=tmp_path)

    rows = table(tmp_path / "rows.csv")
    assert result.returncode == 0, result.stderr
    assert len(rows) == 95
    assert {name for row in rows for name, cell in row.items() if cell} == {"frame", "timestamp_s"}
    assert "no face was found in 95 of 95 frames: if the frames are face crops already, say --crops" in result.stdout


def test_table_on_stdout_is_all_that_is_on_stdout(server_url: str, crops: Path, tmp_path: Path) -> None:
    result = affserve("infer", crops, "--url", server_url, "--out", "-", cwd=tmp_path)

    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["frame"] for row in rows] == ["1", "2", "5"]
    assert all(row["AU26"] for row in rows)
    assert "3 frames" in result.stderr
    assert not list(tmp_path.glob("*.csv*"))


def test_reader_that_stops_early_is_no_stack_trace(server_url: str, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "many", list(range(1, 700)))
    command = f"{sys.executable} -m affserve.client infer {crops} --url {server_url} --out - --quiet | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)

    assert result.stdout.startswith("frame,")
    assert "Traceback" not in result.stderr
    assert "Error" not in result.stderr


def test_one_bad_source_is_told_and_the_others_are_done(server_url: str, crops: Path, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "sound.wav")
    (tmp_path / "empty.mp4").touch()
    other = write_crops(tmp_path / "other", [1])
    result = affserve(
        "infer", crops, sound, "missing.mp4", "empty.mp4", other, "--url", server_url, "--out", "results", cwd=tmp_path
    )

    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 1
    assert [name in line for name, line in zip(("sound.wav", "missing.mp4", "empty.mp4"), errors, strict=True)] == [
        True
    ] * 3
    assert len(table(tmp_path / "results" / "crops.affect.csv")) == 3
    assert len(table(tmp_path / "results" / "other.affect.csv")) == 1


def test_truncated_video_keeps_its_rows_and_exits_1(server_url: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", noise(60), options={"movflags": "faststart"})
    broken = truncated(whole, 0.6)
    result = affserve("infer", broken, "--crops", "--url", server_url, "--out", "rows.csv", cwd=tmp_path)

    assert result.returncode == 1
    assert "breaks off" in result.stderr
    assert 20 < len(table(tmp_path / "rows.csv")) < 50


def test_nothing_usable_needs_no_server(refused: Refused) -> None:
    assert refused("infer", "missing.mp4", "--repository", "missing") == (
        1,
        "error: missing.mp4 does not exist; expected a video, an image or a folder of numbered images\n",
    )


@pytest.mark.parametrize(
    ("out", "complaint"),
    [("absent/crops", None), ("crops", None), ("/dev/full", "No space left on device")],
    ids=["no-folder", "existing-folder", "full-disk"],
)
def test_place_of_the_result(server_url: str, crops: Path, tmp_path: Path, out: str, complaint: str | None) -> None:
    result = affserve("infer", crops, "--url", server_url, "--out", out, cwd=tmp_path)

    if complaint is None:
        assert (tmp_path / out / "crops.affect.csv").is_file()
    else:
        assert result.returncode == 1
        assert complaint in result.stderr
        assert "Traceback" not in result.stderr


def test_wrong_address_is_one_line(crops: Path, tmp_path: Path, refused: Refused) -> None:
    code, stderr = refused("infer", crops, "--url", "127.0.0.1:9")

    assert code == 1
    assert stderr.startswith("error: no server at 127.0.0.1:9")
    assert stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.csv*"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--repository"),
        (["--url", "a:1", "--repository", "r"], "not both"),
        (["--url", "a:1", "--out", "-", "--plot"], "--out -"),
        (["--url", "a:1", "--out", "-", "--json"], "--out -"),
        (["--url", "a:1", "--out", "rows.xlsx"], "spreadsheets open .csv"),
        (["--url", "a:1", "http://a.b/c.mp4"], "affserve live http://a.b/c.mp4"),
        (["--url", "a:1", "--colour"], "--colour"),
    ],
    ids=["no-server", "two-servers", "plot-on-stdout", "json-on-stdout", "another-format", "address", "unknown-option"],
)
def test_wrong_usage_exits_2(crops: Path, refused: Refused, arguments: list[str], complaint: str) -> None:
    code, stderr = refused("infer", crops, *arguments)

    assert code == 2
    assert complaint in stderr


def test_sources_of_one_name_and_own_result_are_refused(tmp_path: Path, refused: Refused) -> None:
    first = write_crops(tmp_path / "crops", [1])
    (tmp_path / "deeper").mkdir()
    second = write_crops(tmp_path / "deeper" / "crops", [1])
    clip = write_video(tmp_path / "clip.mp4", moving_square(2))

    assert refused("infer", first, second, "--url", "a:1")[0] == 2
    code, stderr = refused("infer", clip, "--url", "a:1", "--overlay", clip)
    assert code == 2
    assert "overwrite the source" in stderr


def test_address_may_come_from_the_environment(server_url: str, crops: Path, tmp_path: Path) -> None:
    assert affserve("infer", crops, "--quiet", cwd=tmp_path, AFFSERVE_URL=server_url).stdout == ""
    assert len(table(tmp_path / "crops.affect.csv")) == 3


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT], ids=["terminate", "interrupt"])
def test_stopped_in_the_middle_leaves_no_files_and_no_server(repository: Path, tmp_path: Path, end: int) -> None:
    several = end == signal.SIGINT
    crops = write_crops(tmp_path / "many", list(range(1, 4000)))
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "affserve.client", "infer", str(crops), "--repository", str(repository)]
    command += [str(write_crops(tmp_path / "more", [1])), "--jobs", "1"] if several else []
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as a shell starts what runs in the background
    with subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_part(work)
        servers = descendants(process.pid)
        process.send_signal(end)
        try:
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()  # otherwise the block would wait for a process that hangs

    assert servers
    assert process.returncode == 128 + end
    assert ("--resume" in stderr) is several
    assert "Traceback" not in stderr
    assert not list(work.iterdir())
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]


def wait_for_part(folder: Path) -> None:
    """Wait until rows are being written: the unfinished file has more than a header."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(file.stat().st_size > 4096 for file in folder.glob(".*.part")):
            return
        time.sleep(0.05)
    pytest.fail("no unfinished result appeared within 60 s")


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in map(int, children) for one in (child, *descendants(child))]


@pytest.mark.parametrize(
    ("missing", "extra", "command"),
    [
        ("torch", "train", ("train", "features", ".", "--encoder", "e", "--out", "o")),
        ("starlette", "page", ("view", ".", "--no-browser")),
        ("uvicorn", "page", ("view", ".", "--no-browser")),
    ],
)
def test_a_missing_extra_names_what_to_install(
    missing: str, extra: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from affserve.client.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"pip install 'affserve[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_device_that_is_not_there_is_named() -> None:
    from affserve.train.errors import DataError
    from affserve.train.models.device import check_device

    check_device("cpu")
    with pytest.raises(DataError, match=r"device is 'cuda:99', which cannot be used: .*; this machine has cpu"):
        check_device("cuda:99")
