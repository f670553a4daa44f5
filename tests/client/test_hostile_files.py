"""Files, names and servers that mean harm, or look like it: each is one clear error, and nothing else suffers."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import pytest
from clips import moving_square, write_crops, write_sound, write_video
from PIL import Image
from rich.console import Console
from tiny_server import needs_wheel
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from affserve.client.cli import app
from affserve.client.client import AffectClient
from affserve.client.connection import Connection
from affserve.client.faces.cropper import Croppers
from affserve.client.infer.run import InferOptions, infer_sources
from affserve.client.infer.summary import Terminal
from affserve.client.infer.work import WorkSettings
from affserve.client.results.formats import FORMATS
from affserve.client.results.output_file import OutputFile
from affserve.client.video.source import open_source
from affserve.export.contract import CLIP_ENCODER, TASK_OUTPUTS, default_head_description
from affserve.train.errors import AffserveError, InferenceError, OutputError, RepositoryError, VideoError, printable


def options(server_url: str, *sources: Path, **more: Any) -> InferOptions:
    """What the command line makes of its arguments, for sources that are crops."""
    connection = Connection(url=server_url)
    work = WorkSettings(croppers=Croppers(crops=True), **{k: more.pop(k) for k in ("resume", "fps") if k in more})
    return InferOptions(sources=sources, connection=connection, work=work, **more)


def announcing_png(width: int, height: int) -> bytes:
    """A PNG of two hundred bytes that says how large it is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


# --- one file of many ---

LONG = "l" * 250 + ".mp4"
NAMES = ["good.mp4", LONG, os.fsdecode(b"caf\xe9.mp4"), "\x1b]0;owned\x07\x1b[2J.mp4", "[bold]x[nothing].mp4"]


@pytest.mark.parametrize("row_format", ["csv", "jsonl", "parquet"])
def test_bad_files_and_odd_names_stop_nobody(
    server_url: str, tmp_path: Path, row_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", moving_square(3))
    sources = [tmp_path / name for name in NAMES]
    for source in sources:
        shutil.copy(clip, source)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(announcing_png(40_000, 40_000))
    out = tmp_path / "out"
    assert not infer_sources(options(server_url, bomb, *sources, out=out, row_format=row_format))
    told = capsys.readouterr()
    assert f"error: {bomb} has 40000 x 40000 pixels, expected at most 100 million" in told.err
    assert "6 sources: 5 done, 1 failed:" in told.err
    assert "\x1b" not in told.out + told.err
    assert r"\x1b]0;owned\x07\x1b[2J" in told.out
    suffix = FORMATS[row_format].suffixes[0]
    results = [path for path in out.iterdir() if path.suffix == suffix]
    assert len(results) == len(NAMES)
    labels = default_head_description().labels
    assert all(len(next(iter(FORMATS[row_format].read(path, labels)))) == 3 for path in results)
    assert len(list(out.glob("*.png"))) == len(NAMES), "their plots, too"
    assert infer_sources(options(server_url, *sources, out=out, row_format=row_format, resume=True, json=True))
    assert [json.loads(line).get("skipped") for line in capsys.readouterr().out.splitlines()] == [True] * len(NAMES)


def test_names_on_a_terminal_are_no_markup() -> None:
    terminal = Terminal(quiet=False)
    terminal._silent, terminal._console = False, Console(file=io.StringIO(), force_terminal=True)
    with terminal.progress("[/nothing]") as progress:  # a MarkupError, if it were
        progress(1, 2)


def test_what_errors_quote_is_harmless() -> None:
    hostile = "a\x1b]52;c;aGk=\x07\u202egnp.exe\udce9\nnext\tline"
    assert str(OutputError(hostile)) == r"a\x1b]52;c;aGk=\x07\u202egnp.exe\udce9" + "\nnext\tline"
    assert printable("Zoë’s \N{GRINNING FACE}.mp4") == "Zoë’s \N{GRINNING FACE}.mp4"
    assert str(AffserveError("x")) == "x"


def test_large_pictures_are_refused_unless_allowed(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", moving_square(2))
    gif = write_video(tmp_path / "v.gif", moving_square(2), codec="gif", pixels="rgb8")
    crops = write_crops(tmp_path / "crops", [1, 2])
    for path in (video, gif, crops, next(crops.iterdir())):
        with pytest.raises(VideoError, match=r"none of more than 0\.001 million|at most 0\.001 million|can be decoded"):
            list(open_source(path, most_pixels=1000))
        assert list(open_source(path, most_pixels=112 * 112))
    result = CliRunner().invoke(app, ["infer", str(video), "--url=127.0.0.1:1", "--max-megapixels=0.001"])
    assert result.exit_code == 1


# --- files that are other files ---


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("ffconcat version 1.0\nfile secret.mp4\n", id="ffconcat"),
        pytest.param("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n", id="hls"),
        pytest.param("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", id="sdp"),
        pytest.param(
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            '<Representation id="0" bandwidth="1"><BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet>'
            "</Period></MPD>",
            id="dash",
        ),
    ],
)
def test_a_list_of_other_files_is_no_video(tmp_path: Path, text: str) -> None:
    write_video(tmp_path / "secret.mp4", moving_square(3))
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(VideoError, match=r"list\.mp4 cannot be read as a video.*holds its pictures itself"):
        list(open_source(tmp_path / "list.mp4"))


