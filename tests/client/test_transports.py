"""How frames travel: shared memory, raw and JPEG on real servers, and what is left behind however a client ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tritonclient.grpc as triton
from conftest import blurred_noise
from numpy.typing import NDArray
from tiny_server import wait_for
from tritonclient.utils import InferenceServerException

from affserve.client.client import AffectClient
from affserve.client.wire.messages import encode_jpeg, jpeg_tensor, raw_tensor
from affserve.client.wire.shared_memory import SHARED_MEMORY, Region, left_by_dead, remove_stale_files
from affserve.export.contract import JPEG
from affserve.export.repository.check import served_models
from affserve.export.server.config import ServerConfig
from affserve.export.server.server import TritonServer
from affserve.train.errors import ServerError

Frames = NDArray[np.uint8]

# Encodes one chunk after another until it is stopped; says when the first has been answered.
STREAMING_CLIENT = """
import itertools, sys
import numpy as np
from affserve.client.client import AffectClient

frames = np.zeros((32, 224, 224, 3), np.uint8)
with AffectClient(sys.argv[1], transport="shm") as client:
    for number, _ in enumerate(client.encode_stream(frames for _ in itertools.count())):
        if number == 1:
            print("streaming", flush=True)
            if sys.argv[2] == "exception":
                raise RuntimeError("on purpose")
            if sys.argv[2] == "end":
                break
