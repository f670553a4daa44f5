"""The live path: frames that are dropped rather than queued, windows, reconnects, and the command against a server."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from clips import moving_square, rotated_mp4, write_crops, write_video
from conftest import blurred_noise
from numpy.typing import NDArray
from result_rows import LABELS, people
from rich.console import Console
from rtsp_server import RtspServer
from tiny_server import pause, wait_for

from affserve.benchmarks.video.live import grows, slope
from affserve.client.client import AffectClient
from affserve.client.faces.cropper import WholeImageCropper
from affserve.client.faces.face import FaceCrop
from affserve.client.live import view as view_module
from affserve.client.live.analysis import LiveAnalysis, LiveAnswer, LiveSettings
from affserve.client.live.frames import Delays, LiveCounters, LiveFrame, NewestFrames, Pace, evenly, now_s
from affserve.client.live.looking import LookedAhead, LookedAt, Looker
from affserve.client.live.panel import Snapshot, panel
from affserve.client.live.source import SourceSettings, open_file, open_live
from affserve.client.live.stream import StreamClock
from affserve.client.live.view import LiveView
from affserve.client.live.window import LiveWindow
from affserve.client.results.rows import SeenPerson, columns_of, rows_of
from affserve.client.results.table import table_of
from affserve.client.video.source import open_source
from affserve.export.contract import FEATURE_WIDTH, default_head_description
from affserve.export.server.config import ServerConfig
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.errors import VideoError

FPS = 30
LIMIT_S = 120.0  # only turns a hang into a failure
TOLERANCE = 2e-5  # float32 sums in another order: chunks and batches differ


def frames_of(images: NDArray[np.uint8], numbers: list[int] | None = None) -> list[LiveFrame]:
    """Frames of crops (n, H, W, 3) that have all just arrived."""
    numbers = numbers or list(range(len(images)))
    return [
        LiveFrame(index=number, timestamp_s=number / FPS, arrived_s=now_s(), rgb=partial(np.asarray, image))
        for number, image in zip(numbers, images, strict=True)
    ]


def analysis_of(client: AffectClient, hop: int = 10) -> tuple[LiveAnalysis, LiveCounters]:
    counters = LiveCounters()
    return LiveAnalysis(client, WholeImageCropper, LiveSettings(hop=hop), counters), counters


def answered_frames(answers: list[LiveAnswer]) -> list[int]:
    return [number for answer in answers for number in answer.rows.frame.tolist()]


class TestWindow:
    def feature(self, value: float) -> NDArray[np.float32]:
        return np.full(FEATURE_WIDTH, value, dtype=np.float32)

    def test_it_never_holds_more_than_its_room_and_keeps_the_newest(self) -> None:
        window = LiveWindow(300)
        for number in range(1000):
            window.push(number, self.feature(number))
            assert len(window) == min(number + 1, 300)
        assert window.features()[:, 0].tolist() == list(range(700, 1000))
        assert window.position_of(999) == 299
        assert window.position_of(700) == 0
        with pytest.raises(ValueError, match="holds 700 to 999"):
            window.position_of(699)

    def test_a_gap_repeats_the_feature_before_it(self) -> None:
        window = LiveWindow(6)
        for number in (0, 1, 4, 5, 9):
            window.push(number, self.feature(number))
        assert window.features()[:, 0].tolist() == [4, 5, 5, 5, 5, 9]

    @pytest.mark.parametrize(("gap", "length"), [(5, 6), (6, 1), (1000, 1)], ids=["held", "room", "long"])
    def test_a_gap_as_long_as_the_window_starts_it_anew(self, gap: int, length: int) -> None:
        window = LiveWindow(6)
        window.push(3, self.feature(1))
        window.push(3 + gap, self.feature(2))
        assert len(window) == length
        assert window.features()[-1, 0] == 2

    def test_order_is_checked(self) -> None:
        window = LiveWindow(6)
        window.push(3, self.feature(1))
        with pytest.raises(ValueError, match="ascending"):
            window.push(3, self.feature(1))


class Bursts:
    """A source of frames without content, 200 a second by their times, that yields as many as it is allowed to."""

    name = "bursts"
    fps = 200.0

    def __init__(self, frames: int) -> None:
        self.allowed = threading.Semaphore(0)
        self._frames = frames

    def frames(self, stop: threading.Event, counters: LiveCounters) -> Iterator[LiveFrame]:
        for number in range(self._frames):
            self.allowed.acquire()
            rgb = partial(np.zeros, (8, 8, 3), dtype=np.uint8)
            time_s = number / self.fps
            yield LiveFrame(index=number, timestamp_s=time_s, arrived_s=1 + time_s, rgb=rgb)


def test_a_slow_reader_gets_evenly_spread_frames_and_always_the_newest() -> None:
    counters, source = LiveCounters(), Bursts(112)
    taken: list[list[int]] = []
    with NewestFrames(source, counters) as newest:
        for arrived in range(28, 113, 28):  # at a time, more than may wait
            source.allowed.release(28)
            wait_for(lambda arrived=arrived: counters.decoded == arrived)
            taken.append([frame.index for frame in newest.take(4, LIMIT_S) or []])
        assert newest.take(4, LIMIT_S) is None
    numbers = [number for batch in taken for number in batch]
    assert numbers == sorted(set(numbers))
    assert [batch[-1] for batch in taken] == [27, 55, 83, 111]
    assert max(len(batch) for batch in taken) == 4
    assert counters.overflown > 0
    assert counters.decoded == 112 == len(numbers) + counters.dropped
    assert np.diff(numbers).max() <= 14, "4 of 28 in a row would leave holes of 25"


def test_frames_are_looked_at_while_the_server_computes_and_none_is_dropped() -> None:
    counters, source, looker = LiveCounters(), Bursts(20), Looker(WholeImageCropper, room=300)
    looked: list[int] = []

    def look(frame: LiveFrame) -> LookedAt:
        looked.append(frame.index)
        return looker.look(frame)

    with NewestFrames(source, counters) as newest, LookedAhead(newest, look, Pace(LIMIT_S)) as ahead:
        taken: list[int] = []

        def arrive(frames: int) -> None:
            source.allowed.release(frames - counters.decoded)
            wait_for(lambda: counters.decoded == frames)

        def take(until: int) -> None:
            while len(taken) < until:
                taken.extend(frame.seen.index for frame in ahead.take(LIMIT_S) or [])

        arrive(1)
        wait_for(lambda: looked == [0])
        arrive(10)  # while the server computes, say
        wait_for(lambda: len(looked) == 10)
        arrive(20)
        taken.extend(frame.seen.index for frame in ahead.take(LIMIT_S) or [])
        assert taken == list(range(10)), "as many as can be answered in time"
        take(20)
        assert ahead.take(LIMIT_S) is None
    assert taken == list(range(20))
    assert counters.dropped == 0


def test_what_ends_the_looking_reaches_who_takes() -> None:
    def look(frame: LiveFrame) -> LookedAt:
        raise VideoError("no such picture")

    source = Bursts(3)
    source.allowed.release(3)
    with (
        pytest.raises(VideoError, match="no such picture"),
        NewestFrames(source, LiveCounters()) as newest,
        LookedAhead(newest, look, Pace(LIMIT_S)) as ahead,
    ):
        ahead.take(LIMIT_S)


@pytest.mark.parametrize(
    ("arrived_s", "most", "positions"),
    [
        ([1, 2, 3], 3, [0, 1, 2]),
        ([1, 2, 3, 4, 5, 6], 3, [1, 3, 5]),
        ([1, 2, 3, 4, 5, 6], 1, [5]),
        ([1, 2, 3, 4, 5, 5.5, 5.6, 5.8, 6], 2, [2, 8]),
    ],
    ids=["all", "every second", "newest", "by time, not by number"],
)
def test_frames_are_chosen_evenly_in_time(arrived_s: list[float], most: int, positions: list[int]) -> None:
    assert evenly(arrived_s, 0.0, most) == positions


@pytest.mark.parametrize(
    ("seconds_of", "most"),
    [
        (lambda k, frames: 0.01 * frames + 0.3 * (k == 19), 10),
        (lambda k, frames: 0.05 * frames, 4),
        (lambda k, frames: 0.4 * frames, 2),
        (lambda k, frames: 0.3 + 0.01 * frames, 10),
    ],
    ids=["fast, and once delayed", "slow", "far too slow", "far away"],
)
def test_a_batch_follows_the_speed_of_machine_and_server(seconds_of: Callable[[int, int], float], most: int) -> None:
    pace = Pace(0.2)
    assert pace.most == 10
    for k in range(20):
        frames = min(pace.most, 1 + k % 3)
        pace.saw(frames, seconds_of(k, frames))
    assert pace.most == most


def test_an_error_of_the_source_comes_after_its_last_frames(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", [1, 2, 4])
    (tmp_path / "crops" / "00003.png").write_bytes(b"no image")
    source = open_live(SourceSettings(source=str(tmp_path / "crops")))
    seen = 0
    with NewestFrames(source, LiveCounters()) as newest:
        while seen < 3:
            seen += len(newest.take(9, 1.0) or [])
        with pytest.raises(VideoError, match="1 of 4 images"):
            newest.take(9, 1.0)


def test_percentiles_of_the_histogram_are_those_of_all_delays() -> None:
    delay_s = np.random.default_rng(0).lognormal(-2, 0.7, 5000)
    delays = Delays()
    for part in np.array_split(delay_s, 50):
        delays.add(part)
    for percent in (5, 50, 95, 99):
        assert delays.percentile_s(percent) == pytest.approx(np.percentile(delay_s, percent), rel=0.02)
    assert delays.recent_percentile_s(50) == pytest.approx(np.median(delay_s[-300:]))
    assert delays.largest_s == delay_s.max()


class TestAnswers:
    @pytest.mark.parametrize(("hop", "batch"), [(10, 7), (10, 25), (1, 3), (300, 10)])
    def test_every_frame_is_answered_exactly_once(self, client: AffectClient, hop: int, batch: int) -> None:
        analysis, counters = analysis_of(client, hop)
        frames = frames_of(blurred_noise(43))
        answers = [answer for k in range(0, 43, batch) for answer in analysis.push(frames[k : k + batch])]
        answers += analysis.answer()
        assert answered_frames(answers) == list(range(43))
        assert all(len(answer.rows) == hop for answer in answers[:-1])
        assert (counters.analysed, counters.dropped) == (43, 0)

    def test_answers_are_the_tail_of_what_the_head_says_about_the_trailing_window(self, client: AffectClient) -> None:
        few = blurred_noise(8, seed=1)
        order = np.arange(330) % 8
        analysis, _ = analysis_of(client, hop=30)
        frames = frames_of(few[order])
        answers = [answer for k in range(0, 330, 30) for answer in analysis.push(frames[k : k + 30])]
        features = client.encode(few)[order]
        for end in (30, 300, 330):
            expected = client.predict(features[max(0, end - 300) : end])
            for task, values in answers[end // 30 - 1].rows.predictions.items():
                np.testing.assert_allclose(values, expected[task][-30:], atol=TOLERANCE)

    def test_a_dropped_frame_repeats_the_feature_before_it(self, client: AffectClient) -> None:
        images = blurred_noise(8, seed=2)
        numbers = [0, 1, 3, 4, 5, 9, 10, 11]
        analysis, _ = analysis_of(client, hop=12)
        answers = list(analysis.push(frames_of(images, numbers)))
        held = np.maximum.accumulate([numbers.index(n) if n in numbers else 0 for n in range(12)])
        expected = client.predict(client.encode(images)[held])
        assert answered_frames(answers) == numbers
        for task, values in answers[0].rows.predictions.items():
            np.testing.assert_allclose(values, expected[task][numbers], atol=TOLERANCE)

    def test_after_a_long_break_windows_and_people_are_new(self, client: AffectClient) -> None:
        images = blurred_noise(4, seed=3)
        analysis, _ = analysis_of(client, hop=2)
        answers = [*analysis.push(frames_of(images, [0, 1, 2, 2000])), *analysis.answer()]
        assert answered_frames(answers) == [0, 1, 2, 2000]
        alone = client.predict(client.encode(images[3:]))
        for task, values in answers[-1].rows.predictions.items():
            np.testing.assert_allclose(values, alone[task], atol=TOLERANCE)
        assert [answer.rows.track_id[-1] for answer in answers] == [0, 0, 1]

    def test_in_a_picture_of_another_size_people_are_new(self, client: AffectClient) -> None:
        analysis, _ = analysis_of(client, hop=4)
        small = np.zeros((2, 100, 120, 3), dtype=np.uint8)
        frames = [*frames_of(blurred_noise(2), [0, 1]), *frames_of(small, [2, 3])]
        answers = [*analysis.push(frames), *analysis.answer()]
        assert [track for answer in answers for track in answer.rows.track_id.tolist()] == [0, 0, 1, 1]

    def test_people_come_and_go_each_with_a_window_of_their_own(self, client: AffectClient) -> None:
        here = {0: [0, 1, 2, 3], 1: [2, 3, 4], 2: [5]}  # track -> frames
        images = blurred_noise(8, seed=4)

        class Crowd:
            name = "crowd"
            patience_frames = None

            def __init__(self) -> None:
                self._frame = -1

            def crop(self, image: NDArray[np.uint8]) -> list[FaceCrop]:
                self._frame += 1
                whole = WholeImageCropper().crop(image)[0]
                return [
                    FaceCrop(track_id=track, face=whole.face, pixels=np.roll(whole.pixels, 20 * track, axis=1))
                    for track, frames in here.items()
                    if self._frame in frames
                ]

        analysis = LiveAnalysis(client, Crowd, LiveSettings(hop=7), LiveCounters())
        (answer,) = analysis.push(frames_of(images[:7]))
        rows = answer.rows
        assert list(zip(rows.frame.tolist(), rows.track_id.tolist(), strict=True)) == [
            *[(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 1), (5, 2)],
            (6, -1),
        ]
        for track, frames in here.items():
            crops = np.stack(
                [np.roll(WholeImageCropper().crop(images[n])[0].pixels, 20 * track, axis=1) for n in frames]
            )
            expected = client.predict(client.encode(crops))
            for task, values in rows.predictions.items():
                np.testing.assert_allclose(values[rows.track_id == track], expected[task], atol=TOLERANCE)
        assert np.isnan(rows.predictions["expression"][-1]).all()


class SlowClient(AffectClient):
    """A server that needs, for each frame, the time in which three arrive."""

    counters: LiveCounters

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        until = min(self.counters.decoded + 3 * len(frames), 90)
        wait_for(lambda: self.counters.decoded >= until)
        return super().encode(frames)


def test_too_slow_a_machine_drops_frames_and_answers_the_newest(server_url: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(90))
    with SlowClient(server_url) as slow:
        analysis, counters = analysis_of(slow)
        slow.counters = counters
        answers = list(analysis.run(open_live(SourceSettings(source=str(video)))))
    numbers = answered_frames(answers)
    assert numbers == sorted(set(numbers))
    assert len(numbers) + counters.dropped == counters.decoded == 90
    assert len(numbers) <= 45, "a third, and what waited at the end"
    assert numbers[-1] == 89


def test_a_stopped_and_a_killed_server_cost_frames_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(60))
    config = ServerConfig(repository=repository, drain_timeout_s=0)
    with (
        SupervisedServer(config, on_event=lambda event: None) as server,
        AffectClient(server.grpc_url, retry_for_s=0.2) as client,
    ):
        analysis, counters = analysis_of(client)
        answers = analysis.run(open_live(SourceSettings(source=str(video), loop=True)))
        seen = [next(answers)]

        def answers_until(true: Callable[[], bool]) -> None:
            began_s = now_s()
            while not true():
                assert now_s() - began_s < LIMIT_S
                seen.append(next(answers))

        def go_on_after(decoded: int) -> None:
            wait_for(lambda: counters.decoded >= decoded)
            os.kill(server.pid, signal.SIGCONT)

        pause(server.pid)
        before = counters.dropped
        threading.Thread(target=go_on_after, args=(counters.decoded + 40,)).start()
        answers_until(lambda: counters.dropped >= before + 10)
        os.kill(server.pid, signal.SIGKILL)
        answers_until(lambda: counters.lost > 0)
        answered = counters.analysed
        answers_until(lambda: counters.analysed > answered)
        numbers = answered_frames(seen)
        assert numbers == sorted(set(numbers))
        answers.close()


class TestClock:
    def test_a_steady_stream_counts_frames_by_its_own_clock(self) -> None:
        clock = StreamClock(30)
        for k in range(5):
            clock.tick(100 + k / 30, 7 + k / 30 + 0.01 * (k % 2))
            assert (clock.index, clock.timestamp_s) == (k, pytest.approx(k / 30))

    @pytest.mark.parametrize("after_s", [0.0, 100.1, 5000.0], ids=["restarts", "goes on", "jumps"])
    def test_a_break_takes_as_long_as_it_took_here(self, after_s: float) -> None:
        clock = StreamClock(30)
        clock.tick(100.0, 7.0)
        clock.interrupt()
        clock.tick(after_s, 9.0)
        assert (clock.index, clock.timestamp_s) == (60, pytest.approx(2.0))
        clock.tick(after_s + 1 / 30, 9.03)
        assert (clock.index, clock.timestamp_s) == (61, pytest.approx(2 + 1 / 30))

    def test_a_stream_without_timestamps_runs_on_this_machines(self) -> None:
        clock = StreamClock(30)
        for k in range(4):
            clock.tick(None, 7 + k / 20)
        assert (clock.index, clock.timestamp_s) == (3, pytest.approx(0.15))


class TestRtsp:
    def test_a_lost_connection_is_opened_again(self, client: AffectClient) -> None:
        with RtspServer(moving_square(60)) as server:
            source = open_live(SourceSettings(source=server.url))
            analysis, counters = analysis_of(client)
            answers = []
            for answer in analysis.run(source, lambda: counters.reconnects == 1 and counters.analysed > 60):
                answers.append(answer)
                if len(answers) == 3:
                    server.drop()
        numbers = answered_frames(answers)
        timestamps = np.concatenate([answer.rows.timestamp_s for answer in answers])
        assert counters.reconnects == 1
        assert numbers == sorted(set(numbers))
        assert np.diff(timestamps).min() > 0
        steps = np.diff(numbers)
        assert steps.max() > 5, "the break shows in the frame numbers"
        assert np.diff(timestamps).max() == pytest.approx(steps.max() / FPS, abs=0.1)
        assert counters.trouble == ""

    def test_a_stream_that_does_not_come_back_is_an_error(self) -> None:
        with RtspServer(moving_square(30)) as server:
            source = open_live(SourceSettings(source=server.url, reconnect_for_s=0.6))
            counters = LiveCounters()
            frames = iter(source.frames(threading.Event(), counters))
            next(frames)
        with pytest.raises(VideoError, match=r"was lost \(.*--reconnect-for allows 0.6 s"):
            list(frames)
        assert counters.trouble

    def test_who_does_not_answer_is_told_at_once(self) -> None:
        with pytest.raises(VideoError, match=r"^rtsp://127.0.0.1:1/x cannot be opened \(Connection refused\)"):
            open_live(SourceSettings(source="rtsp://user:secret@127.0.0.1:1/x"))


def test_a_file_behind_a_url_is_no_live_stream(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving_square(60))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever, 0.05)
        try:
            with pytest.raises(VideoError, match=r"is a file of 2\.0 s, no live stream"):
                open_live(SourceSettings(source=f"http://127.0.0.1:{server.server_address[1]}/clip.mp4"))
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "77"}, "there is no camera /dev/video77; found"),
        ({"source": "/dev/video77"}, "there is no camera /dev/video77"),
        ({"source": "0", "camera_size": "640"}, "expected WIDTHxHEIGHT"),
        ({"source": "nowhere.mp4"}, "does not exist"),
    ],
    ids=["number", "device", "size", "file"],
)
def test_a_wrong_source_is_told(settings: dict[str, str], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        open_file(SourceSettings(**settings))  # type: ignore[arg-type]


def test_a_camera_that_ffmpeg_cannot_open_is_told() -> None:
    with pytest.raises(VideoError, match=r"cannot be opened \(No such file or directory\): is it in use"):
        open_live(SourceSettings(source="/dev/video77", camera_size="640x480", fps=30))


def test_a_live_picture_is_cropped_as_infer_crops_it(tmp_path: Path) -> None:
    video = write_video(tmp_path / "phone.mp4", moving_square(50), codec="mjpeg", pixels="yuvj420p")
    path = rotated_mp4(video, (0, 1, -1, 0))
    infer = [WholeImageCropper().crop(frame.image)[0] for frame in open_source(path)]
    stream = open_live(SourceSettings(source=f"file://{path}", reconnect_for_s=0))
    picture = next(iter(stream.frames(threading.Event(), LiveCounters()))).rgb()
    (live,) = WholeImageCropper().crop(picture)
    assert live.face.box_px == infer[0].face.box_px == (0, 0, 48, 64)
    # What a stream holds while it is probed is not shown.
    assert any(np.array_equal(live.pixels, crop.pixels) for crop in infer)


@pytest.mark.parametrize("width", [100, 80, 60])
def test_the_panel_shows_what_was_seen_in_any_width(width: int) -> None:
    labels = default_head_description().labels
    predictions = {
        "valence_arousal": np.array([0.4, -0.25], dtype=np.float32),
        "expression": np.eye(8, dtype=np.float32)[4],
        "action_units": np.linspace(0, 1, 12, dtype=np.float32),
    }
    persons = [SeenPerson(track_id=track, predictions=predictions, box_px=(0, 0, 1, 1)) for track in (3, 8)]
    snapshot = Snapshot(
        source="rtsp://camera/1", labels=labels, people=persons, dropped=7, delay_p50_s=0.162, delay_p95_s=0.3
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(panel(snapshot, width))
    text = console.export_text()
    for part in ("7 dropped", "162 ms", "+0.40", "-0.25", "Happiness", "100 %", "AU26", "person 8"):
        assert part in text
    assert {len(line) for line in text.splitlines()} == {width}


def test_the_view_keeps_the_past_of_whom_it_shows_and_says_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = LiveCounters()
    view = LiveView("camera", LABELS, counters)
    rows = people(4, {3: range(3), 8: range(2, 4)})
    table = table_of([rows], LABELS)
    monkeypatch.setattr(view_module, "SILENCE_S", LIMIT_S)
    for frame, history, tracks in ((0, [0], [3]), (1, [0, 1], [3]), (2, [0, 1, 2], [3, 8]), (3, [4], [8])):
        now = {name: values[rows.frame == frame] for name, values in table.items()}
        view.show(LiveAnswer(rows=rows_of(now, LABELS), delay_s=np.zeros(len(tracks))))
        seen = view.snapshot()
        assert [person.track_id for person in seen.people] == tracks
        np.testing.assert_array_equal(seen.history, rows.predictions["valence_arousal"][history])
    assert seen.warnings == ()
    monkeypatch.setattr(view_module, "SILENCE_S", -1)
    assert "no frame from the source" in view.line()
    counters.decoded = 100
    assert "no answer from the server" in view.line()
    counters.trouble = "camera was lost"
    assert view.snapshot().warnings == ("camera was lost",)


@pytest.mark.parametrize(("growth_s", "expected"), [(0.0, False), (0.05, True)], ids=["steady", "growing"])
def test_growing_delay_is_recognised(growth_s: float, expected: bool) -> None:
    at_s = np.arange(0, 600, 1 / FPS)
    saw = 0.16 + 0.1 * (np.arange(len(at_s)) % 10) / 10 + 0.02 * np.random.default_rng(0).standard_normal(len(at_s))
    line = slope(at_s, saw + growth_s * at_s / 600)
    assert line is not None
    assert line[0] * 600 == pytest.approx(growth_s, abs=0.005)
    assert grows(line, saw, 600) is expected


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "affserve.client", "live", *arguments]


def test_the_command_writes_a_line_for_each_frame_and_a_summary(server_url: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(45))
    began_s = time.monotonic()
    done = subprocess.run(
        command(str(video), "--url", server_url, "--crops", "--jsonl", "-"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began_s > 45 / FPS, "a file plays in real time"
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    columns = [column.name for column in columns_of(default_head_description().labels)]
    assert all([*row] == [*columns, "delay_s", "decoded", "dropped"] for row in rows)
    assert len(rows) + rows[-1]["dropped"] == 45
    assert rows[-1]["delay_s"] > 0
    assert "clip.mp4: 45 frames in" in done.stderr
    assert "warning: this model was trained on generated faces only" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_cleanly(server_url: str, tmp_path: Path, number: signal.Signals) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(30))
    rows = tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        command(str(video), "--url", server_url, "--crops", "--loop", "--jsonl", str(rows), "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 0), stderr
    summary = json.loads(stdout)
    assert summary["analysed"] == len(rows.read_text().splitlines()) > 0
    assert summary["decoded"] >= summary["analysed"] + summary["dropped"]
    assert summary["delay_p95_ms"] > 0
    assert "Traceback" not in stderr


def test_a_reader_that_has_seen_enough_ends_it(server_url: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", moving_square(30))
    process = subprocess.Popen(
        command(str(video), "--url", server_url, "--crops", "--loop", "--jsonl", "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 0, stderr
    assert "Error" not in stderr
