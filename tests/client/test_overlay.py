"""The overlay shows what the rows say, frame by frame, with the source's times and sound, whatever the source."""

from __future__ import annotations

import resource
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import moving_square, noise, rotated_mp4, truncated, write_crops, write_video, write_with_sound
from numpy.typing import NDArray
from result_rows import LABELS, people

from affserve.client.drawing.canvas import Canvas, colour_of, text_mask
from affserve.client.drawing.overlay import draw_overlay
from affserve.client.drawing.overlay_marks import Marks
from affserve.client.drawing.palette import track_colour
from affserve.client.results.output_file import staged
from affserve.client.results.rows import Rows, SeenPerson
from affserve.client.video.source import Frame, open_source
from affserve.client.video.writer import VideoWriter
from affserve.export.contract import HeadDescription
from affserve.train.errors import OutputError

HEAD = HeadDescription(labels=LABELS, trained_on="AffWild2")


def overlaid(source: Path, target: Path, rows: Rows | None = None) -> tuple[str, ...]:
    rows = rows if rows is not None else people(1000, {0: range(1000)})
    return draw_overlay(open_source(source), iter([rows]), HEAD, target)


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """When each packet of the first stream of a kind is shown, and what it holds."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        found = [packet for packet in container.demux(stream) if packet.pts is not None]
        return sorted((float(packet.pts * packet.time_base), bytes(packet)) for packet in found)


def times(path: Path, kind: str = "video") -> list[float]:
    return [when for when, _ in packets(path, kind)]


def test_wide_pixels_stay_wide(tmp_path: Path) -> None:
    source = write_video(tmp_path / "wide.mp4", moving_square(3), pixel_aspect=Fraction(4, 3))
    overlaid(source, tmp_path / "overlay.mp4")
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize(
    ("first", "start"), [(0.0, 0.0), (0.2, 0.5), (-0.2, 0.0)], ids=["together", "sound", "pictures"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_and_sound_are_the_sources(tmp_path: Path, suffix: str, first: float, start: float) -> None:
    source = write_with_sound(tmp_path / "talk.mkv", moving_square(20), sound_first_s=first, start_s=start)
    target = tmp_path / f"talk.overlay{suffix}"
    notices = overlaid(source, target)
    pictures, sound = times(source), times(source, "audio")
    assert notices == ()
    shift = times(target)[0] - pictures[0]
    tolerance = 1e-3 + 1 / 16000  # MKV counts milliseconds
    assert np.subtract(times(target), pictures) == pytest.approx(shift, abs=tolerance)
    assert np.subtract(times(target, "audio"), sound) == pytest.approx(shift, abs=tolerance)
    assert min(times(target)[0], times(target, "audio")[0]) == pytest.approx(0, abs=0.07)  # AAC starts 64 ms early
    assert [content for _, content in packets(target, "audio")] == [content for _, content in packets(source, "audio")]


def test_sound_that_the_container_does_not_hold_becomes_aac(tmp_path: Path) -> None:
    source = write_with_sound(tmp_path / "talk.mkv", moving_square(30), codec="pcm_s16le")
    (notice,) = overlaid(source, tmp_path / "talk.mp4")
    assert "from pcm_s16le to AAC" in notice
    with av.open(str(tmp_path / "talk.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(16000, abs=2048)


def test_variable_rate_stays_variable(tmp_path: Path) -> None:
    source = write_video(tmp_path / "variable.mkv", moving_square(4), pts=[0, 1, 7, 8], codec="ffv1")
    overlaid(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == pytest.approx(times(source), abs=1e-6)


def test_real_gif_keeps_every_frame_and_its_time(shared_data: Path, tmp_path: Path) -> None:
    overlaid(shared_data / "two_people.gif", tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == pytest.approx(times(shared_data / "two_people.gif"), abs=1e-6)


def test_older_encoder_serves_where_there_is_no_x264(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "in.mp4", moving_square(5), pts=[0, 1, 4, 5, 9]))
    with staged(tmp_path / "out.mp4") as part, VideoWriter(part, ".mp4", source, encoder="mpeg4") as writer:
        for frame in source:
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert times(tmp_path / "out.mp4") == pytest.approx(times(tmp_path / "in.mp4"), abs=1e-4)


@pytest.mark.parametrize(
    ("suffix", "size", "turned"), [(".mkv", (65, 47), False), (".mp4", (64, 48), True)], ids=["odd-size", "portrait"]
)
def test_picture_is_upright_and_even(tmp_path: Path, suffix: str, size: tuple[int, int], turned: bool) -> None:
    source = write_video(
        tmp_path / f"in{suffix}", moving_square(3, size), codec="libx264", pixels="yuv420p" if turned else "yuv444p"
    )
    source = rotated_mp4(source, (0, 1, -1, 0)) if turned else source
    overlaid(source, tmp_path / "out.mp4", people(3, {}))
    shown = next(iter(open_source(tmp_path / "out.mp4"))).image
    expected = next(iter(open_source(source))).image
    assert shown.shape[:2] == ((64, 48) if turned else (48, 66))
    height, width = expected.shape[:2]
    assert np.abs(shown[:height, :width].astype(int) - expected).mean() < 12  # 4:2:0 blurs the square's edges


def test_marks_follow_the_rows(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", [np.full((240, 320, 3), 90, dtype=np.uint8)] * 12)
    rows = people(12, {0: range(3, 6), 1: range(5, 9)})
    rows.box_px[:] *= 4
    overlaid(source, tmp_path / "out.mp4", rows)
    frames = [frame.image for frame in open_source(tmp_path / "out.mp4")]
    marked = [{track for track in (0, 1) if shows(image, track_colour(track))} for image in frames]
    assert marked == [set()] * 3 + [{0}] * 2 + [{0, 1}] + [{1}] * 3 + [set()] * 3


def shows(image: NDArray[np.uint8], colour: str) -> bool:
    return bool((np.abs(image.astype(int) - colour_of(colour)).max(axis=2) < 30).sum() > 40)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (360, 640), (640, 360), (2160, 3840)])
def test_marks_grow_with_the_picture(height: int, width: int) -> None:
    image = np.full((height, width, 3), 120, dtype=np.uint8)
    box = (0.3 * width, 0.3 * height, 0.2 * height, 0.25 * height)
    predictions = {task: np.full(len(names), 0.75, dtype=np.float32) for task, names in LABELS.items()}
    Marks(LABELS).draw(Canvas(image), [SeenPerson(track_id=0, box_px=box, predictions=predictions)])
    changed = np.argwhere((image != 120).any(axis=2))
    share = np.ptp(changed, axis=0) / (height, width)
    assert 0.25 < share[0] <= 1
    assert share[1] > 0.15
    x, y = round(box[0]), round(box[1] + box[3])  # the lower left corner, away from the card
    assert shows(image[y - height // 8 : y + 8, max(0, x - 8) : x + height // 8], track_colour(0))


def test_face_at_the_border_and_tasks_a_head_lacks() -> None:
    labels = {"expression": LABELS["expression"]}
    image = np.zeros((90, 120, 3), dtype=np.uint8)
    marks = Marks(labels)
    for box in ((-30.0, -20.0, 60.0, 60.0), (100.0, 70.0, 60.0, 60.0), (0.0, 0.0, 120.0, 90.0)):
        predictions = {"expression": np.eye(8, dtype=np.float32)[2]}
        marks.draw(Canvas(image), [SeenPerson(track_id=3, box_px=box, predictions=predictions)])
    assert image.any()


def test_text_is_smooth_and_stands_on_its_baseline() -> None:
    plain, deep = text_mask("AU12", 40), text_mask("gypsy", 40)
    assert len(np.unique(plain.coverage)) > 20
    assert plain.ascent_px == plain.coverage.shape[0]
    assert deep.coverage.shape[0] - deep.ascent_px > 5
    assert text_mask("AU12", 80).width_px == pytest.approx(2 * plain.width_px, rel=0.1)


def test_image_becomes_an_image_and_a_folder_a_video(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), np.full((80, 100, 3), 60, dtype=np.uint8))
    folder = write_crops(tmp_path / "crops", [1, 2, 5])
    overlaid(tmp_path / "still.png", tmp_path / "out.png")
    overlaid(folder, tmp_path / "out.mp4")
    assert cv2.imread(str(tmp_path / "out.png")).shape == (80, 100, 3)
    assert times(tmp_path / "out.mp4") == pytest.approx([0, 1 / 30, 4 / 30], abs=1e-4)


def test_model_of_generated_faces_says_so_in_the_picture(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", moving_square(1, (320, 240)))
    synthetic = HeadDescription(labels=LABELS, trained_on="synthetic")
    images = []
    for head in (HEAD, synthetic):
        draw_overlay(open_source(source), iter([people(1, {})]), head, tmp_path / "out.mp4")
        images.append(next(iter(open_source(tmp_path / "out.mp4"))).image.astype(int))
    assert np.abs(images[0] - images[1])[-30:].max() > 80
    assert np.abs(images[0] - images[1])[:-40].max() < 20


def test_source_that_breaks_off_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", noise(60), options={"movflags": "faststart"})
    broken = truncated(whole, 0.6)
    overlaid(broken, tmp_path / "out.mp4")
    assert 20 < len(times(tmp_path / "out.mp4")) < 50


def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mkv", noise(60), codec="ffv1")
    target = tmp_path / "out.mp4"
    target.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # Python ignores the signal, so writing fails
    try:
        with pytest.raises(OutputError, match="overlay cannot be written"):
            overlaid(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mp4"]


def test_damaged_times_never_step_back(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "in.mp4", moving_square(4)))
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    with staged(tmp_path / "out.mp4") as part, VideoWriter(part, ".mp4", source) as writer:
        for index, timestamp_s in enumerate((0.0, 0.2, 0.2, 0.1, 0.3)):
            writer.write(Frame(index=index, timestamp_s=timestamp_s, image=image))
    shown = times(tmp_path / "out.mp4")
    assert len(shown) == 5
    assert all(np.diff(shown) > 0)
    assert Fraction(shown[-1]).limit_denominator(1000) == Fraction(3, 10)
