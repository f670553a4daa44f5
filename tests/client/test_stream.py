"""A head that streams gives the same numbers everywhere: PyTorch, a file, frame by frame, and after its server died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import moving_square, write_crops, write_video
from numpy.typing import NDArray
from tiny_server import pause

from affserve.benchmarks.serving.live_rows import write_live_rows
from affserve.benchmarks.video import live
from affserve.client.client import AffectClient
from affserve.client.faces.cropper import WholeImageCropper
from affserve.client.faces.face import Face
from affserve.client.infer.analyze import analyze_stream
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import Analyst, Outcome, WorkSettings
from affserve.client.live.analysis import LiveSettings
from affserve.client.results.metadata import metadata_path, read_metadata
from affserve.client.results.text import RowFormatter
from affserve.client.sequences.kept_features import SUFFIX, KeptFeatures
from affserve.client.video.source import open_source
from affserve.export.contract import StreamDescription, default_head_description
from affserve.export.server.config import ServerConfig
from affserve.export.server.supervisor import SupervisedServer, children_of
from affserve.train.errors import InferenceError, VideoError
from affserve.train.models.checkpoint import load_head
from affserve.train.windows import FrameAnswers, Outputs

TOLERANCE = 1e-5  # float32 sums in another order than PyTorch's; among themselves the answers are the same bits
FRAMES = 420  # more than one message holds
FEATURES = np.random.default_rng(0).standard_normal((FRAMES, 512)).astype(np.float32)


@pytest.fixture(scope="module")
def server(stream_repository: Path) -> Iterator[SupervisedServer]:
    config = ServerConfig(repository=stream_repository, drain_timeout_s=0)
    with SupervisedServer(config, on_event=lambda event: None) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: SupervisedServer) -> Iterator[AffectClient]:
    with AffectClient(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def expected(stream_head: Path) -> Outputs:
    """PyTorch's answers to the whole sequence."""
    with torch.inference_mode():
        answers = load_head(stream_head)[0].eval().answers(torch.from_numpy(FEATURES)[None])
    return {task: values[0].numpy() for task, values in answers.items()}


def parts(steps: list[int]) -> Iterator[NDArray[np.float32]]:
    return (part for part in np.split(FEATURES, np.cumsum(steps)) if len(part))


def joined(blocks: list[Outputs]) -> Outputs:
    return {task: np.concatenate([block[task] for block in blocks]) for task in blocks[0]}


def through(sequence: FrameAnswers, steps: list[int]) -> Outputs:
    blocks = [block for part in parts(steps) for block in sequence.push(part)]
    return joined([*blocks, *sequence.finish()])


def test_any_steps_give_pytorchs_answers_and_each_other_to_the_bit(client: AffectClient, expected: Outputs) -> None:
    at_once = through(client.sequence(), [FRAMES])
    alone = through(client.sequence(), [1] * 100)
    for task, values in expected.items():
        np.testing.assert_allclose(at_once[task], values, atol=TOLERANCE)
        np.testing.assert_array_equal(alone[task], at_once[task])


def test_answers_come_as_late_as_the_head_looks_ahead(client: AffectClient) -> None:
    sequence = client.sequence()
    ready = [sum(len(block["expression"]) for block in sequence.push(part)) for part in parts([1, 1, 1, 5])]
    assert ready[:4] == [0, 0, 1, 5]


def test_a_segment_is_the_beginning_of_a_stream(client: AffectClient) -> None:
    sequence = client.sequence()
    blocks = [*sequence.push(FEATURES[:30]), *sequence.finish()]
    for task, values in client.predict(FEATURES[:30]).items():
        np.testing.assert_array_equal(joined(blocks)[task], values)


