"""Every frame once, in order, with the container's own time, whatever the file; and a plain word when it is broken."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import moving_square, noise, rotated_mp4, truncated, write_crops, write_sound, write_video

from affserve.client.video.source import Frame, open_source
from affserve.train.errors import VideoError

CLIPS = ["again.mkv", "no_face.mp4", "single_face.mp4", "two_people.gif"]


def container_times(path: Path) -> list[float]:
    """Presentation times straight from the decoder, from the stream's announced start."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        return [float((frame.pts - start) * stream.time_base) for frame in container.decode(stream)]


def read_until_error(path: Path) -> tuple[list[Frame], str]:
    """All frames that come before the error, and its message."""
    frames: list[Frame] = []
    with pytest.raises(VideoError) as raised:
        frames.extend(open_source(path))
    return frames, str(raised.value)


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_give_every_frame_with_the_containers_time(shared_data: Path, name: str) -> None:
    frames = list(open_source(shared_data / name))
    assert [frame.timestamp_s for frame in frames] == container_times(shared_data / name)
    assert [frame.index for frame in frames] == list(range(len(frames)))


def test_announced_frame_count_is_only_a_hint(shared_data: Path) -> None:
    source = open_source(shared_data / "no_face.mp4")
    assert source.frames_hint == 98
    assert len(list(source)) == 95


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "variable.mp4", moving_square(4), pts=[0, 1, 7, 8])
    assert [frame.timestamp_s for frame in open_source(path)] == pytest.approx([0, 1 / 30, 7 / 30, 8 / 30])


def test_time_counts_from_the_streams_start(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mp4", moving_square(3), pts=[30, 31, 32])
    assert next(iter(open_source(path))).timestamp_s == 0


def test_frames_without_timestamps_follow_at_the_frame_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", moving_square(6))
    with av.open(str(path)) as container:
        assert all(frame.pts is None for frame in container.decode(video=0))
    assert [frame.timestamp_s for frame in open_source(path)] == pytest.approx([k / 30 for k in range(6)])


@pytest.mark.parametrize(
    ("codec", "pixels", "size"),
    [
        ("ffv1", "gray", (65, 47)),
        ("ffv1", "gray16le", (65, 47)),
        ("ffv1", "yuv444p", (65, 47)),
        ("ffv1", "yuva420p", (65, 47)),
        ("libx264", "yuv420p10le", (64, 46)),
        ("mjpeg", "yuvj422p", (65, 47)),
    ],
    ids=["grey", "grey16", "odd-size", "alpha", "10-bit", "full-range"],
)
def test_pixel_formats_become_rgb(tmp_path: Path, codec: str, pixels: str, size: tuple[int, int]) -> None:
    images = moving_square(2, size)
    path = write_video(tmp_path / "formats.mkv", images, codec=codec, pixels=pixels)
    expected = images[0].astype(int)
    if pixels.startswith("gray"):
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    image = next(iter(open_source(path))).image
    assert image.shape == images[0].shape
    assert image.dtype == np.uint8
    # Chroma subsampling and lossy codecs blur the edges of the square; a wrong matrix or order shifts the mean.
    assert np.abs(image - expected).mean() < 8


@pytest.mark.parametrize(
    ("matrix", "centre"),
    [((0, 1, -1, 0), (4, 35)), ((-1, 0, 0, -1), (35, 59)), ((0, -1, 1, 0), (59, 12))],
    ids=["quarter-turn-right", "half-turn", "quarter-turn-left"],
)
def test_rotation_of_the_container_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], centre: tuple[int, int]
) -> None:
    path = rotated_mp4(write_video(tmp_path / "phone.mp4", moving_square(3)), matrix)
    image = next(iter(open_source(path))).image
    row, column = centre
    assert image.shape[:2] == ((48, 64) if matrix[0] else (64, 48))
    assert image[row, column, 1] > 150  # the green square
    assert image[row, column, 0] < 60