def test_a_name_is_a_name_and_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "secret.mp4", moving_square(3))
    Path("concat:secret.mp4").write_text("nothing")
    with pytest.raises(VideoError, match="concat:secret"):
        list(open_source("concat:secret.mp4"))
    shutil.copy("secret.mp4", "concat:other.mp4")
    assert len(list(open_source("concat:other.mp4"))) == 3


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mov", "webm", "gif", "flv"])
def test_containers_are_still_read(tmp_path: Path, suffix: str) -> None:
    codecs = {"webm": ("libvpx-vp9", "yuv420p"), "gif": ("gif", "rgb8"), "flv": ("flv", "yuv420p")}
    codec, pixels = codecs.get(suffix, ("mpeg4", "yuv420p"))
    path = write_video(tmp_path / f"v.{suffix}", moving_square(3), codec=codec, pixels=pixels)
    assert len(list(open_source(path))) == 3
    with av.open(str(path)) as container:
        assert container.format.name


def test_animated_images_are_not_read_as_one_picture(tmp_path: Path) -> None:
    pictures = [Image.fromarray(image) for image in moving_square(3)]
    for suffix in ("webp", "png"):
        path = tmp_path / f"a.{suffix}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
        with pytest.raises(VideoError, match="is animated"):
            open_source(path)
        pictures[0].save(path)
        assert len(list(open_source(path))) == 1


def test_a_picture_of_the_cover_is_not_the_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "song.wav").with_suffix(".mp4")
    with av.open(str(tmp_path / "song.wav")) as sound, av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", width=64, height=48, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        music = container.add_stream("aac", rate=8000)
        picture = av.VideoFrame.from_ndarray(moving_square(1)[0], "rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(picture))
        for frame in sound.decode(audio=0):
            container.mux(music.encode(frame))
        container.mux(music.encode(None))
    with pytest.raises(VideoError, match="holds no video stream"):
        open_source(path)


# --- results ---


@pytest.mark.parametrize("row_format", ["csv", "jsonl", "parquet"])
def test_resume_makes_a_flipped_byte_again(server_url: str, tmp_path: Path, row_format: str) -> None:
    crops, out = write_crops(tmp_path / "crops", [1, 2, 3]), tmp_path / f"rows.{row_format}"
    wanted = options(server_url, crops, out=out, plot=False, resume=True)
    assert infer_sources(wanted)
    written = out.read_bytes()
    flipped = bytearray(written)
    flipped[len(written) // 4 if row_format == "parquet" else len(written) - 5] ^= 1
    out.write_bytes(flipped)
    assert infer_sources(wanted)
    if row_format == "parquet":
        assert FORMATS["parquet"].is_intact(out, None)
    else:
        assert out.read_bytes() == written


def test_what_a_killed_run_left_goes_with_the_next_one(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom affserve.client.results.output_file import OutputFile\n"
        "file = OutputFile(Path(sys.argv[1]))\nfile.write(b'x' * 100000)\nprint(file.part, flush=True)\ntime.sleep(999)"
    )
    target = tmp_path / "[rows].csv"  # a name that is a pattern, too
    with subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        with OutputFile(target) as file:
            assert left.exists(), "its writer lives"
            file.write(b"second")
        killed.send_signal(signal.SIGKILL)
    assert left.exists(), "nothing was left: nothing is tested"
    others = tmp_path / ".rows.csv.12.part"
    others.touch()
    with OutputFile(target) as file:
        file.write(b"third")
    assert sorted(path.name for path in tmp_path.iterdir()) == [others.name, target.name]
    assert target.read_bytes() == b"third"


# --- servers that do not tell the truth ---

Change = Callable[[service_pb2.ModelInferResponse], None]


class LyingServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Speaks Triton's protocol, and answers as its owner wants."""

    def __init__(self) -> None:
        self.change: Change = lambda answer: None
        self.parameters = dict(default_head_description().to_parameters())

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        parameters = {
            name: model_config_pb2.ModelParameter(string_value=value) for name, value in self.parameters.items()
        }
        return service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(parameters=parameters))

    def ModelInfer(self, request: Any, context: Any) -> Any:
        length = request.inputs[0].shape[0]
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        specs = CLIP_ENCODER.outputs if request.model_name == CLIP_ENCODER.name else TASK_OUTPUTS.values()
        for spec in specs:
            shape = [length, spec.shape[-1]]
            answer.outputs.add(name=spec.name, datatype="FP32", shape=shape)
            answer.raw_output_contents.append(np.full(shape, 0.125, np.float32).tobytes())
        self.change(answer)
        return answer


@pytest.fixture
def liar() -> Iterator[tuple[LyingServer, str]]:
    servicer = LyingServer()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None)


