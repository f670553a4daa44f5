"""Videos as people have them: cut off, damaged, huge, in odd formats: a plain word or a right answer, never a trace."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import moving_square, noise, truncated, write_hdr, write_video, write_with_sound
from numpy.typing import NDArray
from result_rows import LABELS

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import FaceCropper, WholeImageCropper
from affserve.client.faces.detector_file import YUNET_FILE
from affserve.client.faces.detectors import YuNetDetector
from affserve.client.faces.settings import FaceSettings
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.results.formats import CSV
from affserve.client.results.rows import Rows
from affserve.client.video.container_size import announced_bytes
from affserve.client.video.source import open_source
from affserve.train.errors import OutputError, VideoError

CONTAINERS = {
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "mp4": ("libx264", "yuv420p"),
    "mov": ("libx264", "yuv420p"),
    "avi": ("mjpeg", "yuvj420p"),
    "gif": ("gif", "rgb8"),
    "flv": ("flv", "yuv420p"),
}


def crops_job(source: Path, outputs: OutputPaths) -> Job:
    return Job(source=open_source(source), cropper=WholeImageCropper(), outputs=outputs)


def clip(path: Path, images: list[NDArray[np.uint8]]) -> Path:
    """A video in the container of the path's suffix, its index at the front where there is a choice."""
    codec, pixels = CONTAINERS[path.suffix[1:]]
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    return write_video(path, images, codec=codec, pixels=pixels, options=options)


def rows_of(path: Path) -> Rows:
    (rows,) = CSV.read(path, LABELS)
    return rows


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_lost_end_is_noticed_in_every_container(tmp_path: Path, suffix: str) -> None:
    whole = clip(tmp_path / f"whole.{suffix}", noise(60))
    frames = []

    with pytest.raises(VideoError, match=r"breaks off at [01]\.\d\d s .*: it is truncated; the \d\d frames"):
        frames.extend(open_source(truncated(whole, 0.6)))

    assert 20 < len(frames) < 50
    assert len(list(open_source(whole))) == 60


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "mov", "avi", "gif"])
def test_even_the_last_bytes_are_missed(tmp_path: Path, suffix: str) -> None:
    """The last frame only, far less than the half second by which announced and true durations may differ."""
    whole = clip(tmp_path / f"whole.{suffix}", noise(20))
    assert announced_bytes(whole) == whole.stat().st_size

    with pytest.raises(VideoError, match="it is truncated"):
        list(open_source(truncated(whole, 0.99)))


