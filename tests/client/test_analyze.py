"""The pipeline from video to rows, against a real Triton server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import moving_square, write_crops, write_video
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.client.faces.cropper import Croppers, FaceCropper, WholeImageCropper
from affserve.client.faces.detector_file import YUNET_FILE
from affserve.client.faces.detectors import YuNetDetector
from affserve.client.faces.face import Face, FaceDetector
from affserve.client.faces.settings import FaceSettings
from affserve.client.infer.analyze import analyze_stream
from affserve.client.infer.analyze_files import Job, analyze_to_files
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.read_ahead import ReadAhead, StageSeconds
from affserve.client.results.rows import Rows
from affserve.client.video.source import VideoSource, open_source
from affserve.export.contract import CLIP_ENCODER
from affserve.export.server.config import ServerConfig
from affserve.export.server.supervisor import SupervisedServer
from affserve.train.crops import to_encoder_input
from affserve.train.labels import TASKS
from affserve.train.windows import Outputs, segments

TOLERANCE = 2e-5  # float32 sums in another order: chunks and batches differ


class GreenIsAFace:
    """A detector for `moving_square` videos: the frame is one face unless its number is in `blind`."""

    name = "green"

    def __init__(self, blind: set[int]) -> None:
        self._blind = blind
        self._next = 0

    def detect(self, image: NDArray[np.uint8], *, width_px: int = 0, closely: bool = True) -> list[Face]:
        self._next += 1
        if self._next - 1 in self._blind:
            return []
        height, width = image.shape[:2]
        corners = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.8], [0.65, 0.8]], dtype=np.float32)
        return [Face(box_px=(0, 0, width, height), score=0.75, landmarks_px=corners * (width, height))]


def every_frame(detector: FaceDetector) -> FaceCropper:
    """A cropper that asks the detector about each frame exactly once."""
    return FaceCropper(detector, FaceSettings(detect_every=1))


def joined(blocks: Iterator[Rows]) -> Rows:
    rows = list(blocks)
    return Rows(
        frame=np.concatenate([block.frame for block in rows]),
        timestamp_s=np.concatenate([block.timestamp_s for block in rows]),
        face_score=np.concatenate([block.face_score for block in rows]),
        track_id=np.concatenate([block.track_id for block in rows]),
        box_px=np.concatenate([block.box_px for block in rows]),
        quality=np.concatenate([block.quality for block in rows]),
        predictions={task: np.concatenate([block.predictions[task] for block in rows]) for task in TASKS},
    )


def whole_video(client: AffectClient, features: NDArray[np.float32]) -> Outputs:
    """Merge the segments of a whole video in the plainest way: sum and count."""
    description = client.describe()
    sums = {task: np.zeros((len(features), len(names))) for task, names in description.labels.items()}
    counts = np.zeros((len(features), 1))
    for segment in segments(len(features), description.window_frames, description.stride_frames):
        counts[segment] += 1
        for task, values in client.predict(features[segment]).items():
            sums[task][segment] += values
    return {task: (total / counts).astype(np.float32) for task, total in sums.items()}


def crops_of(path: Path, detector: FaceDetector) -> list[NDArray[np.uint8] | None]:
    cropper = every_frame(detector)
    found = [cropper.crop(frame.image) for frame in open_source(path)]
    return [one[0].pixels if one else None for one in found]


@pytest.mark.parametrize("name", ["again.mkv", "no_face.mp4", "single_face.mp4", "two_people.gif", "multi_face.jpg"])
def test_real_clips_have_one_row_per_frame(shared_data: Path, client: AffectClient, tmp_path: Path, name: str) -> None:
    frames = list(open_source(shared_data / name))
    detector = YuNetDetector(shared_data / YUNET_FILE)
    rows = joined(analyze_stream(open_source(shared_data / name), client, FaceCropper(detector)))
    assert rows.frame.tolist() == list(range(len(frames)))
    assert rows.timestamp_s.tolist() == [frame.timestamp_s for frame in frames]
    seen = np.isfinite(rows.face_score)
    assert seen.all() == (name != "no_face.mp4")
    for values in rows.predictions.values():
        assert (np.isfinite(values).all(axis=1) == seen).all()


def test_rows_equal_a_whole_video_computed_at_once(client: AffectClient, tmp_path: Path) -> None:
    """Two windows, late first face, gaps: what streaming gives is what plain arithmetic gives."""
    path = write_video(tmp_path / "long.mkv", moving_square(450), codec="ffv1", pixels="yuv444p")
    blind = {*range(40), 60, 61, *range(290, 330), 449}
    crops = crops_of(path, GreenIsAFace(blind))
    seen = np.array([crop is not None for crop in crops])
    features = client.encode(np.stack([crop for crop in crops if crop is not None]))
    held = features[np.cumsum(seen)[40:] - 1]  # of the last face so far, from the first one on
    expected = whole_video(client, held)
    rows = joined(analyze_stream(open_source(path), client, every_frame(GreenIsAFace(blind))))
    assert len(rows) == 450
    assert (np.isfinite(rows.face_score) == seen).all()
    for task, values in rows.predictions.items():
        assert np.isnan(values[~seen]).all()
        assert np.abs(values[seen] - expected[task][seen[40:]]).max() < 1e-4


class ThreeFaces(WholeImageCropper):
    """A cropper that takes each third of the frame for a face."""

    name = "thirds"

    def find(self, image: NDArray[np.uint8], prepared: None) -> list[tuple[int, Face]]:
        (whole,) = super().find(image, prepared)
        return [(k, replace(whole[1], score=k)) for k in range(3)]

    def cut(self, image: NDArray[np.uint8], face: Face) -> tuple[Face, NDArray[np.uint8]]:
        width, k = image.shape[1] // 3, int(face.score)
        return super().cut(np.ascontiguousarray(image[:, k * width : (k + 1) * width]), face)


def test_three_people_fill_chunks_and_have_windows_of_their_own(client: AffectClient, tmp_path: Path) -> None:
    path = write_video(tmp_path / "three.mkv", moving_square(320), codec="ffv1", pixels="yuv444p")
    with ReadAhead(open_source(path), ThreeFaces(), StageSeconds()) as chunks:
        sizes = [(len(chunk.crops), len(chunk.frames)) for chunk in chunks]
    crops = [ThreeFaces().crop(frame.image) for frame in open_source(path)]
    rows = joined(analyze_stream(open_source(path), client, ThreeFaces()))
    assert [crops for crops, _ in sizes] == [32] * 30 + [0]
    assert sum(frames for _, frames in sizes) == 320
    assert rows.frame.tolist() == np.repeat(np.arange(320), 3).tolist()
    assert rows.track_id.tolist() == [0, 1, 2] * 320
    for k in range(3):
        expected = whole_video(client, client.encode(np.stack([found[k].pixels for found in crops])))
        for task, values in rows.predictions.items():
            assert np.abs(values[k::3] - expected[task]).max() < 1e-4


@pytest.mark.parametrize(("name", "people"), [("two_people.gif", 2), ("multi_face.jpg", 5)])
def test_everybody_has_rows(shared_data: Path, client: AffectClient, name: str, people: int) -> None:
    cropper = FaceCropper(YuNetDetector(shared_data / YUNET_FILE), FaceSettings(faces="all"))
    frames = sum(1 for _ in open_source(shared_data / name))
    rows = joined(analyze_stream(open_source(shared_data / name), client, cropper))
    assert rows.frame.tolist() == np.repeat(np.arange(frames), people).tolist()
    assert rows.track_id.tolist() == list(range(people)) * frames
    assert all(np.isfinite(values).all() for values in rows.predictions.values())


def test_video_without_a_face_asks_for_no_inference(client: AffectClient, tmp_path: Path) -> None:
    path = write_video(tmp_path / "empty.mp4", moving_square(50))
    before = inferences(client)
    rows = joined(analyze_stream(open_source(path), client, every_frame(GreenIsAFace(set(range(50))))))
    assert len(rows) == 50
    assert np.isnan(rows.face_score).all()
    assert inferences(client) == before


def inferences(client: AffectClient) -> int:
    statistics = client._calls.triton.get_inference_statistics(CLIP_ENCODER.name)
    return sum(int(model.inference_count) for model in statistics.model_stats)


def test_folder_with_gaps_holds_the_last_feature(client: AffectClient, tmp_path: Path) -> None:
    numbers = [5, 6, 9, 340, 341]
    folder = write_crops(tmp_path / "crops", numbers)
    features = client.encode(np.stack([to_encoder_input(frame.image) for frame in open_source(folder)]))
    held = np.repeat(features, np.diff([*numbers, 342]), axis=0)
    expected = whole_video(client, held)
    rows = joined(analyze_stream(folder, client))
    assert rows.frame.tolist() == numbers
    for task, values in rows.predictions.items():
        assert np.abs(values - expected[task][np.array(numbers) - 5]).max() < 1e-4


def test_crops_are_taken_as_they_are_unless_told_otherwise(client: AffectClient, tmp_path: Path) -> None:
    source = open_source(write_crops(tmp_path / "crops", [1, 2]))
    cropper = Croppers().cropper(source.already_cropped)
    summary = analyze_to_files(
        Job(source=source, cropper=cropper, outputs=OutputPaths(rows=tmp_path / "rows.csv")), client
    )
    assert summary.detector.startswith("none")
    assert (summary.frames, summary.frames_with_face) == (2, 2)
    assert Croppers(crops=False, face_detector="haar").cropper(source.already_cropped).name == "haar"
    assert Croppers(crops=True).cropper(already_cropped=False).name.startswith("none")


def test_summary_tells_files_counts_and_times(client: AffectClient, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", moving_square(40))
    csv, plot = tmp_path / "rows.csv", tmp_path / "rows.png"
    progress: list[tuple[int, int | None]] = []
    outputs = OutputPaths(rows=csv, plot=plot)
    job = Job(source=open_source(path), cropper=FaceCropper(GreenIsAFace({0})), outputs=outputs)
    summary = analyze_to_files(job, client, progress=lambda *done: progress.append(done))
    assert (summary.frames, summary.frames_with_face, summary.error) == (40, 39, None)
    assert summary.duration_s == pytest.approx(39 / 30)
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "rows.csv", "rows.csv-metadata.json", "rows.png"]
    assert progress == [(33, 40), (40, 40)]  # as chunks are encoded, long before the first row is final
    assert summary.stages.decode_s > 0
    assert summary.stages.detect_s > 0
    assert 0 < summary.stages.head_s < summary.seconds


class KillsTheServer:
    """A video that kills the server process when its 200th frame is read."""

    def __init__(self, path: Path, server: SupervisedServer) -> None:
        self.path = path
        self._source = VideoSource(path, threads=0)
        self._server = server
        self.frames_hint = self._source.frames_hint
        self.already_cropped = False
        self.killed = False

    def __iter__(self) -> Iterator[object]:
        for frame in self._source:
            if frame.index == 200:
                os.kill(self._server.pid, signal.SIGKILL)
                self.killed = True
            yield frame


def test_server_killed_in_the_middle_costs_time_and_no_frame(repository: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mkv", moving_square(400), codec="ffv1", pixels="yuv444p")
    with (
        SupervisedServer(ServerConfig(repository=repository), on_event=lambda event: None) as server,
        AffectClient(server.grpc_url) as client,
    ):
        undisturbed = joined(analyze_stream(open_source(path), client, every_frame(GreenIsAFace(set()))))
        source = KillsTheServer(path, server)
        disturbed = joined(analyze_stream(source, client, every_frame(GreenIsAFace(set()))))  # type: ignore[arg-type]
    assert source.killed
    assert disturbed.frame.tolist() == undisturbed.frame.tolist()
    for task, values in disturbed.predictions.items():
        assert np.array_equal(values, undisturbed.predictions[task])