"""


@pytest.fixture(scope="module")
def frames() -> Frames:
    return blurred_noise(40)


@pytest.fixture(scope="module")
def closed_server(repository: Path) -> Iterator[str]:
    """A server on this machine that lets nobody register shared memory."""
    with TritonServer(ServerConfig(repository=repository, shared_memory=False, drain_timeout_s=0)) as server:
        yield server.grpc_url


def client_files() -> list[str]:
    return [file.name for file in SHARED_MEMORY.glob("affserve-client-*")]


def registered(url: str) -> dict[str, object]:
    with triton.InferenceServerClient(url) as asking:
        return dict(asking.get_system_shared_memory_status().regions)


def requests_of(url: str, model: str) -> tuple[int, int]:
    """How many requests a model has answered, and in how many executions."""
    with triton.InferenceServerClient(url) as asking:
        (found,) = asking.get_inference_statistics(model).model_stats
    return int(found.inference_stats.success.count), int(found.execution_count)


# --- which way is taken ---


def test_shared_memory_is_chosen_on_one_machine_and_says_the_same(server_url: str, frames: Frames) -> None:
    with AffectClient(server_url) as chosen, AffectClient(server_url, transport="raw") as raw:
        assert (chosen.transport, raw.transport) == ("shm", "raw")
        np.testing.assert_array_equal(chosen.encode(frames), raw.encode(frames))
        exact, by_shm = raw.affect(frames), chosen.affect(frames)  # larger than a chunk: another region
        for task, values in exact.items():
            np.testing.assert_array_equal(by_shm[task], values)


def test_a_server_that_shares_no_memory_gets_raw_frames(closed_server: str, frames: Frames) -> None:
    with AffectClient(closed_server) as client:
        assert client.transport == "raw"
        assert client.encode(frames).shape == (40, 512)
    with pytest.raises(ServerError, match="by shared memory"), AffectClient(closed_server, transport="shm"):
        pass
    assert client_files() == []


def test_an_unknown_transport_is_refused_before_connecting() -> None:
    with pytest.raises(ServerError, match=r"transport is 'pigeon'; expected one of auto, raw, shm, jpeg"):
        AffectClient("127.0.0.1:1", transport="pigeon")


# --- what is left behind ---


@pytest.mark.parametrize("end", ["end", "exception", "SIGTERM", "SIGINT", "SIGKILL"])
def test_however_a_client_ends_no_file_stays(server_url: str, end: str) -> None:
    command = [sys.executable, "-c", STREAMING_CLIENT, server_url, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as streaming:
        assert streaming.stdout is not None
        assert streaming.stdout.readline() == "streaming\n"
        mapped = Path(f"/proc/{streaming.pid}/maps")
        if end.startswith("SIG"):
            assert "affserve-client" in mapped.read_text(), "no shared memory, so nothing was tested"
            streaming.send_signal(getattr(signal, end))
        streaming.wait(120)
    assert (streaming.returncode == 0) is (end == "end")
    assert client_files() == []
    # What the server still holds for a client that could not say goodbye, the next one has it close.
    deadline = time.monotonic() + 120
    while left_by_dead(registered(server_url)) and time.monotonic() < deadline:
        with AffectClient(server_url):  # a region that a request is still reading stays until that has ended
            time.sleep(0.1)
    assert left_by_dead(registered(server_url)) == []


def test_a_region_of_a_dead_process_is_found_by_its_name() -> None:
    """A client that is killed between making a region and registering it leaves a file; the next one removes it."""
    script = "from affserve.client.wire.shared_memory import Region; print(Region(4096).name)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    dead = done.stdout.strip()
    alive = Region(4096)
    try:
        assert {dead, alive.name} <= set(client_files())
        remove_stale_files()
        assert client_files() == [alive.name]
    finally:
        alive.unlink()


def test_no_room_for_shared_memory_is_an_error_not_a_crash() -> None:
    room = os.statvfs(SHARED_MEMORY)
    with pytest.raises(OSError, match="space"):
        Region(2 * room.f_frsize * room.f_blocks)
    assert client_files() == []


# --- JPEG ---


def test_jpeg_says_nearly_the_same(server_url: str, client: AffectClient, frames: Frames) -> None:
    with AffectClient(server_url, transport="jpeg") as by_jpeg:
        assert by_jpeg.transport == "jpeg"
        features, exact = by_jpeg.encode(frames), client.encode(frames)
        outputs, expected = by_jpeg.affect(frames), client.affect(frames)

    assert 0 < np.abs(features - exact).max() < 0.02 * np.abs(exact).max()
    for task, values in expected.items():
        assert np.abs(outputs[task] - values).max() < 0.01


def test_quality_is_size_against_exactness(server_url: str, client: AffectClient, frames: Frames) -> None:
    exact = client.encode(frames[:8])
    away = []
    for quality in (50, 95):
        with AffectClient(server_url, transport="jpeg", jpeg_quality=quality) as by_jpeg:
            away.append(np.abs(by_jpeg.encode(frames[:8]) - exact).max())
    assert away[1] < away[0] / 2
    assert len(encode_jpeg(frames[0], 50)) < len(encode_jpeg(frames[0], 95))


def test_decoded_pixels_are_those_of_another_decoder(server_url: str, frames: Frames) -> None:
    file = encode_jpeg(frames[0], 95)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    with triton.InferenceServerClient(server_url) as asking:
        decoded = asking.infer("jpeg_decoder", [jpeg_tensor(frames[:1], 95)]).as_numpy("frames")[0]
    assert np.abs(decoded.astype(int) - expected).max() <= 2  # decoders may round differently
    assert np.abs(decoded.astype(int) - frames[0]).mean() < 2  # RGB, not BGR


def wrong_files(frames: Frames) -> dict[str, bytes]:
    whole = encode_jpeg(frames[0], 95)
    return {
        "no JPEG": b"GIF89a",
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "another size": encode_jpeg(np.zeros((112, 224, 3), np.uint8), 95),
    }


@pytest.mark.parametrize("model", ["jpeg_decoder", "clip_encoder_jpeg", "affect_jpeg"])
def test_a_bad_jpeg_is_refused_by_place_and_reason(server_url: str, frames: Frames, model: str) -> None:
    for kind, file in wrong_files(frames).items():
        files = np.array([[encode_jpeg(frames[0], 95)], [file]], dtype=np.object_)
        with triton.InferenceServerClient(server_url) as asking, pytest.raises(InferenceServerException) as raised:
            asking.infer(model, [raw_tensor(JPEG, files)])
        assert raised.value.status() == "StatusCode.INVALID_ARGUMENT", kind
        sizes = "224 x 112 pixels, expected a face crop of 224 x 224"
        expected = sizes if kind == "another size" else "not a whole JPEG"
        assert "file 2 of 2" in raised.value.message()
        assert expected in raised.value.message()


def test_a_bad_jpeg_harms_nobody_else(server_url: str, client: AffectClient, frames: Frames) -> None:
    """Requests sent together are decoded together."""
    good, bad = encode_jpeg(frames[0], 95), b"junk"
    exact = client.encode(frames[:1])

    def ask(file: bytes) -> NDArray[np.float32] | str:
        with triton.InferenceServerClient(server_url) as asking:
            try:
                tensor = raw_tensor(JPEG, np.array([[file]], dtype=np.object_))
                features: NDArray[np.float32] = asking.infer("clip_encoder_jpeg", [tensor]).as_numpy("features")
            except InferenceServerException as error:
                return str(error.message())
        return features

    sent = [good, bad] * 8
    with ThreadPoolExecutor(len(sent)) as callers:
        answers = list(callers.map(ask, sent))
    for file, answer in zip(sent, answers, strict=True):
        if file is bad:
            assert isinstance(answer, str)
        else:
            assert isinstance(answer, np.ndarray)
            assert np.abs(answer - exact).max() < 0.02 * np.abs(exact).max()


def test_a_repository_without_the_jpeg_models_is_served_without_them(tmp_path: Path) -> None:
    for model in ("clip_encoder", "temporal_head", "affect", "jpeg_decoder", "clip_encoder_jpeg", "affect_jpeg"):
        (tmp_path / "new" / model).mkdir(parents=True)
        if "jpeg" not in model:
            (tmp_path / "old" / model).mkdir(parents=True)
    assert [model.name for model in served_models(tmp_path / "old")] == ["clip_encoder", "temporal_head", "affect"]
    assert len(served_models(tmp_path / "new")) == 6


# --- many clients ---


@pytest.mark.parametrize("transport", ["shm", "raw", "jpeg"])
def test_clients_that_share_batches_get_their_own_answers(server_url: str, frames: Frames, transport: str) -> None:
    parts = [frames[k : k + 5] for k in range(0, 40, 5)]

    def ask(part: Frames) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with AffectClient(server_url, transport=transport) as own:
            return own.encode(part), own.affect(part)["expression"]

    alone = [ask(part) for part in parts]
    together = []

    def some_met_in_a_batch() -> bool:
        requests, executions = requests_of(server_url, "clip_encoder")
        with ThreadPoolExecutor(len(parts)) as callers:
            together[:] = callers.map(ask, parts)
        more_requests, more_executions = requests_of(server_url, "clip_encoder")
        return more_executions - executions < more_requests - requests

    wait_for(some_met_in_a_batch)
    for (features, expression), (expected, expected_expression) in zip(together, alone, strict=True):
        assert np.abs(features - expected).max() < 2e-5 * np.abs(expected).max()
        assert np.abs(expression - expected_expression).max() < 1e-4
