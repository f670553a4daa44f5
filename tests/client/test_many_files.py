"""Many files in one call: patterns are spelt out, results get names, bad files are listed, stopped runs go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clips import moving_square, noise, truncated, write_crops, write_sound, write_video

from affserve.client.client import AffectClient
from affserve.client.connection import Connection
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.output_paths import OutputWishes, make_folders, plan_outputs
from affserve.client.infer.run import InferOptions, infer_sources
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import WorkSettings
from affserve.client.results.formats import CSV, JSON_LINES
from affserve.client.results.rows import NO_TRACK
from affserve.client.video.inputs import spelt_out
from affserve.client.video.source import open_source
from affserve.client.wire.transport import Transport
from affserve.train.errors import OutputError


def test_patterns_and_folders_are_spelt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clips/b10.mp4", "clips/b2.mkv", "clips/deep/er/c.mp4", "clips/notes.txt", "clips/b2.affect.mp4"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    write_crops(tmp_path / "clips" / "crops", [1, 2])

    def names(*patterns: str) -> list[str]:
        return [str(path) for path in spelt_out(map(Path, patterns))[0]]

    assert names("clips") == ["clips/b2.mkv", "clips/b10.mp4", "clips/crops", "clips/deep/er/c.mp4"]
    assert names("clips/crops") == ["clips/crops"]
    assert names("clips/*.mp4", "clips/b10.mp4") == ["clips/b10.mp4"]
    assert names("clips/**/*.mp4") == ["clips/b10.mp4", "clips/deep/er/c.mp4"]
    assert names("clips/**") == ["clips/b2.mkv", "clips/b10.mp4", "clips/deep/er/c.mp4"]
    assert names("clips/*") == ["clips/b2.mkv", "clips/b10.mp4", "clips/crops", "clips/deep/er/c.mp4"]
    assert names("clips/*.txt") == ["clips/notes.txt"]
    assert names("no/*.mp4", "absent.mp4") == ["no/*.mp4", "absent.mp4"]


def test_results_are_named_so_that_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [Path("a.mp4"), Path("b.mp4"), Path("b.mkv"), Path("x/c.mp4"), Path("y/c.mp4")]
    wishes = OutputWishes(row_format=JSON_LINES, out=Path("out"), overlay=Path("videos"))
    planned = plan_outputs(sources, wishes)
    names = [str(outputs.rows.relative_to("out")) for outputs in planned.values()]
    assert names == [
        "a.affect.jsonl",
        "b.mp4.affect.jsonl",
        "b.mkv.affect.jsonl",
        "x/c.mp4.affect.jsonl",
        "y/c.mp4.affect.jsonl",
    ]
    assert planned[Path("x/c.mp4")].overlay == Path("videos/x/c.mp4.affect.mp4")
    with pytest.raises(OutputError, match=r"x/c\.mp4 and of y/c\.mp4: give --out a folder"):
        plan_outputs(sources, OutputWishes(row_format=CSV))


def test_a_folder_is_photographs_videos_and_sequences_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("party.jpg", "notes.txt", "me.png", "rows.csv", "rows.csv-metadata.json", "rows.png", "a.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    crops = write_crops(tmp_path / "below" / "crops", [1, 2, 3])
    (crops / "cover.jpg").touch()
    (tmp_path / "old.affect.png").touch()

    sources, notes = spelt_out([tmp_path])

    names = [path.relative_to(tmp_path).as_posix() for path in sources]
    assert names == ["a.mp4", "me.png", "party.jpg", "below/crops"]
    assert notes == [
        f"left out of {tmp_path}, neither a video nor an image: notes.txt, rows.csv, rows.csv-metadata.json",
        f"left out of {tmp_path}, beside numbered images: below/crops/cover.jpg",
    ]
    assert [frame.index for frame in open_source(crops)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("sources", "wishes", "told"),
    [
        (["a.mp4", "b.mp4"], {"out": "y.csv"}, r"names one file, and there are 2 sources: name a folder, as --out y$"),
        (["a.mp4", "b.mp4"], {"overlay": "y.mp4"}, r"name a folder, as --overlay y$"),
        (["s.jpg"], {"out": "s.csv", "overlay": "s.png"}, "the plot and the overlay of s.jpg would both be s.png"),
        (["a.mp4"], {"overlay": "a.gif"}, r"expected a name in \.mp4"),
    ],
    ids=["rows", "overlay", "plot", "kind"],
)
def test_a_place_that_cannot_be_is_named_with_the_way_out(
    sources: list[str], wishes: dict[str, str], told: str
) -> None:
    places = {name: Path(path) for name, path in wishes.items()}
    with pytest.raises(OutputError, match=told):
        plan_outputs([Path(source) for source in sources], OutputWishes(row_format=CSV, **places))


def test_a_name_without_a_suffix_is_a_folder_for_one_source_too(tmp_path: Path) -> None:
    wishes = OutputWishes(row_format=CSV, out=tmp_path / "deep" / "rows", overlay=tmp_path / "deep" / "a.mp4")
    planned = plan_outputs([Path("a.mp4")], wishes)
    make_folders(planned)
    outputs = planned[Path("a.mp4")]

    assert (outputs.rows, outputs.overlay) == (tmp_path / "deep" / "rows" / "a.affect.csv", tmp_path / "deep" / "a.mp4")
    assert outputs.rows.parent.is_dir()


def infer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "affserve.client", "infer", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def options(server_url: str, *sources: Path, transport: Transport = Transport.AUTO, **more: Any) -> InferOptions:
    """What the command line makes of its arguments, for sources that are crops."""
    connection = Connection(url=server_url, transport=transport)
    work = WorkSettings(croppers=Croppers(crops=True), **{k: more.pop(k) for k in ("resume", "fps") if k in more})
    return InferOptions(sources=sources, connection=connection, work=work, plot=False, **more)


def test_many_sources_are_done_and_the_bad_ones_listed_at_the_end(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(Path("clips") / name, moving_square(4))
    write_sound(Path("clips/mute.wav"))
    Path("clips/broken.mp4").write_text("hello")
    sources = (Path("clips"), Path("clips/*.wav"), Path("none/*.mp4"))
    assert not infer_sources(options(server_url, *sources, out=Path("rows"), row_format="parquet"))
    assert sorted(os.listdir("rows")) == ["a.affect.parquet", "b.affect.parquet"]
    told = capsys.readouterr().err
    end = told[told.index("5 sources:") :].splitlines()
    assert end[0] == "5 sources: 2 done, 3 failed:"
    assert [line.split(":")[0].strip() for line in end[1:]] == ["clips/broken.mp4", "clips/mute.wav", "none/*.mp4"]
    assert "no file matches" in end[3]


@pytest.mark.parametrize("name", ["csv", "parquet", "elan"])
def test_resume_does_what_is_missing_or_changed(
    server_url: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = [write_video(tmp_path / clip, moving_square(4)) for clip in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")]
    broken = truncated(write_video(tmp_path / "whole.mp4", noise(60), options={"movflags": "faststart"}), 0.6)
    out = tmp_path / "rows"

    def run(**more: Any) -> str:
        again = options(server_url, *clips, broken, out=out, row_format=name, resume=True, **more)
        assert not infer_sources(again)  # the truncated one is told each time
        return capsys.readouterr().err.partition("sources: ")[2].splitlines()[0]

    assert run() == "4 done, 1 failed:"
    suffix = {"elan": "eaf"}.get(name, name)
    results = {path.name.split(".")[0]: path for path in out.glob(f"*.{suffix}")}
    before = {clip: path.stat().st_mtime_ns for clip, path in results.items()}
    os.utime(clips[1], (1, 1))  # changed
    results["c"].unlink()  # never finished

    assert run() == "2 done, 2 done before, 1 failed:"
    assert {clip for clip, path in results.items() if path.stat().st_mtime_ns == before[clip]} == {"a", "d"}
    assert run(fps=7) == "4 done, 1 failed:"


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_resume_keeps_what_travelled_as_is_asked_now(
    server_url: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """JPEG changes answers: who asks for exact frames does not get those of JPEG, nor the other way round."""
    clips = [write_video(tmp_path / clip, moving_square(4)) for clip in ("a.mp4", "b.mp4")]

    def run(transport: Transport) -> str:
        out = tmp_path / "rows"
        again = options(server_url, *clips, out=out, row_format=name, resume=True, transport=transport)
        assert infer_sources(again)
        return capsys.readouterr().err.partition("sources: ")[2].splitlines()[0]

    assert run(Transport.SHM) == "2 done"
    assert run(Transport.RAW) == "0 done, 2 done before"
    assert run(Transport.JPEG) == "2 done"
    assert run(Transport.JPEG) == "0 done, 2 done before"
    assert run(Transport.AUTO) == "2 done"
    assert run(Transport.RAW) == "0 done, 2 done before"


def test_another_model_is_noticed(client: AffectClient) -> None:
    model = ModelRecord.of(client)
    numbers = model.answer.split()
    retrained = " ".join([*numbers[:-1], f"{float(numbers[-1]) + 0.02:.4f}"])
    assert model.made(model.provenance())
    assert not model.made({**model.provenance(), "engine": "another"})
    assert not ModelRecord(facts=model.facts, answer=retrained).made(model.provenance())
    assert not model.made({})


def test_killed_run_goes_on_with_the_next_file(server_url: str, tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", moving_square(3))
    crops = write_crops(tmp_path / "long", list(range(1, 900)))
    command = ["infer", short, crops, "--crops", "--url", server_url, "--out", "rows", "--no-plot", "--resume"]
    arguments = [sys.executable, "-m", "affserve.client", *map(str, command)]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "rows").glob(".long*.part")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "rows" / "long.affect.csv").exists()
    made = (tmp_path / "rows" / "short.affect.csv").stat().st_mtime_ns
    assert infer(*command[1:], cwd=tmp_path).returncode == 0
    assert (tmp_path / "rows" / "short.affect.csv").stat().st_mtime_ns == made
    assert len((tmp_path / "rows" / "long.affect.csv").read_text().splitlines()) == 900


def test_everybody_has_a_row(server_url: str, shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "face_detection_yunet_2023mar.onnx"
    command = ("--url", server_url, "--faces", "all", "--face-model", model, "--json", "--out", "rows.jsonl")
    summary = json.loads(infer(shared_data / "multi_face.jpg", *command, cwd=tmp_path).stdout)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (summary["frames"], summary["rows"], summary["people"]) == (1, 5, 5)
    assert [row["track_id"] for row in rows] == [0, 1, 2, 3, 4]
    assert NO_TRACK not in [row["track_id"] for row in rows]
