"""The client and the pipeline against a real Triton server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import blurred_noise
from numpy.typing import NDArray

from affserve.client.client import AffectClient
from affserve.export.triton import ServerConfig, TritonServer
from affserve.export.triton_installation import find_installation, lay_out_backends, server_environment
from affserve.train.errors import InferenceError, ServerError
from affserve.train.labels import TASKS

TOLERANCE = 2e-5  # float32 sums in another order: chunks and batches differ


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return blurred_noise(70)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_describe_tells_tasks_in_the_projects_order(client: AffectClient) -> None:
    description = client.describe()

    assert list(description.labels.items()) == [(task.key, task.names) for task in TASKS.values()]
    assert description.trained_on == "synthetic"
    assert "Triton" in client.engine()


def test_encode_keeps_order_over_chunks(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    one_by_one = np.concatenate([client.encode(frames[k : k + 1]) for k in range(len(frames))])

    features = client.encode(frames)

    assert features.shape == (70, 512)
    assert np.abs(features - one_by_one).max() < TOLERANCE * np.abs(features).max()
    assert np.abs(features[0] - features[1]).max() > 100 * TOLERANCE  # the frames can be told apart
    features += 1  # the array is the caller's own


def test_stream_gives_one_array_per_chunk_and_reads_no_further_than_needed(
    client: AffectClient, frames: NDArray[np.uint8]
) -> None:
    taken: list[int] = []

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for k, size in enumerate((3, 0, 1, 4, 2)):
            taken.append(k)
            yield frames[k : k + size]

    stream = client.encode_stream(chunks())
    first = next(stream)

    assert taken == [0, 1]
    assert [len(features) for features in (first, *stream)] == [3, 0, 1, 4, 2]


def test_no_frames_are_no_features(client: AffectClient) -> None:
    assert client.encode(np.empty((0, 224, 224, 3), dtype=np.uint8)).shape == (0, 512)


def test_ensemble_says_the_same_as_its_two_steps(client: AffectClient, frames: NDArray[np.uint8]) -> None:
    two_steps = client.predict(client.encode(frames[:40]))
    at_once = client.affect(frames[:40])

    for task, values in at_once.items():
        assert values.shape == (40, TASKS[task].outputs)
        assert values.dtype == np.float32
        assert np.abs(values - two_steps[task]).max() < 1e-4
    assert at_once["expression"].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_whole_window_of_frames_fits_one_message(client: AffectClient) -> None:
    outputs = client.affect(np.zeros((300, 224, 224, 3), dtype=np.uint8))  # 45 MB; gRPC alone would refuse 4 MB

    assert outputs["valence_arousal"].shape == (300, 2)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((32, 768), dtype=np.float32), r"\(32, 768\) float32"),
        (np.zeros((32, 512)), r"\(32, 512\) float64"),
        (np.zeros(512, dtype=np.float32), r"\(512,\) float32"),
    ],
    ids=["width", "type", "axes"],
)
def test_wrong_features_are_refused_here(client: AffectClient, array: NDArray[np.float32], found: str) -> None:
    with pytest.raises(InferenceError, match=rf"temporal_head on .* expects features \(-1, 512\) float32, got {found}"):
        client.predict(array)


def test_wrong_frames_are_refused_here(client: AffectClient) -> None:
    with pytest.raises(InferenceError, match=r"expects frames \(-1, 224, 224, 3\) uint8, got \(1, 112, 112, 3\)"):
        client.encode(np.zeros((1, 112, 112, 3), dtype=np.uint8))


def test_servers_own_refusal_is_passed_on_at_once(client: AffectClient) -> None:
    start = time.monotonic()
    with pytest.raises(InferenceError) as raised:
        client.predict(np.empty((0, 512), dtype=np.float32))

    assert time.monotonic() - start < 5
    assert "temporal_head on 127.0.0.1:" in str(raised.value)
    assert "sent features (0, 512) float32" in str(raised.value)


def test_nobody_listening_is_said_quickly() -> None:
    url = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(ServerError, match=rf"no server at {url} .*start one with: affserve serve"), AffectClient(url):
        pass

    assert time.monotonic() - start < 6


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "localhost"])
def test_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="expected HOST:PORT"):
        AffectClient(url)


def test_server_with_other_models_is_refused(tmp_path: Path) -> None:
    """A Triton that serves an empty repository is a server, but not ours."""
    (tmp_path / "models").mkdir()
    (tmp_path / "work").mkdir()
    installation = find_installation()
    port = free_port()
    command = [str(installation.binary), f"--model-repository={tmp_path / 'models'}", f"--grpc-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
    backends = lay_out_backends(installation, tmp_path / "work")
    command += [f"--backend-directory={backends}"] if backends else []
    environment = server_environment(installation, tmp_path / "work")
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_listening(port)
            with AffectClient(f"127.0.0.1:{port}") as client, pytest.raises(InferenceError) as raised:
                client.describe()
        finally:
            process.terminate()
    assert "temporal_head" in str(raised.value)
    assert "not found" in str(raised.value)


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the server did not start listening within 30 s")


def test_server_that_stays_away_is_given_up_after_the_time(repository: Path) -> None:
    with TritonServer(ServerConfig(repository=repository)) as server:
        client = AffectClient(server.grpc_url, retry_for_s=2)
        client.connect()
        client.describe()
    start = time.monotonic()

    with pytest.raises(InferenceError, match="tried for 2 s"):
        client.encode(np.zeros((1, 224, 224, 3), dtype=np.uint8))

    assert 0.5 < time.monotonic() - start < 6
    client.close()