@pytest.mark.parametrize("name", ["still.jpg", "still.png", "still.bmp", "still.webp"])
def test_still_image_is_one_frame_at_zero(tmp_path: Path, name: str) -> None:
    bgr = np.full((40, 50, 3), (10, 20, 200), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / name), bgr)
    (frame,) = open_source(tmp_path / name)
    assert (frame.index, frame.timestamp_s) == (0, 0.0)
    assert np.abs(frame.image.astype(int) - (200, 20, 10)).max() < 12  # lossy formats


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((10, 10), 77, dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "clear.png"), np.full((10, 10, 4), (1, 2, 3, 128), dtype=np.uint8))
    assert next(iter(open_source(tmp_path / "grey.png"))).image[0, 0].tolist() == [77, 77, 77]
    assert next(iter(open_source(tmp_path / "clear.png"))).image[0, 0].tolist() == [3, 2, 1]


def test_folder_with_gaps_keeps_numbers_and_time(tmp_path: Path) -> None:
    folder = write_crops(tmp_path / "crops", [3, 4, 9, 10])
    source = open_source(folder, fps=10)
    frames = list(source)
    assert source.already_cropped
    assert [frame.index for frame in frames] == [3, 4, 9, 10]
    assert [frame.timestamp_s for frame in frames] == pytest.approx([0.2, 0.3, 0.8, 0.9])


def test_folder_that_counts_from_zero_starts_at_zero(tmp_path: Path) -> None:
    frames = list(open_source(write_crops(tmp_path / "crops", [0, 1]), fps=10))
    assert [frame.timestamp_s for frame in frames] == pytest.approx([0, 0.1])


def test_folder_leaves_out_a_damaged_image_and_tells(tmp_path: Path) -> None:
    folder = write_crops(tmp_path / "crops", [1, 2, 3])
    (folder / "00001.png").write_bytes(b"not an image")
    frames, message = read_until_error(folder)
    assert [frame.index for frame in frames] == [2, 3]
    assert "1 of 3 images" in message
    assert "00001.png" in message


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "holds no images"),
        (["face.png"], "no frame numbers; expected names like 00001.jpg, or each image as a source of its own"),
        (["1.png", "0001.png"], "2 images for 1 frame number"),
        (["00001.png", "90000000.png"], "no frame numbers"),
    ],
    ids=["empty", "unnumbered", "twice", "sparse"],
)
def test_folder_that_is_no_sequence_is_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    for name in names:
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(VideoError, match=complaint):
        open_source(tmp_path)


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "text.jpg").write_text("hello")
    for name, complaint in {
        "missing.mp4": "does not exist",
        "empty.mp4": "0 bytes",
        "text.mp4": "cannot be read as a video",
        "text.jpg": "cannot be decoded as an image",
    }.items():
        with pytest.raises(VideoError, match=complaint):
            open_source(tmp_path / name)
    with pytest.raises(VideoError, match=r"no video stream \(found: audio\)"):
        open_source(write_sound(tmp_path / "sound.wav"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_image_that_breaks_off_is_refused(tmp_path: Path, suffix: str) -> None:
    """Some decoders paint what is missing grey, and a grey chin would get an answer like any other."""
    path = tmp_path / f"still{suffix}"
    path.write_bytes(cv2.imencode(suffix, moving_square(1)[0])[1].tobytes())
    assert open_source(path).frames_hint == 1
    with pytest.raises(VideoError, match="cannot be decoded"):
        open_source(truncated(path, 0.5))


def test_file_cut_before_its_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="complete file"):
        open_source(truncated(write_video(tmp_path / "whole.mp4", noise(60)), 0.6))


def test_damage_in_the_middle_costs_only_its_own_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", noise(60), options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = b"\xff" * 100
    path.write_bytes(content)
    frames = list(open_source(path))
    assert 55 <= len(frames) <= 60
    assert frames[-1].timestamp_s == pytest.approx(59 / 30)