def told(value: float, frame: int = 1) -> Change:
    def change(answer: service_pb2.ModelInferResponse) -> None:
        values = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape).copy()
        values[frame, 0] = value
        answer.raw_output_contents[0] = values.tobytes()

    return change


def short(answer: service_pb2.ModelInferResponse) -> None:
    answer.raw_output_contents[0] = answer.raw_output_contents[0][:-7]


def other_type(answer: service_pb2.ModelInferResponse) -> None:
    answer.outputs[0].datatype = "FP99"


def bytes_type(answer: service_pb2.ModelInferResponse) -> None:
    answer.outputs[0].datatype = "BYTES"


def other_shape(answer: service_pb2.ModelInferResponse) -> None:
    answer.outputs[0].shape[:] = [2**40, -1]


def nothing(answer: service_pb2.ModelInferResponse) -> None:
    del answer.outputs[:]


LIES = [
    pytest.param(told(7.5), "cannot be true, the first of them 7.5 in frame 1, expected -1 to 1", id="valence_7.5"),
    pytest.param(told(np.nan), "the first of them nan in frame 1", id="nan"),
    *(pytest.param(lie, "in the answer, got ", id=lie.__name__) for lie in (short, other_type, other_shape, nothing)),
    pytest.param(bytes_type, "in the answer, got ", id="bytes_type"),
]


@pytest.mark.parametrize(("lie", "error"), LIES)
def test_an_answer_that_cannot_be_is_an_error(liar: tuple[LyingServer, str], lie: Change, error: str) -> None:
    servicer, url = liar
    with AffectClient(url, transport="raw") as client:
        features = client.encode(np.zeros((3, 224, 224, 3), np.uint8))
        assert client.predict(features).keys() == TASK_OUTPUTS.keys()
        servicer.change = lie
        with pytest.raises(InferenceError, match=error):
            client.predict(features)


def test_features_that_are_no_numbers_are_refused(liar: tuple[LyingServer, str]) -> None:
    servicer, url = liar
    servicer.change = told(np.inf)
    with AffectClient(url, transport="raw") as client, pytest.raises(InferenceError, match="expected a finite number"):
        client.encode(np.zeros((3, 224, 224, 3), np.uint8))


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("window_frames", "0", "windows of 0 frames"),
        ("window_frames", "99999999999", "windows of 99999999999 frames"),
        ("stride_frames", "0", "every 0"),
        ("stride_frames", "many", "not told in whole numbers"),
        ("labels.valence_arousal", "val\nence,arousal", "the label"),
        ("labels.valence_arousal", "%s,\x1b[2J", "the label"),
    ],
)
def test_a_description_that_cannot_be_is_an_error(
    liar: tuple[LyingServer, str], parameter: str, value: str, error: str
) -> None:
    servicer, url = liar
    servicer.parameters[parameter] = value
    with AffectClient(url, transport="raw") as client, pytest.raises(RepositoryError, match=error) as caught:
        client.describe()
    assert "\x1b" not in str(caught.value)


# --- few files may be open ---


def infer_with_few_files(limits: str, tiny: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    crops = write_crops(tmp_path / "crops", [1, 2])
    script = f"ulimit {limits}; exec {sys.executable} -m affserve.client infer {crops} --crops --repository {tiny}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)


@needs_wheel
def test_a_limit_of_open_files_that_can_be_raised_is(tiny: Path, tmp_path: Path) -> None:
    done = infer_with_few_files("-S -n 16", tiny, tmp_path)
    assert done.returncode == 0, done.stderr


def test_too_few_open_files_are_called_that(tmp_path: Path) -> None:
    done = infer_with_few_files("-n 63", tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a process may have 63 files open here, and affserve needs 64"), done.stderr
    assert "ulimit -n 4096" in done.stderr