def test_sixty_four_streams_at_once_do_not_disturb_each_other(client: AffectClient) -> None:
    alone = through(client.sequence(), [40, 40])
    streams = [client.sequence() for _ in range(64)]
    blocks: list[list[Outputs]] = [[] for _ in streams]
    for k, part in enumerate(parts([40, 40])):
        for number, stream in enumerate(streams):
            blocks[number] += stream.push(part if number % 2 else part * (1 if k else 2))
    for number, stream in enumerate(streams):
        answers = joined([*blocks[number], *stream.finish()])["valence_arousal"]
        assert np.array_equal(answers, alone["valence_arousal"]) == bool(number % 2)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of 80 frames; between them numbers are missing, as of frames without a face or dropped ones."""
    folder = tmp_path_factory.mktemp("film") / "crops"
    write_crops(folder, [*range(1, 31), *range(41, 91)])
    return folder


@pytest.fixture(scope="module")
def rows(film: Path, client: AffectClient) -> str:
    """What `affserve infer` prints."""
    formatter = RowFormatter(client.describe().labels)
    return formatter.header + "".join(formatter.text(rows) for rows in analyze_stream(film, client))


def test_kept_features_give_the_rows_of_a_head_that_never_saw_the_video(
    server_url: str, client: AffectClient, tmp_path: Path
) -> None:
    """Kept under another head of the same encoder; three people of whom one is away, every second frame encoded."""
    path = write_video(tmp_path / "film.mkv", moving_square(90), codec="ffv1", pixels="yuv444p")
    kept, rows, again = (tmp_path / name for name in (f"film{SUFFIX}", "rows.csv", "again.csv"))
    job = Job(source=open_source(path), cropper=ComesAndGoes(), outputs=OutputPaths(rows=rows), every=2)
    with AffectClient(server_url) as other:
        outputs = OutputPaths(rows=again, features=kept)
        analyze_to_files(replace(job, cropper=ComesAndGoes(), outputs=outputs), other)
    analyze_to_files(job, client)
    assert rows.read_bytes() != again.read_bytes()
    analyst, outputs = Analyst(WorkSettings(resume=True), client, ModelRecord.of(client)), OutputPaths(rows=again)
    requests = encoder_requests(client)
    assert analyst.analyse(kept, outputs).summary is not None
    assert rows.read_bytes() == again.read_bytes()
    assert encoder_requests(client) == requests
    assert analyst.analyse(kept, outputs) == Outcome(path=kept, outputs=outputs)
    assert read_metadata(metadata_path(again)).source == "film.mkv"

    with np.load(kept) as arrays:
        assert len(arrays["features"]) == arrays["faces"]["encoded"].sum() == 110
        assert json.loads(str(arrays["about"]))["provenance"]["encoder"] == client.describe().encoder
    with pytest.raises(VideoError, match="and the repository's is another"):
        KeptFeatures(kept).check("another")
    kept.write_bytes(kept.read_bytes()[:-1000])
    assert "cannot be read as kept features" in str(analyst.analyse(kept, outputs).error)
    assert rows.read_bytes() == again.read_bytes()


class ComesAndGoes(WholeImageCropper):
    """Two people; a third one from frame 20 to 60 only."""

    patience_frames = 5

    def find(self, image: NDArray[np.uint8], prepared: None) -> list[tuple[int, Face]]:
        self.seen = getattr(self, "seen", -1) + 1
        ((_, face),) = super().find(image, prepared)
        people = [0, 1, 2] if 20 <= self.seen < 60 else [0, 1]
        return [(k, replace(face, score=k / 7, box_px=(0.1 * k, 1 / 3, 20, 30))) for k in people]


def encoder_requests(client: AffectClient) -> int:
    statistics = client._calls.triton.get_inference_statistics("clip_encoder").model_stats[0]
    return int(statistics.inference_stats.success.count)


@pytest.mark.parametrize("together", [(1,), (7,), (2, 1, 10, 4, 1, 1)], ids=["alone", "seven", "as they come"])
def test_live_prints_what_infer_prints(
    film: Path, rows: str, client: AffectClient, tmp_path: Path, together: tuple[int, ...]
) -> None:
    write_live_rows(film, client, tmp_path / "live.csv", together)
    assert rows.count("\n") == 81
    assert (tmp_path / "live.csv").read_text() == rows


def test_bench_live_tells_delay_memory_and_what_the_server_did(
    film: Path, server: SupervisedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WARM_UP_S", 0.5)
    job = live.LiveJob(url=server.grpc_url, film=film, seconds=1.5, hop=None, crops=True)
    told = live.measure_live(job)
    assert told["hop_frames"] is None
    assert told["analysed"] > 0 < told["server"]["temporal_stream"]["requests"]
    assert {side: len(mib) for side, mib in told["memory_mib"].items()} == {"client": 2, "server": 2}
    assert min(min(mib) for mib in told["memory_mib"].values()) > 0 < told["server_cores"]


@pytest.mark.parametrize("victim", ["server", "processes"])
def test_a_stream_goes_on_where_its_server_died(
    client: AffectClient, server: SupervisedServer, expected: Outputs, victim: str
) -> None:
    sequence = client.sequence()
    blocks: list[Outputs] = []
    for k, part in enumerate(parts([50] * 6)):
        if k == 4:
            for pid in [server.pid] if victim == "server" else children_of(server.pid):
                os.kill(pid, signal.SIGKILL)
        blocks += sequence.push(part)
    answers = joined([*blocks, *sequence.finish()])
    for task, values in expected.items():
        np.testing.assert_allclose(answers[task], values, atol=TOLERANCE)


def test_an_error_that_lasts_loses_no_frame(server: SupervisedServer, expected: Outputs) -> None:
    blocks: list[Outputs] = []
    with AffectClient(server.grpc_url, retry_for_s=0.0, timeout_s=0.5) as client:
        sequence = client.sequence()
        assert client.describe().stream is not None
        pause(server.pid)
        with pytest.raises(InferenceError):
            blocks += sequence.push(FEATURES[:10])
        os.kill(server.pid, signal.SIGCONT)
        for part in np.array_split(FEATURES[10:], 4):
            with contextlib.suppress(InferenceError):  # half a second is little on a busy machine, and costs nothing
                blocks.extend(sequence.push(part))
        while sum(len(block["expression"]) for block in blocks) < FRAMES:
            with contextlib.suppress(InferenceError):
                blocks.extend(sequence.finish())
    for task, values in expected.items():
        np.testing.assert_allclose(joined(blocks)[task], values, atol=TOLERANCE)


def test_a_hop_is_for_heads_that_see_whole_segments() -> None:
    segments = default_head_description()
    streams = replace(segments, stream=StreamDescription(reach_frames=70, state_values=9))
    assert (LiveSettings().hop_of(segments), LiveSettings(hop=3).hop_of(segments)) == (10, 3)
    assert LiveSettings().hop_of(streams) is None
    with pytest.raises(VideoError, match="--hop 3 is for heads that see whole segments"):
        LiveSettings(hop=3).hop_of(streams)