def test_lost_end_is_noticed_beside_a_longer_sound(tmp_path: Path) -> None:
    """Matroska announces no duration of its streams, and the container's is that of the longest."""
    whole = write_with_sound(tmp_path / "talk.mkv", noise(40), sound_first_s=-0.5)

    assert len(list(open_source(whole))) == 40
    with pytest.raises(VideoError, match="it is truncated"):
        list(open_source(truncated(whole, 0.7)))


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_damage_anywhere_is_frames_or_a_plain_error(tmp_path: Path, suffix: str) -> None:
    content = clip(tmp_path / f"whole.{suffix}", noise(12)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    read = 0
    for _ in range(25):
        damaged = bytearray(content)
        start = int(rng.integers(0, len(content) - 64))
        damaged[start : start + 64] = rng.bytes(64)
        path.write_bytes(damaged)
        try:
            read += sum(1 for _ in open_source(path))
        except VideoError as error:
            assert str(path) in str(error)  # noqa: PT017 some damage is an error, some is not

    assert read > 12 * 15  # most damage costs a few frames


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_video_without_frames_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()

    with pytest.raises(VideoError, match=r"no frame could be decoded|cannot be read as a video|no video stream"):
        list(open_source(path))


def test_high_dynamic_range_is_mapped_to_a_standard_screen(tmp_path: Path) -> None:
    """PQ 0.58 is the white of paper (203 cd/m2, ITU-R BT.2408), 0.38 grey of 18 %; undone, they would be 147 and 96."""
    image = next(iter(open_source(write_hdr(tmp_path / "hdr.mkv", [0.58, 0.38, 0.0])))).image

    assert image.dtype == np.uint8
    assert [image[band : band + 8].mean() for band in (4, 20, 36)] == pytest.approx([250, 105, 0], abs=14)


def test_one_frame_is_one_row_and_a_plot(client: AffectClient, tmp_path: Path) -> None:
    source = write_video(tmp_path / "one.mp4", moving_square(1))
    outputs = OutputPaths(rows=tmp_path / "one.csv", plot=tmp_path / "one.png", overlay=tmp_path / "one.overlay.mp4")

    summary = analyze_to_files(crops_job(source, outputs), client)

    assert (summary.frames, summary.rows, summary.duration_s) == (1, 1, 0)
    assert rows_of(outputs.rows).track_id.tolist() == [0]
    assert all(path.stat().st_size > 400 for path in outputs.files)


def test_faces_of_a_4k_video_are_found_and_marked(client: AffectClient, shared_data: Path, tmp_path: Path) -> None:
    group = cv2.cvtColor(cv2.imread(str(shared_data / "multi_face.jpg")), cv2.COLOR_BGR2RGB)
    large = np.asarray(cv2.resize(group, (3840, 2560)), dtype=np.uint8)[:2160]
    source = write_video(tmp_path / "4k.mp4", [large] * 2, codec="mpeg4")
    outputs = OutputPaths(rows=tmp_path / "rows.csv", overlay=tmp_path / "out.mp4")
    cropper = FaceCropper(YuNetDetector(shared_data / YUNET_FILE), FaceSettings(faces="all"))

    summary = analyze_to_files(Job(source=open_source(source), cropper=cropper, outputs=outputs), client)

    assert (summary.people, summary.rows) == (5, 10)
    assert rows_of(outputs.rows).box_px[:, 2].min() > 250
    assert [frame.image.shape for frame in open_source(tmp_path / "out.mp4")] == [(2160, 3840, 3)] * 2


def test_face_at_the_border_is_analysed(client: AffectClient, shared_data: Path, tmp_path: Path) -> None:
    """The left third of the face is outside the picture: the crop is filled up, the row is complete."""
    frames = [frame.image[:, 230:] for frame in open_source(shared_data / "single_face.mp4")][:4]
    source = write_video(tmp_path / "cut.mp4", [np.ascontiguousarray(image) for image in frames])
    cropper = FaceCropper(YuNetDetector(shared_data / YUNET_FILE))
    outputs = OutputPaths(rows=tmp_path / "rows.csv", overlay=tmp_path / "out.mp4")

    summary = analyze_to_files(Job(source=open_source(source), cropper=cropper, outputs=outputs), client)

    rows = rows_of(outputs.rows)
    assert summary.frames_with_face == 4
    assert rows.box_px[:, 0].max() < 30
    assert all(np.isfinite(values).all() for values in rows.predictions.values())


@contextmanager
def disk_full_after(size_bytes: int) -> Iterator[None]:
    """Let every file that grows beyond a size fail; Python ignores the signal, so that writing returns an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_in_the_middle_leaves_the_result_before(client: AffectClient, tmp_path: Path) -> None:
    source = write_video(tmp_path / "clip.mp4", moving_square(320))
    rows = tmp_path / "rows.csv"
    rows.write_text("before")

    with disk_full_after(30_000), pytest.raises(OutputError, match=r"rows\.csv cannot be written: File too large"):
        analyze_to_files(crops_job(source, OutputPaths(rows=rows)), client)

    assert rows.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "rows.csv"]


def test_every_place_is_checked_before_the_work(tmp_path: Path) -> None:
    for outputs in (
        OutputPaths(rows=tmp_path / "absent" / "rows.csv"),
        OutputPaths(rows=tmp_path / "rows.csv", plot=tmp_path / "absent" / "rows.png"),
        OutputPaths(rows=tmp_path / "rows.csv", overlay=Path("/proc/out.mp4")),
    ):
        with pytest.raises(OutputError, match="cannot be written"):
            outputs.check_writable()

    assert not list(tmp_path.iterdir())


def test_title_in_another_encoding_is_no_obstacle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "talk.mp4", moving_square(2))
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # the name of the writer, a tag like a title
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))

    assert len(list(open_source(path))) == 2
